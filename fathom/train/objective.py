"""Objectives: plain weighted sums over a batch, differentiable; the batch carries every coefficient."""

# T tokens, n trained tokens

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fathom.model.head import log_probabilities, weighted_log_probability
from fathom.model.moe import Dropping
from fathom.model.transformer import Routing, Transformer
from fathom.train.batch import Batch
from fathom.train.policy import CLIPS, ESTIMATORS, LEVELS, Tokens, corrected
from fathom.train.variants import PolicyRule


@dataclass(frozen=True)
class Loss:
    """`total` is what to differentiate; `parts` are its detached terms, which add over micro-batches as it does."""

    total: Tensor
    parts: dict[str, Tensor]
    routing: Routing = field(default_factory=Routing)


def next_token(
    model: Transformer, batch: Batch, mtp: float = 0.0, balance: float = 0.0, *, device_balance: float = 0.0,
    communication_balance: float = 0.0, dropping: Dropping | None = None,
) -> Loss:
    """Cross-entropy of the next token, + `mtp` × that of the token after it, + the balance losses per sequence.

    DeepSeek-V3 §2.2 (eq. 24–25: the second term is divided by the same token count as the first), §2.1.2 (eq. 17–20);
    V2 §2.1.3 for α1 = `balance`, α2 = `device_balance`, α3 = `communication_balance`, §2.1.4 for `dropping`.
    """
    alphas = {"loss_balance": balance, "loss_device_balance": device_balance,
              "loss_communication_balance": communication_balance}
    routing = Routing(balanced=any(alphas.values()), dropping=dropping)
    hidden = model(batch.tokens, batch.layout, routing)
    loss_next = _cross_entropy(model, hidden, batch.targets, batch.weight)
    total, parts = loss_next, {"loss_next": loss_next.detach()}
    if mtp and len(model.mtp):
        # the token after next is the next position's target; it does not exist where a sequence ends
        inside = batch.layout.sequence_T[1:] == batch.layout.sequence_T[:-1]
        weight = torch.cat((batch.weight[1:] * inside, batch.weight.new_zeros(1)))
        further = model.predict_next(hidden, batch.targets, batch.layout, routing)
        loss_mtp = _cross_entropy(model, further, batch.targets.roll(-1), weight)
        total = total + mtp * loss_mtp
        parts["loss_mtp"] = loss_mtp.detach()
    if routing.balance is not None:
        for number, (name, alpha) in enumerate(alphas.items()):
            if not alpha:
                continue
            if number >= len(routing.balance):
                raise ValueError(f"{name}: concerns groups of experts, and the model has n_group=1; leave it out")
            term = (routing.balance[number] * batch.sequence_weight).sum()
            total = total + alpha * term
            parts[name] = term.detach()
    if routing.dropped is not None:
        parts["dropped"] = routing.dropped
    return Loss(total, {"loss": total.detach(), **parts}, routing)


def grpo(policy: Transformer, batch: Batch, rule: PolicyRule | None = None, temperature: float = 1.0) -> Loss:
    """−Σ w·[gain − β·KL] over the trained tokens (DeepSeekMath eq. 3 and 4 where `rule` is the default).

    ρ is the policy's probability over the sampler's, both at the sampling `temperature`; with a correction, or where
    the batch says what the policy gave before the update, over that. The KL term stands in the loss, never in the
    reward, and is added after the terms are corrected.
    """
    rule = rule or PolicyRule()
    if batch.advantage is None or batch.sampled_logp is None:
        raise ValueError("grpo: the batch has no advantages or sampled log-probabilities")
    routing = Routing(known=batch.experts, replay=rule.replay)
    hidden = policy(batch.tokens, batch.layout, routing)
    rows = batch.weight.nonzero()[:, 0]
    logp = log_probabilities(hidden.index_select(0, rows), policy.lm_head.weight, batch.targets[rows], temperature)
    w, sampled = batch.weight[rows], batch.sampled_logp[rows]
    if batch.old_logp is not None:
        old = batch.old_logp[rows]
    else:  # the first update after sampling: the policy itself, where it is not taken for the sampler
        old = sampled if rule.correction == "none" else logp.detach()
    tokens = Tokens(batch.layout.sequence_T[rows], batch.layout.sequences, logp, logp - old, batch.advantage[rows])
    ratio = LEVELS[rule.ratio](tokens).exp()
    gain, acts = CLIPS[rule.clip](tokens, ratio, rule)
    gain = gain * corrected(tokens, old - sampled, rule)
    if rule.off_policy is not None:
        left = (tokens.advantage < 0) & (tokens.mean(-tokens.log_ratio.detach()) > rule.off_policy)
        gain = torch.where(left, 0.0, gain)
    loss = -(w * gain).sum()
    away = (logp - sampled).detach()
    mean = w / batch.total
    parts = {
        "clip_share": (mean * acts).sum(),
        "clip_low": (mean * (acts & (ratio < 1))).sum(), "clip_high": (mean * (acts & (ratio > 1))).sum(),
        "mismatch": (mean * away.abs()).sum(), "mismatch_max": away.abs().max() if len(away) else away.sum(),
    }
    if routing.agreed:
        share = torch.stack([agreed[rows] for agreed in routing.agreed.values()]).mean(0)
        parts["router_agreement"] = (mean * share).sum()
    if rule.kl:
        if batch.reference_logp is None:
            raise ValueError("grpo: kl > 0 needs the reference's log-probabilities in the batch")
        x = batch.reference_logp[rows] - logp
        estimate = ESTIMATORS[rule.estimator](x)
        term = (w * (estimate * tokens.log_ratio.exp() if rule.unbiased_kl else estimate)).sum()
        loss = loss + rule.kl * term
        parts["kl"] = (mean * ESTIMATORS["k3"](x)).sum()
    return Loss(loss, {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}, routing)


@torch.no_grad()
def with_reference(reference: Transformer, batch: Batch, temperature: float = 1.0) -> Batch:
    """The batch with the reference's log-probabilities of its trained tokens."""
    return replace(batch, reference_logp=_known(reference, batch, temperature))


@torch.no_grad()
def with_old(policy: Transformer, batch: Batch, temperature: float = 1.0) -> Batch:
    """The batch with the log-probabilities that the policy gives now, before it is updated, and the experts that its
    routers choose."""
    routing = Routing(recorded={})
    return replace(batch, old_logp=_known(policy, batch, temperature, routing), experts=routing.recorded)


def _known(model: Transformer, batch: Batch, temperature: float, routing: Routing | None = None) -> Tensor:
    rows = batch.weight.nonzero()[:, 0]
    hidden = model(batch.tokens, batch.layout, routing)
    known = log_probabilities(hidden[rows], model.lm_head.weight, batch.targets[rows], temperature)
    logp = batch.weight.new_zeros(batch.weight.shape)
    logp[rows] = known.to(logp.dtype)
    return logp


def _cross_entropy(model: Transformer, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Σ w · −log p(target); the head sees only rows that count."""
    rows = weight.nonzero()[:, 0]
    if len(rows) < len(weight):
        hidden, targets, weight = hidden.index_select(0, rows), targets[rows], weight[rows]
    return -weighted_log_probability(hidden, model.lm_head.weight, targets, weight)
