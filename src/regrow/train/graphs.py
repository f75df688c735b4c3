"""CUDA graphs: a step is recorded once, and one call replays its hundreds of kernels.

Several trainings may record and replay in threads of one process, each on its own stream. Only one
records at a time; the others can replay meanwhile.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from regrow.core.global_rng import TURN
from regrow.train.engine import CannotRecord

# Runs before a recording, as PyTorch requires: libraries choose kernels and allocate memory then.
WARM_UPS = 3
# After this many replays the host waits for those before them, so it is at most twice as far ahead.
# The device never idles, and progress, checkpoints and Ctrl-C are at most a fraction of a second
# late.
REPLAYS_AHEAD = 32


class CudaGraphs:
    """The graphs of one training on one device.

    They share a memory pool, because they never run at the same time, and a generator that is this
    training's alone, so that its dropout does not draw from the numbers of another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._generator = torch.Generator(device)
        self._replays = 0
        self._mark: torch.cuda.Event | None = None

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        """Warm the body up and record it; the warm-up changes what the body changes."""
        try:
            with TURN, self._own_generator(), _no_collection():
                graph = self._capture(body, prepare)
        except RuntimeError as error:  # includes running out of memory
            raise CannotRecord(f"{type(error).__name__}: {error}") from error

        def replay() -> None:
            self._pace()
            graph.replay()

        return replay

    @contextmanager
    def seed(self, seed: int) -> Iterator[None]:
        """Seed what is replayed next; a graph reads the seed when it is replayed."""
        self._generator.manual_seed(seed)
        yield

    def _capture(
        self, body: Callable[[], None], prepare: Callable[[], object]
    ) -> torch.cuda.CUDAGraph:
        current, stream = torch.cuda.current_stream(self._device), _stream(self._device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    prepare()
                    body()
            graph = torch.cuda.CUDAGraph()
            # Thread-local: other trainings may use their streams meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                body()
        finally:
            # A recording that fails may leave its stream current; and the effects of the warm-up
            # must not be undone before it has finished.
            torch.cuda.set_stream(current)
            current.wait_stream(stream)
        return graph

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Use this training's generator as the device's default; only while holding ``TURN``."""
        default = torch.cuda.default_generators[self._device.index]
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self._generator.graphsafe_get_state())
        try:
            yield
        finally:
            default.graphsafe_set_state(before)

    def _pace(self) -> None:
        """Keep the host from running ahead without bound."""
        self._replays += 1
        if self._replays % REPLAYS_AHEAD == 0:
            if self._mark is not None:
                self._mark.synchronize()
            self._mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._mark.record(torch.cuda.current_stream(self._device))


_SIDE: dict[int, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream to record on: the current one, or a side stream if that is the default.

    Not a new one for each recording: torch has only 32 and hands them out in turn, and two
    trainings that record on one stream would share a cuBLAS workspace when they replay.
    """
    current = torch.cuda.current_stream(device)
    if current != torch.cuda.default_stream(device):
        return current
    if device.index not in _SIDE:
        _SIDE[device.index] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _SIDE[device.index]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from freeing other trainings' device memory in the middle of a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
