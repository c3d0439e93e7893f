"""Team: the processes that train one model together, each on its share of every step; alone, it costs nothing.

A step's batches carry the coefficients of the whole step (`train.batch`), so gradients of shares add to those of one
process. What must not differ between processes is decided by the first one, who `leads`, and told to the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fathom.core import process
from fathom.core.errors import UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the first one judges; who watches over them is torchrun


class Team:
    """`size` processes of which this is number `rank`."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, device: str = "cpu") -> Team:
        """The team in whose row torchrun started this process, or a team of one; on GPUs each takes one of its own.
        Whoever has joined is in the same team the next time.

        UsageError where there are fewer GPUs than processes on this machine.
        """
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if process.members() == 1:
            return cls()
        backend = "gloo"
        if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise UsageError(f"nproc: process {local} finds {torch.cuda.device_count()} GPUs here; start no more "
                                 "processes than there are GPUs, or set device=cpu")
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes, judges and decides."""
        return self.rank == 0

    def tell(self, find: Callable[[], T]) -> T:
        """What `find` gives in the first process, in all of them; it is called there alone."""
        if self.size == 1:
            return find()
        box: list[Any] = [find() if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def gather(self, mine: Sequence[T]) -> list[T]:
        """What the processes hold, one behind the other, in all of them."""
        if self.size == 1:
            return list(mine)
        boxes: list[Sequence[T]] = [()] * self.size
        dist.all_gather_object(boxes, mine)
        return [value for box in boxes for value in box]

    def share(self, costs: Sequence[int]) -> slice:
        """This process's part of items with these costs: contiguous, and about as costly as the others'."""
        before, parts = 0, []
        for cost in costs:  # an item belongs to the process in whose stretch its middle lies
            parts.append(min(int((before + cost / 2) * self.size / (sum(costs) or 1)), self.size - 1))
            before += cost
        return slice(sum(part < self.rank for part in parts), sum(part <= self.rank for part in parts))

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process runs the block before the others do: it may tidy up what they read."""
        if self.size > 1 and not self.leads:
            dist.barrier()
        yield
        if self.size > 1 and self.leads:
            dist.barrier()

    def add_gradients(self, named: Mapping[str, Tensor]) -> None:
        """Sums the gradients of all processes in all of them. A parameter without one anywhere stays without: the
        optimiser leaves it as it is."""
        if self.size == 1:
            return
        parameters = list(named.values())
        if not parameters:
            return
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter, some in zip(parameters, has.tolist(), strict=True):
            if some:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.dtype, []).append(parameter.grad)
        for dtype, gradients in by_type.items():
            # FP32 on the way: two BF16 shares are rounded once, where they are added
            flat = torch.cat([g.flatten() for g in gradients]).to(torch.promote_types(dtype, torch.float32))
            dist.all_reduce(flat)
            at = 0
            for gradient in gradients:
                gradient.copy_(flat[at: at + gradient.numel()].view_as(gradient))
                at += gradient.numel()

    def add(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of all processes combined by name, on the CPU: those whose names end in _max by the largest, the
        others by their sum."""
        if self.size == 1:
            return dict(named)
        boxes: list[dict[str, Tensor]] = [{}] * self.size
        dist.all_gather_object(boxes, {name: value.cpu() for name, value in named.items()})
        found: dict[str, Tensor] = {}
        for box in boxes:
            for name, value in box.items():
                found[name] = combined(name, found.get(name), value)
        return found

    def leave(self) -> None:
        """Takes leave of the others, when all are at their end: one that is gone early looks to them like one that was
        killed."""
        if self.size > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def combined(name: str, known: Tensor | None, more: Tensor) -> Tensor:
    """A step's term after a further part of the step."""
    if known is None:
        return more
    return torch.maximum(known, more) if name.endswith("_max") else known + more
