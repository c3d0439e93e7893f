"""Graphed: a step recorded once per shape of its inputs as a CUDA graph, and replayed: one launch, and no Python."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Outcome = tuple[Tensor, ...]
Recording = tuple[Callable[[], None], Outcome]  # runs the step again on what its inputs now hold; where results are
Record = Callable[[Callable[[], Outcome]], Recording]
WARM = 2  # runs before recording: libraries choose their algorithms and take their memory


class Graphed:
    """`graphed(*inputs)` gives what `step(*inputs)` gives.

    Recorded once for every combination of the inputs' shapes: those who call it fill batches up to few sizes. Results
    lie where the next call, of any shape, will overwrite them. A step must not ask the device anything, and the tensors
    that it reads besides its inputs must stay where they were recorded: after moving one, `forget()`.

    Where recording fails the step runs as it is from then on, and a warning says so.
    """

    def __init__(self, step: Callable[..., Outcome], record: Record | None = None):
        self.step = step
        self._given, self._record = record, record or _CudaRecorder()
        self._recorded: dict[tuple[Any, ...], tuple[list[Tensor], Recording]] = {}
        self.failed: str | None = None

    def __call__(self, *inputs: Tensor) -> Outcome:
        if self.failed is not None:
            return self.step(*inputs)
        key = tuple((t.shape, t.dtype) for t in inputs)
        if key not in self._recorded:
            buffers = [t.clone() for t in inputs]
            try:
                self._recorded[key] = buffers, self._record(lambda: self.step(*buffers))
            except RuntimeError as error:
                self.failed = str(error)
                logging.getLogger(__name__).warning(
                    "batch %d: the step was not recorded as a CUDA graph and runs as it is, slower: %s",
                    len(inputs[0]), error)
                return self.step(*inputs)
        buffers, (replay, out) = self._recorded[key]
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given)
        replay()
        return out

    def forget(self) -> None:
        """Drops what was recorded, and with it the memory; the next calls record anew."""
        self._recorded.clear()
        self._record = self._given or _CudaRecorder()  # memory that no graph is left in is gone, and its name with it
        self.failed = None


class _CudaRecorder:
    """Records graphs that share their memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Outcome]) -> Recording:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return record_cuda(run, self._pool)


def record_cuda(run: Callable[[], Any], pool: Any = None) -> tuple[Callable[[], None], Any]:
    """Runs the step on a stream of its own until it is warm, then records it: what replays it, and its result."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run()
    return graph.replay, out
