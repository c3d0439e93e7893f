"""LoRA: low-rank adapters beside frozen weights, in linear layers and in fused experts (Hu et al. 2021 §4.1).

y = x Wᵀ + s (x Aᵀ) Bᵀ with s = α/r: W stays as it was, A and B learn. B begins at zero, so the adapted model begins as
the base to the bit.
"""

# T tokens, E experts, I in, O out, R rank

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.core.errors import UsageError
from fathom.model.config import LORA_TARGETS, Lora
from fathom.model.device import full_precision
from fathom.model.moe import Experts, grouped_matmul


class LoraLinear(nn.Linear):
    """`base` with an adapter: lora_A [R, I], lora_B [O, R]. It holds the base's own weight, frozen."""

    def __init__(self, base: nn.Linear, settings: Lora, generator: torch.Generator):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.base = (base,)  # in a tuple, so that it is no submodule: it comes back when adapters are merged
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.on = settings.scale, True
        self.lora_A, self.lora_B = _pair(base.weight, settings.rank, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x Wᵀ + s (x Aᵀ) Bᵀ."""
        y = F.linear(x, self.weight, self.bias)
        return y + F.linear(F.linear(x, self.lora_A) * self.scale, self.lora_B) if self.on else y

    def effective(self) -> Tensor:
        """W + s B A, [O, I]."""
        return _sum(self.weight, self.lora_A, self.lora_B, self.scale) if self.on else self.weight

    def merge(self) -> nn.Linear:
        """The base, its weight now the effective one."""
        (base,) = self.base
        with torch.no_grad():
            self.weight.copy_(self.effective())
        base.weight = self.weight
        return base


class LoraExperts(Experts):
    """`base` with an adapter for each expert and tensor, e.g. gate_up_proj_lora_A [E, R, I], …_lora_B [E, O, R].

    The adapters' products run fused where the experts' do: the rank a multiple of 8 in BF16, of 4 in FP32; with
    another rank they go through a loop over experts, equal and slower.
    """

    def __init__(self, base: Experts, settings: Lora, generator: torch.Generator):
        nn.Module.__init__(self)  # not the base's own, which would make weights: the base's are held
        self.base = (base,)
        self.gate_up_proj, self.down_proj = base.gate_up_proj, base.down_proj
        self.scale, self.on = settings.scale, True
        for name in ("gate_up_proj", "down_proj"):
            a_ERI, b_EOR = _pair(base.get_parameter(name), settings.rank, generator)
            self.register_parameter(f"{name}_lora_A", a_ERI)
            self.register_parameter(f"{name}_lora_B", b_EOR)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A [E, R, I] and B [E, O, R] of the tensor `name`."""
        return getattr(self, f"{name}_lora_A"), getattr(self, f"{name}_lora_B")

    def times(self, name: str, x: Tensor, counts_E: Tensor) -> Tensor:
        """Rows of `x`, sorted by expert, through each expert's adapted matrix."""
        y = super().times(name, x, counts_E)
        if not self.on:
            return y
        a_ERI, b_EOR = self.pair(name)
        return y + grouped_matmul(grouped_matmul(x, a_ERI.mT, counts_E) * self.scale, b_EOR.mT, counts_E)

    def effective(self, name: str) -> Tensor:
        """W + s B A of every expert, [E, O, I]."""
        weight = super().effective(name)
        return _sum(weight, *self.pair(name), self.scale) if self.on else weight

    def merge(self) -> Experts:
        """The base, its weights now the effective ones."""
        (base,) = self.base
        with torch.no_grad():
            for name in ("gate_up_proj", "down_proj"):
                self.get_parameter(name).copy_(self.effective(name))
        base.gate_up_proj, base.down_proj = self.gate_up_proj, self.down_proj
        return base


def effective_weight(linear: nn.Linear) -> Tensor:
    """The matrix [O, I] that `linear` multiplies by, an adapter added: for those who read weights and call no forward.

    For fused experts it is `Experts.effective(name)`.
    """
    return linear.effective() if isinstance(linear, LoraLinear) else linear.weight


def attach(model: nn.Module, settings: Lora, seed: int, mtp: bool = True) -> int:
    """Freezes `model` and puts an adapter beside each target, without `mtp` none in multi-token prediction; returns how
    many parameters train.

    A is drawn from `seed`, uniform within ±1/√I as PEFT draws it. UsageError for a target that the model lacks.
    """
    found = {
        name: module for name, module in model.named_modules()
        if name.rpartition(".")[2] in LORA_TARGETS and isinstance(module, (nn.Linear, Experts))
        and (mtp or not name.startswith("mtp."))
    }
    has = {name.rpartition(".")[2] for name in found}
    if absent := [target for target in settings.targets or () if target not in has]:
        raise UsageError(f"lora.targets: {absent[0]}: this model has none; it has "
                         f"{', '.join(target for target in LORA_TARGETS if target in has)}: choose of these")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, module in found.items():
        parent, _, leaf = name.rpartition(".")
        if settings.targets is not None and leaf not in settings.targets:
            continue
        beside = LoraExperts(module, settings, generator) if isinstance(module, Experts) else LoraLinear(
            module, settings, generator)
        setattr(model.get_submodule(parent), leaf, beside)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted(model: nn.Module) -> dict[str, LoraLinear | LoraExperts]:
    """The modules that carry adapters, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (LoraLinear, LoraExperts))}


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes what its base does; one without adapters is left as it is."""
    modules = adapted(model).values()
    for module in modules:
        module.on = False
    try:
        yield
    finally:
        for module in modules:
            module.on = True


def merge(model: nn.Module) -> None:
    """Adds the adapters to the weights and removes them, in place: an ordinary model of the same function."""
    for name, module in adapted(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.merge())


def _pair(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """A [..., R, I], drawn, and B [..., O, R], zero, of the weight's type and device."""
    *experts, rows, columns = weight.shape
    drawn = torch.empty(*experts, rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
    return nn.Parameter(drawn.to(weight)), nn.Parameter(weight.new_zeros(*experts, rows, rank))


def _sum(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A, added in FP32 (FP64 for float64) and rounded once."""
    exact = full_precision(weight.dtype)
    return (weight.to(exact) + scale * (b.to(exact) @ a.to(exact))).to(weight.dtype)
