"""AdamW on FP32 masters, and the move of the experts' selection biases."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fathom.core.errors import FathomError
from fathom.model.device import full_precision
from fathom.model.transformer import Transformer
from fathom.train.schedule import AdamW


class Optimiser:
    """AdamW over a model's parameters. Parameters that are not FP32 or FP64 get an FP32 master, which the moments and
    the updates live on; the parameter is its rounding (DeepSeek-V3 §3.3)."""

    def __init__(self, model: nn.Module, settings: AdamW):
        self.settings = settings
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {
            name: p if p.dtype in (torch.float32, torch.float64) else p.detach().float().requires_grad_()
            for name, p in self.named.items()
        }
        matrices = [m for m in self.masters.values() if m.dim() > 1]
        vectors = [m for m in self.masters.values() if m.dim() <= 1]
        self.adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True,
        )

    def gradient_norm(self) -> float:
        """Euclidean norm of the whole gradient."""
        norms = [p.grad.to(full_precision(p.dtype)).norm() for p in self.named.values() if p.grad is not None]
        return float(torch.stack(norms).norm()) if norms else 0.0

    def step(self, lr: float, norm: float) -> None:
        """One update with the gradient clipped to the settings' norm; gradients are cleared."""
        scale = min(1.0, self.settings.clip / (norm + 1e-6))
        for name, parameter in self.named.items():
            master = self.masters[name]
            if parameter.grad is None:
                continue
            if master is not parameter:
                master.grad = parameter.grad.float()
                parameter.grad = None
            if scale < 1.0 and master.grad is not None:
                master.grad.mul_(scale)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        with torch.no_grad():
            for name, parameter in self.named.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        self.adam.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments, step counts and masters, by parameter name."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            for kind, value in self.adam.state.get(master, {}).items():
                tensors[f"{kind}/{name}"] = value
            if master is not self.named[name]:
                tensors[f"master/{name}"] = master.detach()
        return tensors

    def check_fit(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Raises FathomError, naming the tensor, where what `state` gave was of another model or number type."""
        remedy = "it belongs to another model or dtype: put the settings back, or start over with --fresh"
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind not in ("step", "exp_avg", "exp_avg_sq", "master") or name not in self.masters:
                raise FathomError(f"{folder}: {key}: not part of the optimiser; {remedy}")
            if kind != "step" and value.shape != self.masters[name].shape:
                raise FathomError(f"{folder}: {key}: shape {list(value.shape)}, the model has "
                                  f"{list(self.masters[name].shape)}; {remedy}")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        self.adam.state.clear()
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            master = self.masters[name]
            if kind == "master":
                with torch.no_grad():
                    master.copy_(value)
            else:
                # step counts too lie beside their parameter: the fused update reads them there
                self.adam.state[master][kind] = value.to(master.device).clone()


@torch.no_grad()
def balance_experts(model: Transformer, counts: dict[int, Tensor], speed: float) -> None:
    """Moves each layer's selection biases by ±`speed`: up where an expert got fewer tokens than the mean, down where
    more, where the gate has one. `counts[layer]` is [E] integers over the whole step (DeepSeek-V3 §2.1.2)."""
    for layer, moe in model.routers().items():
        bias = moe.gate.e_score_correction_bias
        if bias is not None and (count := counts.get(layer)) is not None:
            load = count.to(bias.device, torch.float64)
            bias += speed * (load.mean() - load).sign().float()
