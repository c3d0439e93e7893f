"""Our models against transformers' on the same random weights, through the model directory and back.

Weights are scaled so that logits have a standard deviation of 1 and more and attention is far from even: at the scale
of initialisation a wrong softmax scale would pass. Each mutant must miss the bar by a factor of 10, or the bar proves
nothing. What transformers does not have (the layer of multi-token prediction, V2's losses and dropping) is held
against float64 loops in tests/model and tests/train.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model import attention, weights
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.layout import Layout
from fathom.model.rope import Rotary, rotate
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="the second opinion: pip install 'fathom-reasoning[dev]'")

BAR = 1e-4  # FP32, logits of standard deviation ≥ 1, two libraries that add in different orders
POSITIONS = (0, 1, 63, 1023, 4095, 8191)
SHORT = 1024  # tokens for mutants, which show long before the end

BASE = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 8192}
YARN = RopeScaling(factor=4, original_max_position_embeddings=2048)
V3 = ModelConfig(
    **BASE, q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, moe_intermediate_size=32, first_k_dense_replace=1,
    routed_scaling_factor=2.5, n_group=4, topk_group=2,
    rope_scaling=YARN.model_copy(update={"mscale": 1.0, "mscale_all_dim": 1.0}),
)
V2 = V3.model_copy(update={
    "scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False, "n_shared_experts": 2,
    "routed_scaling_factor": 4.0, "rope_scaling": YARN.model_copy(update={"mscale": 0.707, "mscale_all_dim": 0.707}),
})
V2_LITE = V2.model_copy(update={"topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None,
                                "routed_scaling_factor": 1.0})
LLAMA = ModelConfig(**BASE, attention="gqa", num_key_value_heads=1, head_dim=32, rope_interleave=False,
                    rms_norm_eps=1e-5)
QWEN2 = LLAMA.model_copy(update={"qkv_bias": True, "rope_theta": 1e6, "rope_scaling": YARN})
QWEN3 = LLAMA.model_copy(update={"qk_norm": True, "rope_theta": 1e6, "rope_scaling": YARN})
LLAMA3 = LLAMA.model_copy(update={"rope_theta": 5e5, "rope_scaling": RopeScaling(
    type="llama3", factor=8, original_max_position_embeddings=1024)})


def plain(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"rope_scaling": None})


def tied(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"tie_word_embeddings": True})


FAMILIES = {
    "deepseek_v3, YaRN": V3, "deepseek_v3": plain(V3),
    "deepseek_v3, one group, no q latent": plain(V3).model_copy(
        update={"n_group": 1, "topk_group": 1, "q_lora_rank": None}),
    "deepseek_v2, group-limited, YaRN": V2, "deepseek_v2, group-limited": plain(V2),
    "deepseek_v2, greedy, YaRN": V2_LITE, "deepseek_v2, greedy": plain(V2_LITE),
    "llama": LLAMA, "llama, tied": tied(LLAMA), "llama, YaRN": LLAMA.model_copy(update={"rope_scaling": YARN}),
    "llama, Llama 3 scaling": LLAMA3, "qwen2, YaRN": QWEN2, "qwen2, tied": tied(plain(QWEN2)),
    "qwen3, YaRN": QWEN3, "qwen3, tied": tied(plain(QWEN3)),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text to learn a few merges from, some more text"], 290)


def scaled(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose attention is peaked and whose selection biases matter, all of them negative."""
    model = Transformer(config).initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                middle = 0 if name.endswith(".bias") else 2 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1
                parameter.copy_(middle + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(1.6 / (0.02 * parameter.shape[-1] ** 0.5))
        for moe in model.routers().values():
            if (bias := moe.gate.e_score_correction_bias) is not None:
                bias.copy_(0.2 * torch.randn(bias.shape, generator=generator) - 1)
    return model.eval()


def ours(model: Transformer, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens, Layout.packed([len(tokens)])))


def tokens_of(config: ModelConfig, count: int = POSITIONS[-1] + 1) -> Tensor:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(5))


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = FAMILIES[name]
    assert name.split(",")[0] == config.family
    model = scaled(config)
    weights.save(tmp_path / "ours", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="sdpa").eval()
    assert theirs.config.model_type == config.family
    tokens = tokens_of(config)
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    got = ours(model, tokens)
    assert expected.std() >= 1
    for position in POSITIONS:
        assert (got[position] - expected[position]).abs().max() <= BAR, position
    # their directory, read by us
    theirs.save_pretrained(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "theirs" / file).write_bytes((tmp_path / "ours" / file).read_bytes())
    back, _ = weights.load(tmp_path / "theirs")
    assert back.config == config
    assert torch.equal(ours(back.eval(), tokens), got)


Mutant = Callable[[Transformer], None]


def _attentions(model: Transformer) -> list[nn.Module]:
    return [block.self_attn for block in model.layers]


def _with_scale(change: Callable[[ModelConfig], float]) -> Mutant:
    def mutate(model: Transformer) -> None:
        for module in _attentions(model):
            module.scale *= change(model.config)

    return mutate


def _with_scaling(**changes: object) -> Mutant:
    """The rotary frequencies or factors of a changed rope_scaling; None for all: none at all."""
    def mutate(model: Transformer) -> None:
        scaling = model.config.rope_scaling.model_copy(update=changes) if changes else None
        model.rotary = Rotary(model.config.model_copy(update={"rope_scaling": scaling}))

    return mutate


def _half_layout(model: Transformer) -> None:
    for module in _attentions(model):
        module.interleave = not module.interleave


def _gate(**changes: object) -> Mutant:
    def mutate(model: Transformer) -> None:
        for moe in model.routers().values():
            for name, value in changes.items():
                setattr(moe.gate, name, value)

    return mutate


def _bias_in_weight(model: Transformer) -> None:
    for moe in model.routers().values():
        gate = moe.gate

        def score(logits: Tensor, gate: nn.Module = gate) -> Tensor:
            return logits.sigmoid() + gate.e_score_correction_bias + 1

        gate.score = score
        gate.e_score_correction_bias.zero_()


def _no_bias(model: Transformer) -> None:
    for moe in model.routers().values():
        moe.gate.e_score_correction_bias.zero_()


def _masked_with_zero(model: Transformer) -> None:
    for moe in model.routers().values():
        gate, inside = moe.gate, moe.gate._in_best_groups

        def zeros(choice: Tensor, inside: Callable[[Tensor], Tensor] = inside) -> Tensor:
            masked = inside(choice)
            return masked.masked_fill(masked.isinf(), 0.0)

        gate._in_best_groups = zeros


def _raw_latent(model: Transformer) -> None:
    for module in _attentions(model):
        module.kv_a_layernorm = nn.Identity()


def _shared_key_normalised(model: Transformer) -> None:
    for module in _attentions(model):
        latent = module.latent

        def norm(_m: nn.Module, _i: object, out: Tensor, latent: int = latent) -> Tensor:
            return torch.cat((out[:, :latent], F.rms_norm(out[:, latent:], out[:, latent:].shape[1:])), dim=-1)

        module.kv_a_proj_with_mqa.register_forward_hook(norm)


def _norm_eps(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, attention.RMSNorm):
            module.eps = 1e-2


def _no_biases(model: Transformer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.bias"):
                parameter.zero_()


def _no_query_norm(model: Transformer) -> None:
    for module in _attentions(model):
        module.q_norm = nn.Identity()


def _norm_after_rotation(model: Transformer) -> None:
    for module in _attentions(model):
        q_norm, k_norm = module.q_norm, module.k_norm
        module.q_norm, module.k_norm = nn.Identity(), nn.Identity()

        def forward(x: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], layer: int, m: nn.Module = module,
                    q_norm: nn.Module = q_norm, k_norm: nn.Module = k_norm) -> Tensor:
            q, k, v = (p(x).view(len(x), -1, m.width) for p in (m.q_proj, m.k_proj, m.v_proj))
            q, k = q_norm(rotate(q, cos_sin, m.interleave)), k_norm(rotate(k, cos_sin, m.interleave))
            return m.o_proj(attention.attend(q, k, v, layout, m.scale).flatten(1))

        module.forward = forward


def _m(config: ModelConfig) -> float:
    return config.rope_scaling.m(config.rope_scaling.mscale_all_dim)


COMMON: dict[str, Mutant] = {
    "scale off by 5 %": _with_scale(lambda c: 1.05), "half layout": _half_layout, "norm's eps": _norm_eps}
LATENT: dict[str, Mutant] = {
    "m² forgotten": _with_scale(lambda c: 1 / _m(c) ** 2), "m in place of m²": _with_scale(lambda c: 1 / _m(c)),
    "scale of the part without position": _with_scale(lambda c: (c.qk_head_dim / c.qk_nope_head_dim) ** 0.5),
    "YaRN's frequencies forgotten": _with_scaling(), "√t on cos and sin": _with_scaling(mscale_all_dim=None),
    "betas exchanged for others": _with_scaling(beta_fast=8.0), "raw latent": _raw_latent,
    "shared key normalised": _shared_key_normalised, "routed scaling forgotten": _gate(scaling=1.0)}
MUTANTS: dict[str, tuple[ModelConfig, dict[str, Mutant]]] = {
    "deepseek_v3": (V3, {**COMMON, **LATENT, "bias in the weight": _bias_in_weight, "no bias": _no_bias,
                         "mask of 0": _masked_with_zero, "groups judged by their best": _gate(judged_by=1),
                         "no groups": _gate(kept_groups=4), "not renormalised": _gate(normalised=False),
                         "softmax": _gate(score=lambda z: z.softmax(-1))}),
    "deepseek_v2": (V2, {**COMMON, **LATENT, "groups judged by their best two": _gate(judged_by=2),
                         "no groups": _gate(kept_groups=4), "renormalised": _gate(normalised=True),
                         "sigmoid": _gate(score=torch.sigmoid)}),
    "deepseek_v2, greedy": (V2_LITE, {**COMMON, "renormalised": _gate(normalised=True),
                                      "V3's scale of 1.0": _with_scale(
                                          lambda c: (c.rope_scaling.m(1.0) / c.rope_scaling.m(0.707)) ** 2)}),
    "llama": (LLAMA, COMMON),
    "llama 3": (LLAMA3, {**COMMON, "not scaled": _with_scaling(), "all divided": _with_scaling(
        low_freq_factor=1e6, high_freq_factor=2e6), "sharp division": _with_scaling(high_freq_factor=1.0001)}),
    "qwen2": (QWEN2, {**COMMON, "no biases": _no_biases, "no factor on cos and sin": _with_scaling(
        attention_factor=1.0), "not scaled": _with_scaling()}),
    "qwen3": (QWEN3, {**COMMON, "no norm of queries": _no_query_norm, "norm after rotation": _norm_after_rotation,
                      "not scaled": _with_scaling()}),
}


@pytest.mark.parity
@pytest.mark.parametrize(("family", "name"), [(f, n) for f, (_, each) in MUTANTS.items() for n in each])
def test_mutants_miss(family: str, name: str) -> None:
    config, mutants = MUTANTS[family]
    model = scaled(config)
    tokens = tokens_of(config, SHORT)
    right = ours(model, tokens)
    mutants[name](model)
    wrong = ours(model, tokens)
    assert (wrong - right).abs().max() >= 10 * BAR
