"""Training variants on a GPU, run in turns in this process."""

from collections.abc import Callable, Iterator

import torch

from regrow.bench.material import BATCH, Subject
from regrow.bench.measuring import matrix_products, our_steps, our_training, rate, recipe
from regrow.bench.plain import plain_steps
from regrow.models import build
from regrow.run import num_cores
from regrow.run.executors import exact_floats
from regrow.run.gpu_sharing import MOST, Trial, how_many
from regrow.train import Precision

# The paper's code has one; more can only help the loop that ours is compared with.
LOADER_WORKERS = 8
WARM_UP_STEPS = 5


class GpuWays:
    """The plain loop in fp32 and with TF32, ours alone, and as many of ours at once as pays off."""

    def __init__(self, subject: Subject, device: str) -> None:
        self.left_out: dict[str, str] = {}
        self._device = device
        self._subject = subject
        self._exact = exact_floats()
        self._exact.__enter__()
        dataset = subject.dataset()
        self._plain = plain_steps(
            build(subject.model(dataset)),
            dataset,
            device=device,
            loader_workers=max(1, min(LOADER_WORKERS, num_cores() - 1)),
        )
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        self._trials = {
            p: Trial(subject.model(dataset), dataset, recipe(p), device=device) for p in precisions
        }
        self._nums_together = {
            p: how_many(trial.measure, most=MOST) for p, trial in self._trials.items()
        }
        self.num_together = self._nums_together["bf16"]
        self.ways: dict[str, Callable[[float], float]] = {
            "plain": self._rate_of(float(n) for n in self._plain),
            "plain tf32": self._with_tf32(float(n) for n in self._plain),
        }
        for p in precisions:
            self.ways[p] = self._rate_of(our_steps(our_training(subject, p, device)))
            self.ways[f"{p} together"] = self._rate_together(p)

    def peaks(self, seconds: float) -> dict[str, float]:
        """Return the FLOPs per second of matrix products, by precision."""
        rates = {}
        for precision in self._trials:
            steps = matrix_products(precision, self._device)
            next(steps)
            rates[str(precision)] = rate(steps, seconds=seconds, device=self._device)
        return rates

    def close(self) -> None:
        """Stop the trials and free the device."""
        for trial in self._trials.values():
            trial.close()
        self.ways.clear()
        self._plain.close()  # type: ignore[attr-defined]
        self._exact.__exit__(None, None, None)
        torch.cuda.empty_cache()

    def _rate_of(self, steps: Iterator[float]) -> Callable[[float], float]:
        for _ in range(WARM_UP_STEPS):
            next(steps)
        return lambda seconds: rate(steps, seconds=seconds, device=self._device)

    def _with_tf32(self, steps: Iterator[float]) -> Callable[[float], float]:
        def measured(seconds: float) -> float:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return rate(steps, seconds=seconds, device=self._device)
            finally:
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

        return measured

    def _rate_together(self, precision: Precision) -> Callable[[float], float]:
        trial, num = self._trials[precision], self._nums_together[precision]
        return lambda seconds: BATCH * trial.measure(num, seconds=seconds)
