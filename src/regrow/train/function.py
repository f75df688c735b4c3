"""A user's training function: its arguments, and how it is called and watched.

    def train(model, budget, seed):
        for epoch in range(budget.epochs): ...   # in place; no epochs: only measure
        return {"accuracy": ...}                  # or one number

The function is not told which arm it trains: each gets the same kind of ``Allowance``. Besides its
metrics it may return the training loss and the learning rate of each epoch (``train.by_epoch``).
"""

import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from regrow.core.durations import MOST_AMOUNT
from regrow.core.seeds import derive
from regrow.core.source import digest_of_source
from regrow.core.validation import is_int, is_number
from regrow.errors import CodeError, ConfigError, Interrupted, TrainingError, short, unknown
from regrow.models.origins import code_at, place_of, place_of_function
from regrow.train.by_epoch import read_history, split

if TYPE_CHECKING:
    from torch import nn

Unit = Literal["epochs", "steps", "samples"]
UNITS: tuple[Unit, ...] = get_args(Unit)
FORM = "my_train.py:train or package.module:train"
MOST_PRINTED = 4000  # last characters of a function's output, kept for error messages
MOST_METRICS = 100
# Examples in an epoch, by function, as seen in this process's earlier trainings: only for progress.
_epoch_samples: "dict[TrainFunction, float]" = {}


def _tell_nobody(done: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """The budget of one call of a training function.

    Attributes:
        amount, unit: the number of epochs, steps (updates) or samples (training examples seen,
            with repeats). 0: nothing is trained, the network is only measured.
        whole: the amount that the unpruned network has for its whole training.
        flops_per_sample: FLOPs of training on one example, three forward passes of this network.
        device: the device of the network.
        inherited: True if the network starts from the weights that pruning left.
        on_done: called with the amount that is done, by a loop over the allowance itself.
    """

    amount: int
    unit: Unit
    whole: int
    flops_per_sample: float
    device: str = "cpu"
    inherited: bool = False
    on_done: Callable[[int], None] = field(default=_tell_nobody, repr=False, compare=False)

    def __iter__(self) -> Iterator[int]:
        """Count from 0 to the amount and report progress: ``for epoch in budget:``."""
        for number in range(self.amount):
            yield number
            self.on_done(number + 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out ``on_done``: a copy in another process reports to nobody."""
        return {**vars(self), "on_done": _tell_nobody}

    @property
    def epochs(self) -> int:
        """The epochs to train for; a ``ConfigError`` if the budget is in another unit."""
        return self._in("epochs")

    @property
    def steps(self) -> int:
        """The updates to train for; a ``ConfigError`` if the budget is in another unit."""
        return self._in("steps")

    @property
    def samples(self) -> int:
        """The examples to train on; a ``ConfigError`` if the budget is in another unit."""
        return self._in("samples")

    @property
    def flops(self) -> float:
        """The FLOPs to train with; a ``ConfigError`` unless the budget is in samples or FLOPs."""
        return self.samples * self.flops_per_sample

    @property
    def share(self) -> float:
        """The amount as a share of that of the unpruned network's whole training."""
        return self.amount / self.whole

    def _in(self, unit: Unit) -> int:
        if unit != self.unit:
            raise ConfigError(
                f"This budget is in {self.unit}: read budget.{self.unit}, or ask for {unit} "
                f"(--budget-unit {unit})."
            )
        return self.amount


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The metrics that a call returned, and counts of its training passes.

    ``not_finite`` names metrics that were returned as nan or infinity and are left out.
    ``history`` has a line for each epoch whose training loss was returned, and ``unusable`` says
    what was wrong with it. ``samples`` and ``passes`` count training examples and forward passes in
    training mode with gradients, at the network's own call; both are 0 if it was never called so.
    ``shape`` is that of the first training example, and ``names`` are the inputs passed then.
    """

    metrics: Mapping[str, float]
    not_finite: tuple[str, ...]
    samples: int
    passes: int
    shape: tuple[int, ...] | None
    names: tuple[str, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()
    unusable: str = ""


@dataclass(frozen=True)
class TrainFunction:
    """A training function, named by its file or module, and the digest of its source.

    >>> TrainFunction.read("nowhere")
    Traceback (most recent call last):
    regrow.errors.ConfigError: ... my_train.py:train ... Got 'nowhere'.
    """

    text: str
    digest: str

    @classmethod
    def read(cls, text: Any) -> "TrainFunction":
        """Find a function and check that it can be called with (model, budget, seed)."""
        if not isinstance(text, str) or not text.rpartition(":")[0]:
            raise ConfigError(f"A training function must be given as {FORM}. Got {short(text)}.")
        function, file = code_at(text)
        if not callable(function):
            raise ConfigError(
                f"{text}: it must be a function train(model, budget, seed). Got {short(function)}."
            )
        try:
            signature = inspect.signature(function)
            signature.bind("model", "budget", "seed")
        except TypeError as error:
            raise ConfigError(
                f"{text}: it is called with three arguments, (model, budget, seed), and takes "
                f"{signature} ({error})."
            ) from error
        except ValueError:  # compiled code without a signature
            pass
        return cls(text, digest_of_source(file))

    def __call__(
        self,
        model: "nn.Module",
        allowance: Allowance,
        seed: int,
        *,
        metric: str = "",
        on_pass: Callable[[float, int], None] = lambda share, samples: None,
    ) -> Spent:
        """Train a network in place; return the function's metrics and what was spent.

        ``metric``, to compare by, must be finite if it is returned. ``on_pass`` is called before
        each training pass with the share of the allowance spent, as far as known, and the number
        of examples so far; what it raises passes through the function.

        Raises:
            TrainingError: the training diverged.
            CodeError: the function fails, or its result or the network it leaves cannot be used.
            ConfigError: its file changed since it was read.
        """
        printed = _Tail()
        with printed.caught():  # loggers keep the stream
            function, file = code_at(self.text)
        meter = _Meter(allowance, on_pass, epoch=_epoch_samples.get(self, 0.0))
        before = _Shapes.of(model)
        allowance = replace(allowance, on_done=meter.did)
        try:
            with _own_randomness(seed), _watched(model, meter), printed.caught():
                returned = function(model, allowance, seed)
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            raise CodeError(
                f"{self.text} fails: {place_of(error, str(file))}{type(error).__name__}: "
                f"{short(Exception(str(error)))}{printed.said}"
            ) from error
        place = place_of_function(function, str(file))
        told, returned = split(returned)
        metrics, not_finite = self._finite(self._metrics(returned, place), metric, place)
        before.check(model, f"{place}{self.text}", trained=allowance.amount > 0)
        if allowance.unit == "epochs" and meter.samples and allowance.amount:
            _epoch_samples[self] = meter.samples / allowance.amount
        history, unusable = read_history(told, allowance.amount, unit=allowance.unit)
        return Spent(
            metrics=metrics,
            not_finite=not_finite,
            history=history,
            unusable=unusable and f"{place}{self.text} returned {unusable}",
            samples=meter.samples,
            passes=meter.passes,
            shape=meter.shape,
            names=meter.names,
        )

    def _finite(
        self, returned: Mapping[str, float], metric: str, place: str
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return the finite metrics, and the names of the others; ``metric`` must be finite."""
        for name in ("", metric):
            if not math.isfinite(returned.get(name, 0.0)):
                raise TrainingError(
                    f"{place}{self.text} returned {returned[name]} for {_named(name)}. The "
                    "training diverged (try a smaller learning rate), or the metric divides by "
                    "zero."
                )
        finite = {name: value for name, value in returned.items() if math.isfinite(value)}
        return finite, tuple(name for name in returned if name not in finite)

    def _metrics(self, returned: Any, place: str) -> dict[str, float]:
        """Return what a function returned as numbers by name; a single number has no name."""
        values = returned if isinstance(returned, Mapping) else {"": returned}
        if not values or len(values) > MOST_METRICS:
            raise CodeError(
                f"{place}{self.text} must return a number, or a mapping of 1 to {MOST_METRICS} "
                f"numbers by name. Got {short(returned)}."
            )
        return {
            self._name(name, place): self._number(name, value, place)
            for name, value in values.items()
        }

    def _name(self, name: Any, place: str) -> str:
        if not isinstance(name, str):
            raise CodeError(
                f"{place}{self.text} must return metrics by name, each name a text. "
                f"Got {short(name)}."
            )
        return name

    def _number(self, name: str, value: Any, place: str) -> float:
        item = getattr(value, "item", None)  # of a tensor or a number of numpy
        try:
            number = item() if callable(item) else value
        except (RuntimeError, ValueError):
            number = value
        if isinstance(number, float) and not math.isfinite(number):
            return float(number)
        if not is_number(number):
            hint = " Does it lack a return?" if number is None and not name else ""
            raise CodeError(
                f"{place}{self.text} must return a number for {_named(name)}. "
                f"Got {short(number)}.{hint}"
            )
        return float(number)


def _named(metric: str) -> str:
    return f"the metric {metric!r}" if metric else "its metric"


def amount_of(value: Any, unit: Any) -> tuple[int, Unit]:
    """Check the amount and the unit of a budget."""
    if unit not in UNITS:
        raise ConfigError(f"Budget: {unknown('unit', str(unit), UNITS)}")
    if not is_int(value, least=1) or value > MOST_AMOUNT:
        raise ConfigError(
            f"A 'budget' (--budget) must be a whole number of {unit} from 1 to {MOST_AMOUNT:,}. "
            f"Got {short(value)}."
        )
    return value, unit


class _Meter:
    """Counts the training examples and passes of a network.

    ``epoch``: the number of examples in an epoch, 0 while unknown.
    """

    def __init__(
        self, allowance: Allowance, on_pass: Callable[[float, int], None], *, epoch: float = 0.0
    ) -> None:
        self.samples = self.passes = 0
        self.shape: tuple[int, ...] | None = None
        self.names: tuple[str, ...] = ()
        self._allowance = allowance
        self._on_pass = on_pass
        self._batch = 0  # size of the last one
        self._epoch = epoch
        self._done = 0  # of the allowance, if the function reports it

    def saw(self, shape: tuple[int, ...]) -> None:
        batch = shape[0] if shape else 1
        if not self._epoch and 0 < self._batch < batch:
            self._epoch = self.samples  # only the last batch of an epoch is smaller than the next
        self.passes += 1
        self.samples += batch
        self._batch = batch
        self.shape = self.shape or shape[1:]
        self._on_pass(self._share(), self.samples)

    def did(self, amount: int) -> None:
        """Record the amount of the allowance that the function reports as done."""
        self._done = amount

    def _share(self) -> float:
        """Return the share of the allowance that is spent, below 1; 0 if unknown."""
        epochs = self.samples / self._epoch if self._epoch else 0.0
        seen = {"samples": self.samples, "steps": self.passes, "epochs": epochs}
        done = max(seen[self._allowance.unit], self._done)
        return min(done / max(self._allowance.amount, 1), 0.99)


@contextmanager
def _watched(model: "nn.Module", meter: _Meter) -> Iterator[None]:
    """Count each training pass of a network, or of copies of it, in a meter."""
    handle = model.register_forward_pre_hook(_TrainingHook(meter), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _TrainingHook:
    """A hook on a network; copies of the network share it, unpickled ones get an idle one."""

    def __init__(self, meter: _Meter | None = None) -> None:
        self._meter = meter

    def __call__(
        self, module: "nn.Module", args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        import torch

        if self._meter is not None and module.training and torch.is_grad_enabled():
            shape = next((tuple(t.shape) for t in _tensors((args, kwargs))), None)
            if shape is not None:
                self._meter.names = self._meter.names or _handed(module, args, kwargs)
                self._meter.saw(shape)

    def __deepcopy__(self, memo: Any) -> "_TrainingHook":
        return self

    def __reduce__(self) -> tuple[type["_TrainingHook"], tuple[()]]:
        return _TrainingHook, ()


def _handed(
    network: "nn.Module", args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the names of a call's inputs that hold examples; none if they have no names.

    A tensor without dimensions does not count, such as the number of terms of a loss.
    """
    try:
        signature = inspect.signature(network.forward)
        placed = signature.bind_partial(*args).arguments
    except (TypeError, ValueError):
        return ()
    several = inspect.Parameter.VAR_POSITIONAL
    given = {n: x for n, x in placed.items() if signature.parameters[n].kind != several}
    return tuple(name for name, x in {**given, **kwargs}.items() if _holds_tensors(x))


def _holds_tensors(value: Any) -> bool:
    return any(tensor.dim() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed the generators of Python, numpy and PyTorch, and restore their states at the end.

    So arms that share a seed draw the same numbers, even if their function seeds nothing itself.
    """
    import torch

    from regrow.core.global_rng import drawing

    start = derive(seed, "train")
    with drawing(start), torch.enable_grad():
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(start)
        yield


class _Tail(io.TextIOBase):
    """A text stream that keeps the last characters written to it."""

    def __init__(self) -> None:
        self._text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self._text = (self._text + text)[-MOST_PRINTED:]
        return len(text)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Receive what is printed to stdout and stderr."""
        with redirect_stdout(self), redirect_stderr(self):
            yield

    @property
    def said(self) -> str:
        """The last line, as the end of a message."""
        lines = [line.strip() for line in self._text.splitlines() if line.strip()]
        return f" It printed last: {short(lines[-1])}." if lines else ""


@dataclass(frozen=True)
class _Shapes:
    """The tensors of a network before a training: their shapes, and a digest of the parameters."""

    shapes: Mapping[str, tuple[Any, ...]]
    digest: str = field(repr=False)

    @classmethod
    def of(cls, model: "nn.Module") -> "_Shapes":
        """Record the shapes and the digest of a network."""
        from regrow.core.digests import digest_of

        parameters = {name: p.detach().cpu() for name, p in model.named_parameters()}
        return cls(_shapes_of(model), digest_of(parameters))

    def check(self, model: "nn.Module", text: str, *, trained: bool) -> None:
        """Refuse a network that was not trained in place, or that is no longer the same one."""
        state = model.state_dict()
        if lost := [name for name, value in state.items() if value.is_meta]:
            raise CodeError(
                f"{text} left {lost[0]!r} on the device 'meta', which holds no numbers. Move the "
                "network to the CPU or to budget.device."
            )
        now = _shapes_of(model)
        if now != self.shapes:
            changed = sorted(name for name, _ in {*now.items()} ^ {*self.shapes.items()})
            raise CodeError(
                f"{text} changed the network's layers ({', '.join(map(repr, changed[:3]))}). It "
                "must train the network that it is given, in place; undo parametrizations and "
                "wrappers before it returns."
            )
        bad = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
        if bad:
            raise TrainingError(
                f"{text} left numbers in {bad[0]!r} that are not finite: the training diverged. "
                "Try a smaller learning rate."
            )
        changed_weights = _Shapes.of(model).digest != self.digest
        if changed_weights and not trained:
            raise CodeError(
                f"{text} changed parameters with a budget of 0, for which it must only measure the "
                "network: its score would be that of another network. Train for exactly the "
                "budget, and return the metrics after it."
            )
        if trained and not changed_weights:
            raise CodeError(
                f"{text} was called to train, but changed no parameter. It must train the "
                "network that it is given, in place: not a copy, and with its parameters in the "
                "optimiser."
            )


def _shapes_of(model: "nn.Module") -> dict[str, tuple[Any, ...]]:
    return {name: (*value.shape, str(value.dtype)) for name, value in model.state_dict().items()}
