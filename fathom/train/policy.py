"""Rules of a policy's loss: a ratio, a clip, an estimate of KL, a correction of the sampler's probabilities.

A named method is a product of these with a weight of tokens (`fathom.train.batch`) and a scale of advantages
(`fathom.train.advantage`): one row of the table in `fathom.train.variants`. Each formula is checked against a loop in
float64.
"""

# n trained tokens, S completions

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.train.variants import PolicyRule


@dataclass(frozen=True)
class Tokens:
    """The trained tokens of a batch, [n] each: which completion (0 … S − 1), probabilities, advantage."""

    sequence: Tensor
    sequences: int
    logp: Tensor
    log_ratio: Tensor  # to the policy of before the update
    advantage: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The mean over a token's completion, for each token."""
        counts = torch.bincount(self.sequence, minlength=self.sequences).clamp(min=1)
        return (self._summed(values) / counts)[self.sequence]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over a token's completion, for each token."""
        return self._summed(values)[self.sequence]

    def _summed(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


# The ratio's level: log-ratios [n] that the clip rule sees.


def _token(tokens: Tokens) -> Tensor:
    return tokens.log_ratio


def _sequence(tokens: Tokens) -> Tensor:
    """GSPO: the geometric mean over the completion (arXiv 2507.18071, eq. 7)."""
    return tokens.mean(tokens.log_ratio)


def _sequence_token(tokens: Tokens) -> Tensor:
    """GSPO-token: that value, with each token's own gradient (eq. 14)."""
    return tokens.mean(tokens.log_ratio).detach() + tokens.logp - tokens.logp.detach()


def _product(tokens: Tokens) -> Tensor:
    """The whole completion's ratio, which is what importance sampling asks for."""
    return tokens.sum(tokens.log_ratio)


LEVELS: Mapping[str, Callable[[Tokens], Tensor]] = {
    "token": _token, "sequence": _sequence, "sequence_token": _sequence_token, "product": _product}


# The clip rule: (gain, where it acts), both [n].


def _ppo(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    clipped = ratio.clamp(1 - rule.low, 1 + rule.high) * tokens.advantage
    whole = ratio * tokens.advantage
    return torch.minimum(whole, clipped), clipped < whole


def _two_sided(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    """INTELLECT-2 (arXiv 2505.07291, §3.4): ratios are capped where A < 0 too, or one token can outweigh a batch."""
    gain, acts = _ppo(tokens, ratio.clamp(max=rule.most), rule)
    return gain, acts | (ratio > rule.most)


def _cispo(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    """MiniMax-M1 (arXiv 2506.13585, eq. 4): the weight is capped and no token loses its gradient."""
    return ratio.clamp(max=rule.high).detach() * tokens.advantage * tokens.logp, ratio > rule.high


def _sapo(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    """Soft gates in place of the clip (arXiv 2511.20347)."""
    tau = torch.full_like(ratio, rule.high)
    tau[tokens.advantage < 0] = rule.low
    return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * tokens.advantage, torch.zeros_like(ratio, dtype=torch.bool)


def _vespo(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    """A weight that falls on both sides of ratio 1 (arXiv 2602.10693): (k, λ) = (2, 3) for A ≥ 0, (3, 2) for A < 0."""
    bad = tokens.advantage < 0
    k, rate = torch.where(bad, 3.0, 2.0), torch.where(bad, 2.0, 3.0)
    weight = (rate + k * ratio.log() - rate * ratio).exp().detach()
    return weight * tokens.advantage * tokens.logp, torch.zeros_like(bad)


def _unclipped(tokens: Tokens, ratio: Tensor, rule: PolicyRule) -> tuple[Tensor, Tensor]:
    return ratio * tokens.advantage, torch.zeros_like(ratio, dtype=torch.bool)


CLIPS: Mapping[str, Callable[[Tokens, Tensor, PolicyRule], tuple[Tensor, Tensor]]] = {
    "ppo": _ppo, "two_sided": _two_sided, "cispo": _cispo, "sapo": _sapo, "vespo": _vespo, "none": _unclipped}


# KL(policy ‖ reference), from x = log π_ref − log π_θ of the sampled tokens, [n].


def _k2(x: Tensor) -> Tensor:
    return x.square() / 2


def _k3(x: Tensor) -> Tensor:
    return x.exp() - x - 1


def _k3_plus(x: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2, which is the reverse KL's."""
    return _k2(x) + (_k3(x) - _k2(x)).detach()


ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "k1": torch.neg, "k2": _k2, "k3": _k3, "k3_plus": _k3_plus}


def corrected(tokens: Tokens, log_weight: Tensor, rule: PolicyRule) -> Tensor:
    """What each term is multiplied by where trainer and sampler disagree, [n], without gradient.

    `log_weight` is the trainer's log-probability of before the update less the sampler's. Truncated importance sampling
    holds the weight in its range, masked importance sampling drops what is outside.
    """
    if rule.correction == "none":
        return torch.ones_like(log_weight)
    level, _, manner = rule.correction.partition("_")
    weight = (tokens.sum(log_weight) if level == "sequence" else log_weight).exp().detach()
    held = weight.clamp(rule.least_weight, rule.most_weight)
    return held if manner == "truncate" else torch.where(held == weight, weight, 0.0)
