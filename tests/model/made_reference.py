"""The papers' equations written out: one sequence, one token, one head, one expert at a time, in Python and float64.

DeepSeek-V2 §2.1 (latent attention, gates, three balance losses) and §3.1.4 (YaRN), DeepSeek-V3 §2.1.2 (gate, experts,
balance) and §2.2 (the token after next); Llama 3's division of frequencies; Qwen2's biases and Qwen3's norms.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import numpy as np
import torch

from fathom.model.config import ModelConfig
from fathom.model.transformer import Transformer

Vector = np.ndarray


class Reference:
    """A model's numbers and, in plain loops, what they must compute."""

    def __init__(self, model: Transformer):
        self.config: ModelConfig = model.config
        self.numbers = {name: t.detach().double().numpy() for name, t in model.state_dict().items()}
        self.attention: list[list[float]] = []  # every softmax row computed, to see that it is far from uniform
        self.affinities: dict[str, list[Vector]] = {}  # by layer, one row per token, since the last `hidden`
        self.picked: dict[str, list[list[int]]] = {}  # the experts chosen, likewise

    def norm(self, x: Vector, name: str) -> Vector:
        eps = 1e-6 if name.endswith("_a_layernorm") else self.config.rms_norm_eps
        return x / math.sqrt(float(np.mean(x * x)) + eps) * self.numbers[f"{name}.weight"]

    def linear(self, x: Vector, name: str) -> Vector:
        return self.numbers[f"{name}.weight"] @ x + self.numbers.get(f"{name}.bias", 0.0)

    def frequency(self, i: int, width: int) -> float:
        """Radians per position of channel pair i of `width` rotary channels."""
        theta, scaling = self.config.rope_theta, self.config.rope_scaling
        plain = theta ** (-2 * i / width)
        if scaling is None:
            return plain
        length, factor = scaling.original_max_position_embeddings, scaling.factor
        if scaling.type == "llama3":
            wavelength = 2 * math.pi / plain
            if wavelength > length / scaling.low_freq_factor:
                return plain / factor
            if wavelength < length / scaling.high_freq_factor:
                return plain
            smooth = (length / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor)
            return (1 - smooth) * plain / factor + smooth * plain

        def dimension(turns: float) -> float:
            return width * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

        low = max(math.floor(dimension(scaling.beta_fast)), 0)
        high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        return plain * (1 - ramp) + plain / factor * ramp

    def turn(self, x: Vector, position: int) -> Vector:
        """Rotary embedding as multiplication of complex numbers."""
        pairs = len(x) // 2
        out = np.empty_like(x)
        for i in range(pairs):
            a, b = (2 * i, 2 * i + 1) if self.config.rope_interleave else (i, i + pairs)
            z = complex(x[a], x[b]) * cmath.exp(1j * position * self.frequency(i, len(x))) * self.grown()
            out[a], out[b] = z.real, z.imag
        return out

    def grown(self) -> float:
        """YaRN's factor on rotated channels."""
        scaling = self.config.rope_scaling
        if scaling is None or scaling.type != "yarn":
            return 1.0
        if scaling.mscale is not None and scaling.mscale_all_dim is not None:
            return (0.1 * scaling.mscale * math.log(scaling.factor) + 1) / (
                0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1)
        return 0.1 * math.log(scaling.factor) + 1

    def sharpened(self) -> float:
        """YaRN's factor m² on the logits of latent attention."""
        scaling = self.config.rope_scaling
        if scaling is None or self.config.attention != "mla" or scaling.mscale_all_dim is None:
            return 1.0
        return (0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1) ** 2

    def softmax(self, scores: Sequence[float]) -> list[float]:
        top = max(scores)
        weights = [math.exp(s - top) for s in scores]
        row = [w / sum(weights) for w in weights]
        self.attention.append(row)
        return row

    def latent_attention(self, xs: Sequence[Vector], name: str) -> list[Vector]:
        c = self.config
        heads, nope, rope, v_dim = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        queries, keys, values = [], [], []
        for t, x in enumerate(xs):
            if c.q_lora_rank is None:
                q = self.linear(x, f"{name}.q_proj")
            else:
                q = self.linear(self.norm(self.linear(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm"),
                                f"{name}.q_b_proj")
            compressed = self.linear(x, f"{name}.kv_a_proj_with_mqa")
            latent = self.norm(compressed[: c.kv_lora_rank], f"{name}.kv_a_layernorm")
            shared = self.turn(compressed[c.kv_lora_rank:], t)
            grown = self.linear(latent, f"{name}.kv_b_proj")
            q_t, k_t, v_t = [], [], []
            for h in range(heads):
                own = q[h * (nope + rope): (h + 1) * (nope + rope)]
                q_t.append(np.concatenate([own[:nope], self.turn(own[nope:], t)]))
                pair = grown[h * (nope + v_dim): (h + 1) * (nope + v_dim)]
                k_t.append(np.concatenate([pair[:nope], shared]))
                v_t.append(pair[nope:])
            queries.append(q_t)
            keys.append(k_t)
            values.append(v_t)
        return self.mix(queries, keys, values, nope + rope, name)

    def grouped_attention(self, xs: Sequence[Vector], name: str) -> list[Vector]:
        c = self.config
        width = c.head_dim
        queries, keys, values = [], [], []
        for t, x in enumerate(xs):
            q, k, v = (self.linear(x, f"{name}.{part}_proj") for part in "qkv")
            group = [h // (c.num_attention_heads // c.num_key_value_heads) for h in range(c.num_attention_heads)]
            q_t = [q[h * width: (h + 1) * width] for h in range(c.num_attention_heads)]
            k_t = [k[g * width: (g + 1) * width] for g in group]
            if c.qk_norm:
                q_t, k_t = ([self.norm(x, f"{name}.{part}_norm") for x in each]
                            for part, each in (("q", q_t), ("k", k_t)))
            queries.append([self.turn(x, t) for x in q_t])
            keys.append([self.turn(x, t) for x in k_t])
            values.append([v[g * width: (g + 1) * width] for g in group])
        return self.mix(queries, keys, values, width, name)

    def mix(self, queries: list, keys: list, values: list, width: int, name: str) -> list[Vector]:
        out = []
        for t in range(len(queries)):
            heads = []
            for h in range(self.config.num_attention_heads):
                row = self.softmax([float(queries[t][h] @ keys[s][h]) / math.sqrt(width) * self.sharpened()
                                    for s in range(t + 1)])
                heads.append(sum(w * values[s][h] for s, w in enumerate(row)))
            out.append(self.linear(np.concatenate(heads), f"{name}.o_proj"))
        return out

    def swiglu(self, x: Vector, gate: Vector, up: Vector, down: Vector) -> Vector:
        g = gate @ x
        return down @ (g / (1 + np.exp(-g)) * (up @ x))

    def feed_forward(self, x: Vector, name: str, layer: int) -> Vector:
        c, n = self.config, self.numbers
        if not c.is_moe(layer):
            return self.swiglu(x, *(n[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))
        logits = [float(row @ x) for row in n[f"{name}.gate.weight"]]
        if c.scoring_func == "sigmoid":
            s = [1 / (1 + math.exp(-z)) for z in logits]
        else:
            s = [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]
        self.affinities.setdefault(name, []).append(np.array(s))
        bias = n.get(f"{name}.gate.e_score_correction_bias", np.zeros(len(s)))
        chosen = self.choose([a + b for a, b in zip(s, bias, strict=True)])
        self.picked.setdefault(name, []).append(chosen)
        y = self.swiglu(x, *(n[f"{name}.shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")))
        for i in chosen:
            both, down = n[f"{name}.experts.gate_up_proj"][i], n[f"{name}.experts.down_proj"][i]
            weight = s[i] / (sum(s[j] for j in chosen) if c.norm_topk_prob else 1.0) * c.routed_scaling_factor
            y = y + weight * self.swiglu(x, both[: len(both) // 2], both[len(both) // 2:], down)
        return y

    def choose(self, score: list[float]) -> list[int]:
        """The experts of one token: the best of the best groups, V2's judged by their best, V3's by their best two."""
        c = self.config
        size = len(score) // c.n_group
        judged_by = 2 if c.topk_method == "noaux_tc" else 1
        groups = sorted(
            range(c.n_group), reverse=True,
            key=lambda g: sum(sorted(score[g * size: (g + 1) * size], reverse=True)[:judged_by]))[: c.topk_group]
        allowed = [i for i in range(len(score)) if i // size in groups]
        return sorted(allowed, key=lambda i: score[i], reverse=True)[: c.num_experts_per_tok]

    def block(self, xs: list[Vector], name: str, layer: int) -> list[Vector]:
        attention = self.latent_attention if self.config.attention == "mla" else self.grouped_attention
        mixed = attention([self.norm(x, f"{name}.input_layernorm") for x in xs], f"{name}.self_attn")
        xs = [x + y for x, y in zip(xs, mixed, strict=True)]
        return [x + self.feed_forward(self.norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp", layer)
                for x in xs]

    def hidden(self, tokens: Sequence[int]) -> list[Vector]:
        """Final hidden states of one sequence."""
        self.affinities, self.picked = {}, {}
        xs = [self.numbers["embed_tokens.weight"][t] for t in tokens]
        for layer in range(self.config.num_hidden_layers):
            xs = self.block(xs, f"layers.{layer}", layer)
        return [self.norm(x, "norm") for x in xs]

    def further(self, hidden: Sequence[Vector], following: Sequence[int]) -> list[Vector]:
        """Hidden states that predict the token after next, from those of `hidden` and the tokens that follow them."""
        name = "mtp.0"
        xs = []
        for h, token in zip(hidden, following, strict=True):
            embedded = self.norm(self.numbers["embed_tokens.weight"][token], f"{name}.enorm")
            xs.append(self.linear(np.concatenate([embedded, self.norm(h, f"{name}.hnorm")]), f"{name}.eh_proj"))
        return [self.norm(x, f"{name}.norm") for x in self.block(xs, f"{name}.block", self.config.num_hidden_layers)]

    def log_probabilities(self, hidden: Vector) -> Vector:
        logits = self.numbers["lm_head.weight"] @ hidden
        return logits - (logits.max() + math.log(float(np.exp(logits - logits.max()).sum())))

    def balance(self) -> list[float]:
        """The balance terms, summed over layers, of the tokens seen since the last `hidden`: Σ_i f_i P_i and, with
        groups, Σ_g f'_g P'_g and Σ_g f''_g P''_g."""
        c = self.config
        k, experts, groups = c.num_experts_per_tok, c.n_routed_experts, c.n_group
        size = experts // groups
        totals = [0.0] * (1 if groups == 1 else 3)
        for name, rows in self.affinities.items():
            if c.topk_method == "noaux_tc":
                counted = [sorted(range(experts), key=lambda j: row[j], reverse=True)[:k] for row in rows]
            else:
                counted = self.picked[name]
            f = [experts / (k * len(rows)) * sum(i in picked for picked in counted) for i in range(experts)]
            p = [sum(row[i] / row.sum() for row in rows) / len(rows) for i in range(experts)]
            totals[0] += sum(a * b for a, b in zip(f, p, strict=True))
            if groups == 1:
                continue
            for g in range(groups):
                inside = range(g * size, (g + 1) * size)
                share = sum(p[i] for i in inside)
                sent = sum(any(i in picked for i in inside) for picked in counted)
                totals[1] += sum(f[i] for i in inside) / size * share
                totals[2] += groups / (c.topk_group * len(rows)) * sent * share
        return totals


def stack(vectors: Sequence[Vector]) -> torch.Tensor:
    """[T, D] float64."""
    return torch.from_numpy(np.stack(vectors))
