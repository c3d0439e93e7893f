"""What runs in the process that interprets kernels."""

from __future__ import annotations

import io
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def ready() -> None:
    """Starts the process, while the environment asks for the interpreter."""
    from fathom.model.kernels.launch import INTERPRETED

    assert INTERPRETED
    torch.set_num_threads(1)


def call(module: str, function: str, packed: bytes, back: int | None = None, source: Path | None = None) -> bytes:
    """The result of a kernel's function, or its argument number `back` as it is afterwards.

    `source` is a file to take the module from instead: a mutant. Tensors travel as bytes.
    """
    if source is None:
        found = import_module("child" if module == "child" else f"fathom.model.kernels.{module}")
    else:
        spec = spec_from_file_location(source.stem, source)
        assert spec is not None and spec.loader is not None
        found = module_from_spec(spec)
        spec.loader.exec_module(found)
    args = unpack(packed)
    result = getattr(found, function)(*args)
    return pack(result if back is None else args[back])


def chosen(config: dict[str, Any], weight: Tensor, bias: Tensor, x: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """`gate.choose_experts` for a router of these numbers."""
    from fathom.model.config import ModelConfig
    from fathom.model.kernels.gate import choose_experts
    from fathom.model.moe import Gate

    module = Gate(ModelConfig(**config)).requires_grad_(False).to(weight.dtype)
    module.weight.copy_(weight)
    if module.e_score_correction_bias is not None:
        module.e_score_correction_bias.copy_(bias)
    return choose_experts(x, module, shared)


def completed(config: dict[str, Any], prompts: list[list[int]], settings: dict[str, Any]) -> list[Any]:
    """What the engine makes of prompts, greedily: [tokens, log-probabilities] of each, under two sets of weights, and
    whether kernels stood for the model's modules."""
    from fathom.core.chat import Sampling
    from fathom.engine.engine import Engine
    from fathom.engine.settings import EngineSettings
    from fathom.model.config import ModelConfig
    from fathom.model.transformer import Transformer

    model = Transformer(ModelConfig(**config)).initialise(1).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)  # attention is far from even
    engine = Engine(model, Silent(), EngineSettings(**settings))  # type: ignore[arg-type]
    done = engine.complete(prompts, Sampling(max_tokens=5, temperature=0))
    model.embed_tokens.weight.mul_(1.5)
    done += engine.complete(prompts, Sampling(max_tokens=3, temperature=0))
    found = [[list(one.tokens), list(one.logprobs)] for each in done for one in each]
    return [found, engine.plan.gpu is not None and engine.plan.gpu.joined]


class Silent:
    """A tokenizer that says nothing and never stops."""

    stop_ids: frozenset[int] = frozenset()
    control_ids: frozenset[int] = frozenset()

    def decode(self, tokens: Any) -> str:
        return ""


def pack(value: Any) -> bytes:
    """Tensors, numbers and tuples as bytes."""
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def unpack(packed: bytes) -> Any:
    """What was packed."""
    return torch.load(io.BytesIO(packed), weights_only=True)
