"""PPO's critic: a value of every position, advantages made of values (GAE), and the loss that teaches it.

DeepSeekMath §4.1.1; Schulman et al., arXiv 1707.06347 and 1506.02438. The policy's own loss is GRPO's.
"""

# T tokens, D model, n trained tokens

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fathom.model.device import full_precision
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer
from fathom.train.batch import Batch
from fathom.train.objective import Loss


class Critic(nn.Module):
    """A transformer whose head is one row, zero at first: V of the tokens so far, [T]. It takes `body` over."""

    def __init__(self, body: Transformer):
        super().__init__()
        width, like = body.config.hidden_size, body.embed_tokens.weight
        del body.lm_head, body.mtp  # a value needs neither
        self.body = body
        self.value = nn.Linear(width, 1, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.value.weight)

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Values [T], in FP32 or FP64."""
        hidden_TD = self.body(tokens_T, layout)
        exact = full_precision(hidden_TD.dtype)
        value_T1: Tensor = hidden_TD.to(exact) @ self.value.weight.to(exact).T
        return value_T1[:, 0]


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Advantages [n] of one completion: A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ·V_{t+1} − V_t; after the end V = 0."""
    advantage, found, after = 0.0, np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        advantage = rewards[t] + gamma * after - values[t] + gamma * lam * advantage
        found[t], after = advantage, values[t]
    return found


@torch.no_grad()
def with_values(critic: Critic, batch: Batch, gamma: float = 1.0, lam: float = 1.0, kl: float = 0.0) -> Batch:
    """The batch, whose advantages were its completions' rewards, with GAE's instead, and what the critic is to learn.

    A completion's reward stands at its last token; β = `kl` times log π − log π_ref is taken from every token's, which
    needs the reference's log-probabilities in the batch.
    """
    assert batch.advantage is not None and batch.sampled_logp is not None
    rows = batch.weight.nonzero()[:, 0]
    value = critic(batch.tokens, batch.layout)[rows].double().cpu().numpy()
    sequence = batch.layout.sequence_T[rows].cpu().numpy()
    ends = np.append(sequence[1:] != sequence[:-1], True)
    reward = np.where(ends, batch.advantage[rows].double().cpu().numpy(), 0.0)
    if kl:
        if batch.reference_logp is None:
            raise ValueError("with_values: kl > 0 needs the reference's log-probabilities in the batch")
        reward = reward - kl * (batch.sampled_logp - batch.reference_logp)[rows].double().cpu().numpy()
    advantage, first = np.zeros(len(rows)), 0
    for end in np.flatnonzero(ends).tolist():
        part = slice(first, end + 1)
        advantage[part], first = gae(reward[part], value[part], gamma, lam), end + 1

    def row(values: np.ndarray) -> Tensor:
        made = torch.zeros_like(batch.weight)
        made[rows] = torch.from_numpy(values).to(made)
        return made

    return replace(batch, advantage=row(advantage), value=row(value), returns=row(advantage + value))


def value_loss(critic: Critic, batch: Batch, clip: float = 0.2) -> Loss:
    """Σ w·½·max((V − R)², (clip(V, V_old ± `clip`) − R)²) over the trained tokens."""
    assert batch.value is not None and batch.returns is not None
    rows = batch.weight.nonzero()[:, 0]
    w, old, returns = batch.weight[rows], batch.value[rows], batch.returns[rows]
    value = critic(batch.tokens, batch.layout)[rows].to(w.dtype)
    held = old + (value - old).clamp(-clip, clip)
    whole, clipped = (value - returns).square(), (held - returns).square()
    loss = (w * torch.maximum(whole, clipped)).sum() / 2
    held_share = (w * (clipped > whole)).sum() / batch.total
    return Loss(loss, {"critic_loss": loss.detach(), "critic_clip_share": held_share.detach()})
