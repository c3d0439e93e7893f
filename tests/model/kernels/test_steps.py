"""The kernels as the engine uses them: whole completions under the interpreter beside the model's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import child
import pytest
import torch

from fathom.engine.gpu import SIZES, GpuStep
from fathom.model.config import Lora, ModelConfig
from fathom.model.layout import Layout, Pages
from fathom.model.lora import attach
from fathom.model.transformer import Transformer

Call = Callable[..., Any]
SMALL = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 128}
LATENT = {**SMALL, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16, "v_head_dim": 20}
ROUTED = {**LATENT, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS: dict[str, dict[str, Any]] = {
    "V2-Lite": {**ROUTED, "n_shared_experts": 2, "scoring_func": "softmax", "topk_method": "greedy",
                "norm_topk_prob": False, "first_k_dense_replace": 1},
    "V3": {**ROUTED, "n_shared_experts": 1, "q_lora_rank": 24, "n_group": 2, "topk_group": 1,
           "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True,
           "num_nextn_predict_layers": 1},
    "without shared experts": {**ROUTED, "n_shared_experts": 0, "rope_interleave": False},
    "dense": LATENT,
    "grouped": {**SMALL, "attention": "gqa", "num_key_value_heads": 2, "head_dim": 16, "qk_norm": True},
}
PROMPTS = [[7, 8, 9], list(range(10, 43)), list(range(50, 90))]  # one in two pieces, one of whole blocks and one more


@pytest.mark.parametrize("name", MODELS)
def test_completions_are_those_without_kernels(interpreted: Call, name: str) -> None:
    settings = {"prefill_tokens": 36, "speculate": name == "V3"}
    found, joined = interpreted("child", "completed", MODELS[name], PROMPTS, settings)
    expected, plain = child.completed(MODELS[name], PROMPTS, settings)
    assert joined == (name != "grouped")
    assert not plain
    assert len({tuple(tokens) for tokens, _ in expected}) > 3
    for (tokens, logprobs), (known, known_logprobs) in zip(found, expected, strict=True):
        assert tokens == known
        assert logprobs == pytest.approx(known_logprobs, abs=2e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "grouped"])
def test_joined_steps_are_the_model(name: str) -> None:
    """The list of operations by itself, in FP64, through the kernels' twins."""
    model = Transformer(ModelConfig(**MODELS[name])).double().initialise(2).requires_grad_(False)
    pages = Pages(model.config, 9, 16, torch.float64, "cpu")
    tables, lengths = [[1, 2, 3], [4, 5], [6]], [33, 17, 9]
    tokens = torch.randint(300, (sum(lengths),), generator=torch.Generator().manual_seed(3))
    model(tokens, Layout.fresh(pages, tables, lengths))
    before = pages.layers[1][0].clone()
    layout = Layout.rows(pages, tables, lengths)
    expected = model(tokens[:3], layout)
    written = pages.layers[1][0].clone()
    assert not torch.equal(before, written)
    pages.layers[1][0].copy_(before)
    step = GpuStep(model)
    step._settle(layout)
    found = step._joined(tokens[:3], layout)
    assert float((found - expected).abs().max()) < 1e-12
    assert float((pages.layers[1][0] - written).abs().max()) < 1e-12


def test_weights_are_seen_anew() -> None:
    model = Transformer(ModelConfig(**MODELS["dense"])).initialise(2).requires_grad_(False)
    pages = Pages(model.config, 4, 16, torch.float32, "cpu")
    layout, token = Layout.rows(pages, [[1]], [1]), torch.tensor([5])
    step = GpuStep(model)
    first = step.step(token, layout)[1]
    model.layers[1].self_attn.kv_a_proj_with_mqa.weight.neg_()  # is copied, beside the queries' weights
    assert torch.equal(step.step(token, layout)[1], first)
    step.refresh()
    found = step.step(token, layout)[1]
    assert not torch.allclose(found, first, atol=1e-4)
    assert torch.allclose(found, model.logits(model(token, layout)), atol=1e-5)


def test_adapted_models_run_as_they_are() -> None:
    model = Transformer(ModelConfig(**MODELS["V2-Lite"])).initialise(2)
    attach(model, Lora(rank=2), 1)
    step = GpuStep(model)
    assert not step.plain and not step.joined


def test_few_sizes() -> None:
    step = GpuStep(Transformer(ModelConfig(**LATENT)))
    assert [step.width(n) for n in (1, 4, 5, 16, 17, 256)] == [4, 4, 16, 16, 64, 256]
    step.on_gpu = True
    assert [step.rows(n) for n in (1, 3, 9, 256, 257)] == [1, 4, 12, 256, 257]
    assert SIZES[-1] == 256
