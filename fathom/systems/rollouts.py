"""Rollouts: completions asked for, judged and turned into what a step learns from, with the signs of its health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fathom.core.chat import Completion, Message, Sampling
    from fathom.core.journal import Journal
    from fathom.core.run import Run
    from fathom.judge.rewards import Rewards
    from fathom.judge.verdict import Verdict
    from fathom.model.tokenizer import Tokenizer
    from fathom.systems.grpo import Grpo
    from fathom.systems.samplers import Sampler
    from fathom.tasks.judging import Problems
    from fathom.tasks.task import Problem, Task
    from fathom.train.batch import Example
    from fathom.train.parallel import Team


@dataclass
class Rollout:
    """What came of one rollout: groups of completions, what was found out about them, and what to learn from."""

    asked: list[Problem]
    groups: list[list[Completion]]
    verdicts: list[list[Verdict]]
    rewards: list[list[float | None]]
    parts: list[list[dict[str, float | None]]]
    failed: int
    clock: list[float]  # before generating, after it, after judging
    advantages: list[list[float | None]] = field(default_factory=list)
    shares: list[list[Example]] = field(default_factory=list)  # one for each update
    times: int = 1  # how often was sampled for it
    flat: float | None = None  # share of groups that teach nothing; None where they all do
    seen: int = 0  # problems asked, those included that were left out as flat

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return sum(len(c.tokens) for group in self.groups for c in group)

    def metrics(self, limit: int) -> dict[str, Any]:
        """Its health; `limit` is the most tokens of a completion."""
        found = report(self.groups, self.verdicts, self.rewards, self.parts, self.failed, limit)
        if self.flat is not None:
            found["flat_groups"] = self.flat
        if self.times > 1 or self.seen > len(self.asked):
            found |= {"rollouts": self.times, "problems_asked": self.seen}
        return found

    def lines(self, step: int) -> str:
        """Its completions, for DIR/samples."""
        return sample_lines(step, self.asked, self.groups, self.verdicts, self.rewards, self.parts, self.advantages)

    def add(self, other: Rollout, places: Sequence[int]) -> None:
        """Takes the groups at `places` of another one."""
        for name in ("asked", "groups", "verdicts", "rewards", "parts"):
            getattr(self, name).extend(getattr(other, name)[i] for i in places)
        self.failed += other.failed
        self.times, self.seen = self.times + 1, self.seen + len(other.asked)
        self.clock[1] += other.clock[1] - other.clock[0]
        self.clock[2] += other.clock[2] - other.clock[0]


@dataclass
class Rollouts:
    """Asks, samples and judges for a step; of a team the first process judges, and tells the others."""

    cfg: Grpo
    run: Run
    tasks: Sequence[Task]
    problems: Problems
    sampler: Sampler
    tokenizer: Tokenizer
    team: Team
    journal: Journal | None  # of verdicts and rewards; the first process's
    own: Rewards | None

    def at(self, step: int) -> Rollout:
        """The rollout that begins with this step. With `dynamic` more is sampled until enough groups are not flat."""
        found, most = self._sampled(step, 0, self.cfg.problems), self.cfg.chosen("dynamic")
        found.seen = len(found.asked)
        if most:
            kept = Rollout([], [], [], [], [], 0, found.clock[:1] * 3, times=0)
            kept.add(found, self._live(found))
            while len(kept.asked) < self.cfg.problems and kept.times < most:
                more = self._sampled(step, kept.times, self.cfg.problems - len(kept.asked))
                kept.add(more, self._live(more))
            if len(kept.asked) < self.cfg.problems:
                self.run.log.warning("step %d: %d of %d groups are not flat after %d rollouts (dynamic)", step,
                                     len(kept.asked), self.cfg.problems, kept.times)
            if kept.asked:
                found = kept
        self._teach(found)
        if self.sampler.looks_ahead and (later := step + self.cfg.updates) <= self.cfg.steps:
            next_ = self.problems.peek(self.cfg.problems)
            self.sampler.ahead(later, *self._request(next_, later, 0))
        return found

    def _live(self, rolled: Rollout) -> list[int]:
        return [i for i, rewards in enumerate(rolled.rewards) if len({r for r in rewards if r is not None}) > 1]

    def _request(
        self, asked: Sequence[Problem], step: int, time_: int
    ) -> tuple[list[tuple[Message, ...]], list[int], Sampling, int]:
        """What a sampler is asked; a prompt that stands there twice gets another seed the second time."""
        name = ("sample", step) if time_ == 0 else ("sample", step, time_)
        seen: Counter[str] = Counter()
        seeds = []
        for problem in asked:
            said = repr(problem.prompt)
            seeds.append(self.run.seed(*name, "again", seen[said]) if seen[said] else self.run.seed(*name))
            seen[said] += 1
        return [problem.prompt for problem in asked], seeds, self.cfg.sampling, self.cfg.group

    def _sampled(self, step: int, time_: int, number: int) -> Rollout:
        import time

        clock = [time.monotonic()]
        asked = self.problems.take(number)
        groups = self.sampler.draw(step, *self._request(asked, step, time_))
        clock.append(time.monotonic())
        verdicts, rewards, parts, failed = self.team.tell(lambda: self._judged(asked, groups))
        clock.append(time.monotonic())
        return Rollout(asked, groups, verdicts, rewards, parts, failed, clock)

    def _judged(self, asked: Sequence[Problem], groups: Sequence[Sequence[Completion]]) -> Any:
        from fathom.tasks.judging import judge_groups, reward_groups

        assert self.own is not None
        verdicts = judge_groups(self.tasks, asked, groups, self.journal)
        return verdicts, *reward_groups(
            self.own, asked, groups, verdicts, self.cfg.sampling.max_tokens, self.journal, self.run.log)

    def _teach(self, rolled: Rollout) -> None:
        """Advantages, and the examples of each update."""
        from fathom.train import advantage

        cfg = self.cfg
        baseline = cfg.chosen("baseline")
        later = baseline in ("critic", "pairs")  # what they make of rewards needs the batches
        given = advantage.of_groups(
            rolled.rewards, "none" if later else baseline, "none" if later else cfg.chosen("normalise"))
        if baseline == "pairs":  # equal rewards make no pair
            live = set(self._live(rolled))
            given = [group if i in live else [0.0] * len(group) for i, group in enumerate(given)]
        by_token: Sequence[Sequence[Any]] = given
        if cfg.process is not None:
            name = cfg.process
            by_token = advantage.of_steps(self.team.tell(lambda: self._steps(rolled, name)))
            given = [[None if row is None else float(row[0]) if len(row) else 0.0 for row in group]
                     for group in by_token]
        if baseline != "critic":  # whether a group teaches a critic's policy, its values say
            rolled.flat = sum(not any(group) for group in given) / len(rolled.asked)
        rolled.advantages = [[None] * len(group) for group in given] if later else given
        prompts = [self.tokenizer.prompt(p.prompt) for p in rolled.asked]
        size = -(-len(rolled.asked) // cfg.updates)
        for first in range(0, cfg.updates * size, size):
            part = slice(first, first + size)
            rolled.shares.append(advantage.examples(
                prompts[part], rolled.groups[part], by_token[part], cfg.truncated == "mask", baseline == "critic"))

    def _steps(self, rolled: Rollout, name: str) -> list[list[list[tuple[int, float]] | None]]:
        """Each completion's steps: the token that each ends with, and its reward."""
        from fathom.judge.steps import ends_in_tokens, step_judge
        from fathom.tasks.judging import answered_group

        judge = step_judge(name)
        found = []
        for problem, group, verdicts in zip(rolled.asked, rolled.groups, rolled.verdicts, strict=True):
            answered = answered_group(problem, group, verdicts, self.cfg.sampling.max_tokens)
            rows: list[list[tuple[int, float]] | None] = []
            for completion, steps in zip(group, judge(answered), strict=True):
                if steps is None or not completion.tokens:
                    rows.append(None)
                    continue
                ends = ends_in_tokens(self.tokenizer.decode, completion.tokens, [end for end, _ in steps])
                ends[-1] = len(completion.tokens) - 1  # the stop token belongs to the last step
                rows.append(list(zip(ends, (reward for _, reward in steps), strict=True)))
            found.append(rows)
        return found


LENGTHS = 8  # bins of the histogram
ADVICE = (  # metric, beyond which value, what it says and what helps
    ("flat_groups", 0.8, "{:.0%} of the groups are flat and teach nothing: take problems that are neither always nor "
     "never solved, a larger group, or dynamic=10"),
    ("judge_failed", 0.05, "{:.0%} of the completions could not be judged: see the reasons in DIR/samples"),
    ("truncated", 0.5, "{:.0%} of the completions are cut off at sampling.max_tokens: raise it, or truncated=mask"),
    ("clip_share", 0.3, "{:.0%} of the tokens' weight is clipped: fewer updates, or a lower optim.lr"),
    ("mismatch", 0.3, "trainer and sampler disagree by {:.2f} nats on average: the same weights, the same temperature? "
     "See correction"),
    ("mismatch_max", 3.0, "trainer and sampler disagree by {:.2f} nats on a token: the same weights? see correction"),
    ("kl", 1.0, "the policy is {:.2f} nats a token from its reference: a larger kl, or reference_every"),
    ("grad_norm", 100.0, "the gradient's norm is {:.0f}: lower optim.lr"),
)


def advice(metrics: Mapping[str, Any]) -> list[str]:
    """What to do about the signs of a step that crossed their limits."""
    found = [text.format(metrics[name]) for name, limit, text in ADVICE if metrics.get(name, 0.0) > limit]
    if metrics.get("router_agreement", 1.0) < 0.9:
        found.append(f"the routers would keep {metrics['router_agreement']:.0%} of the experts of before the update: "
                     "router=replay, or a lower optim.lr")
    if metrics.get("entropy", 1.0) < 0.01:
        found.append(f"entropy is {metrics['entropy']:.4f} nats a token, nothing new is tried: clip_high=0.28, or a "
                     "higher sampling.temperature from the start")
    return found


def report(
    groups: Sequence[Sequence[Completion]], verdicts: Sequence[Sequence[Verdict]],
    rewards: Sequence[Sequence[float | None]], parts: Sequence[Sequence[Mapping[str, float | None]]],
    failed: int, limit: int,
) -> dict[str, Any]:
    """The health of one rollout: rewards, shares of outcomes, lengths; means leave out the unjudged.

    `failed` is the number of completions on which the task's judge or a reward of the user's own broke, `limit` the
    most tokens of one: `lengths` counts completions by eighths of it.
    """
    import numpy as np

    flat = [c for group in groups for c in group]
    outcomes = [v.outcome.value for group in verdicts for v in group]
    lengths = [len(c.tokens) for c in flat]
    judged = [r for group in rewards for r in group if r is not None]
    logprobs = np.concatenate([c.logprobs for c in flat])
    metrics: dict[str, Any] = {
        "length": float(np.mean(lengths)), "length_p95": float(np.quantile(lengths, 0.95)),
        "truncated": float(np.mean([c.finish == "length" for c in flat])),
        # −log p averages to the entropy over samples from p: an unbiased estimate that costs nothing
        "entropy": float(-logprobs.mean()),
        **{name: outcomes.count(name) / len(outcomes) for name in ("right", "wrong", "unread", "failed")},
        "judge_failed": failed / len(outcomes),
        "no_reward": 1 - len(judged) / len(outcomes),  # who left their groups, also where a reward chose not to say
    }
    if judged:
        metrics |= {"reward": float(np.mean(judged)), "reward_std": float(np.std(judged))}
    bounds = [-(-limit * i // LENGTHS) for i in range(1, LENGTHS + 1)]
    found = Counter(next(bound for bound in bounds if length <= bound) for length in lengths)
    metrics["lengths"] = {f"≤ {bound}": found[bound] for bound in dict.fromkeys(bounds)}
    for name in parts[0][0]:
        known = [value for group in parts for p in group if (value := p[name]) is not None]
        if known:
            metrics[f"reward_{name}"] = float(np.mean(known))
    return metrics


def sample_lines(
    step: int, asked: Sequence[Problem], groups: Sequence[Sequence[Completion]],
    verdicts: Sequence[Sequence[Verdict]], rewards: Sequence[Sequence[float | None]],
    parts: Sequence[Sequence[Mapping[str, float | None]]], advantages: Sequence[Sequence[float | None]],
) -> str:
    """One JSON line per problem with its whole group, for DIR/samples."""
    import json

    lines = []
    for i, problem in enumerate(asked):
        group = [
            {"text": c.text, "tokens": len(c.tokens), "finish": c.finish, "outcome": v.outcome.value,
             "reason": v.reason, "extracted": v.answer, "reward": r, "rewards": dict(p), "advantage": a}
            for c, v, r, p, a in zip(groups[i], verdicts[i], rewards[i], parts[i], advantages[i], strict=True)
        ]
        line = {"step": step, "problem": problem.id, "prompt": [m.to_json() for m in problem.prompt],
                "answer": problem.answer, "group": group}
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False))
    return "\n".join(lines) + "\n"
