"""The methods by name, and the words in which they are told apart; loads no torch.

A method is a product: a ratio's level × a clip rule (`fathom.train.policy`) × a weight of tokens (`fathom.train.batch`)
× a baseline and scale of advantages (`fathom.train.advantage`). What would need more is in LEFT_OUT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Baseline = Literal["mean", "others", "none", "critic", "pairs"]
Scale = Literal["std", "none", "batch", "whiten"]
Weigh = Literal["sequence_mean", "token_mean", "sequence_sum", "constant"]
Level = Literal["token", "sequence", "sequence_token", "product"]
ClipRule = Literal["ppo", "two_sided", "cispo", "sapo", "vespo", "none"]
Estimator = Literal["k1", "k2", "k3", "k3_plus"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True)
class PolicyRule:
    """How a token's term is made of its probabilities. Defaults are DeepSeekMath's GRPO (eq. 3, 4).

    `low` and `high` are ε below and above 1; for cispo `high` is the cap itself, for two_sided `most` caps the ratio
    where the advantage is negative, for sapo `low` and `high` are the temperatures for A < 0 and A ≥ 0. `kl` is β;
    `unbiased_kl` multiplies its estimate by the ratio (V3.2). With a `correction` the ratio is taken to the trainer's
    own probabilities of before the update, and each term is weighed by these over the sampler's, held within
    [`least_weight`, `most_weight`]. `off_policy` drops completions with A < 0 that the policy has left by more nats a
    token. `replay` takes the experts that the policy chose before the update, where the batch knows them.
    """

    ratio: Level = "token"
    clip: ClipRule = "ppo"
    low: float = 0.2
    high: float = 0.2
    most: float = 4.0
    kl: float = 0.0
    estimator: Estimator = "k3"
    unbiased_kl: bool = False
    correction: Correction = "none"
    least_weight: float = 0.0
    most_weight: float = 2.0
    off_policy: float | None = None
    replay: bool = False


# One row for each named method: settings of `fathom grpo` (fathom.systems.grpo), those that differ from GRPO's.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {},  # DeepSeekMath, arXiv 2402.03300
    "dr_grpo": {"normalise": "none", "weigh": "constant"},  # 2503.20783
    "dapo": {"weigh": "token_mean", "clip_high": 0.28, "dynamic": 10},  # 2503.14476
    "gspo": {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4},  # 2507.18071
    "gspo_token": {"ratio": "sequence_token", "clip": 3e-4, "clip_high": 4e-4},
    "luspo": {"ratio": "sequence", "clip": 2e-3, "clip_high": 2.5e-3, "weigh": "sequence_sum"},  # 2602.05261
    "cispo": {"clip_rule": "cispo", "clip_high": 5.0, "weigh": "token_mean", "normalise": "batch"},  # as in 2510.13786
    "two_sided": {"clip_rule": "two_sided"},  # 2505.07291
    "sapo": {"clip_rule": "sapo", "clip": 1.05, "clip_high": 1.0},  # 2511.20347
    "vespo": {"ratio": "product", "clip_rule": "vespo"},  # 2602.10693
    "lite_ppo": {"normalise": "batch", "weigh": "token_mean"},  # 2508.08221
    "rloo": {"baseline": "others", "normalise": "none", "clip_rule": "none", "weigh": "sequence_sum"},  # 2402.14740
    "reinforce_pp": {"normalise": "whiten"},  # REINFORCE++-baseline, 2501.03262
    "online_rft": {"baseline": "none", "normalise": "none", "clip_rule": "none"},  # DeepSeekMath §5.2.1
    "ppo": {"baseline": "critic", "normalise": "none", "weigh": "token_mean"},  # with GAE, 1707.06347, 1506.02438
    "dpo": {"baseline": "pairs", "normalise": "none", "clip_rule": "none"},  # DeepSeekMath §5.2.1; 2305.18290
}
# what a named variant is that would need more than these products
LEFT_OUT = {
    "gmpo": "clips each token's ratio before their mean is taken",
    "bnpo": "weighs tokens by their number in a micro-batch, so the result hangs on how a step is cut",
    "dppo": "drops tokens by how far their probability moved",
}
