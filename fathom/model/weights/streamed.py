"""A forward pass over weights that are read when they are needed: at most the embedding and one block in memory.

`streamed` makes an ordinary Transformer without storage; each part gets its own before it runs and loses it after. So
the pass is the Transformer's own, and what it says can be compared to the bit with a model that lies in memory.
"""

# T tokens, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer
from fathom.model.weights import names

LENGTHS = (1, 7, 33)  # of the rows that a written model is tried with
Fill = Callable[[Mapping[str, Tensor]], None]  # puts tensors, by Hugging Face's names, into the memory given


def empty(config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu") -> Transformer:
    """A model whose storage holds nothing yet: no work is done for weights that are going to be read."""
    model = blank(config).to(dtype).to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def blank(config: ModelConfig) -> Transformer:
    """A model of names, shapes and types alone."""
    with torch.device("meta"):
        return Transformer(config)


def streamed(config: ModelConfig, fill: Fill, dtype: torch.dtype, device: torch.device | str = "cpu") -> Transformer:
    """A Transformer for inference that calls `fill` for each of its parts when that part is about to run."""
    model = blank(config).to(dtype).requires_grad_(False)

    def before(prefix: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            module.to_empty(device=device)
            wanted: dict[str, Tensor] = {}
            for inside, tensor in module.state_dict().items():
                if f"{prefix}.{inside}" == names.HEAD and config.tie_word_embeddings:
                    wanted[names.EMBEDDING] = tensor
                else:
                    wanted.update(names.spread(config, f"{prefix}.{inside}", tensor))
            fill(wanted)
        return hook

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        module.to(device="meta")

    parts = [name for name, module in model.named_modules() if _apart(name)]
    for name in parts:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(before(name))
        module.register_forward_hook(after)
    return model


def _apart(name: str) -> bool:
    """Whether the part of this name is read on its own: embedding, norm, head, a block, a piece of a further module."""
    path = name.split(".")
    return name in ("embed_tokens", "norm", "lm_head") or (path[0] == "layers" and len(path) == 2) or (
        path[0] == "mtp" and len(path) == 3)


def probe(model: Transformer, device: torch.device | str = "cpu") -> Tensor:
    """Logits of a few fixed rows of several lengths, [T, V], and below them those of multi-token prediction.

    `device` is where the model computes, which a streamed one does not show.
    """
    config = model.config
    lengths = [min(length, config.max_position_embeddings) for length in LENGTHS]
    layout = Layout.packed(lengths, device)
    tokens_T = (torch.arange(sum(lengths), device=device) * 7919 + 1) % config.vocab_size
    with torch.no_grad():
        hidden_TD = model(tokens_T, layout)
        said = [model.logits(hidden_TD)]
        if config.num_nextn_predict_layers:
            said.append(model.logits(model.predict_next(hidden_TD, tokens_T.roll(-1), layout)))
    return torch.cat(said)
