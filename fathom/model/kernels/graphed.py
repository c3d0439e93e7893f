"""Graphed: a step recorded once per batch size as a CUDA graph, and replayed: no Python, no launch by launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Recording = tuple[Callable[[], None], Tensor]  # runs the step again on what its inputs now hold; where its result is
Record = Callable[[Callable[[], Tensor]], Recording]
WARM = 2  # runs before recording: libraries choose their algorithms and take their memory


class Graphed:
    """`graphed(*inputs)` gives what `step(*inputs)` gives, the batch filled up to the next of `sizes`.

    Every input's first dimension is the batch; `fill` names, for each input, what stands in the rows that are filled
    up: they are computed too, so their cache cells must be nobody's, their lengths 1, their experts in range. Recorded
    once for each size and each width of the inputs; larger batches run as they are. The result lies where the next call
    will overwrite it. A step must not ask the device anything, and its tensors must stay where they were recorded:
    after moving a weight, `forget()`.

    Where recording fails the step runs as it is from then on, and a warning says so.
    """

    def __init__(
        self, step: Callable[..., Tensor], sizes: Sequence[int], fill: Sequence[float], record: Record | None = None
    ):
        self.step, self.sizes, self.fill = step, sorted(sizes), tuple(fill)
        self._record = record or record_cuda
        self._recorded: dict[tuple[object, ...], tuple[list[Tensor], Recording]] = {}
        self.failed: str | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        size = next((size for size in self.sizes if size >= rows), None)
        if size is None or self.failed is not None:
            return self.step(*inputs)
        key = (size, *((t.shape[1:], t.dtype) for t in inputs))
        if key in self._recorded:
            buffers, (replay, out) = self._recorded[key]
            self._put(buffers, inputs)
            replay()
            return out[:rows]
        buffers = [t.new_empty(size, *t.shape[1:]) for t in inputs]
        self._put(buffers, inputs)
        try:
            recording = self._record(lambda: self.step(*buffers))
        except RuntimeError as error:
            self.failed = str(error)
            logging.getLogger(__name__).warning(
                "batch %d: the step was not recorded as a CUDA graph and runs as it is, slower: %s", size, error)
            return self.step(*inputs)
        self._recorded[key] = buffers, recording
        recording[0]()
        return recording[1][:rows]

    def forget(self) -> None:
        """Drops what was recorded, and with it the memory; the next calls record anew."""
        self._recorded.clear()
        self.failed = None

    def _put(self, buffers: list[Tensor], inputs: Sequence[Tensor]) -> None:
        for buffer, given, fill in zip(buffers, inputs, self.fill, strict=True):
            buffer[: len(given)].copy_(given)
            buffer[len(given):].fill_(fill)  # every time: a longer batch may have stood there


def record_cuda(run: Callable[[], Tensor]) -> Recording:
    """Runs the step on a stream of its own until it is warm, then records it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out
