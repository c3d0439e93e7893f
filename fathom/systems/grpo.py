"""GRPO: a model improved on problems that a program checks (DeepSeekMath §4.1, DeepSeek-R1 §2.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fathom.core.chat import Sampling
from fathom.core.config import Settings
from fathom.core.errors import UsageError
from fathom.core.run import Run
from fathom.engine.settings import COMPILING, EngineSettings
from fathom.judge.rewards import check_rewards
from fathom.model.config import Adapters
from fathom.train.schedule import AdamW, Checkpoints
from fathom.train.variants import (
    LEFT_OUT,
    VARIANTS,
    Baseline,
    ClipRule,
    Correction,
    Estimator,
    Level,
    PolicyRule,
    Scale,
    Weigh,
)

if TYPE_CHECKING:
    from fathom.core.chat import Completion
    from fathom.core.journal import Journal
    from fathom.engine.engine import Engine
    from fathom.judge.rewards import Rewards
    from fathom.judge.verdict import Verdict
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer
    from fathom.tasks.judging import Problems
    from fathom.tasks.task import Problem, Task
    from fathom.train.batch import Batch, Example


class Grpo(Settings):
    """Improves a model by group relative policy optimisation on problems with a judge.

    A step is one policy update: `problems` prompts, `group` completions each, judged, the group's mean as baseline.
    A completion that could not be judged leaves its group; a group whose rewards are all equal leaves the step; a step
    without any group left updates nothing and says so. Writes DIR/model, DIR/checkpoints, DIR/samples.

    With `lora.rank=16` the weights are frozen and adapters beside them are trained, which wants about ten times the
    learning rate. DIR/adapter then holds them as PEFT reads them, DIR/model has them merged, and where kl > 0 the
    reference is the same model with its adapters off.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "num_generations": "group", "max_steps": "steps", "beta": "kl", "epsilon": "clip",
        "epsilon_high": "clip_high", "reward_funcs": "rewards"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "learning_rate": "it belongs to the optimiser; write optim.lr=0.0003",
        "lr": "it belongs to the optimiser; write optim.lr=0.0003",
        "max_completion_length": "it belongs to sampling; write sampling.max_tokens=256",
        "temperature": "it belongs to sampling; write sampling.temperature=1.0",
        "per_device_train_batch_size": "the step is problems × group completions; write problems=16 group=8",
        "loss_type": "a token's weight is `weigh` here; write weigh=sequence_mean (grpo) or weigh=token_mean (dapo)",
        "scale_rewards": "the advantage's scale is `normalise` here; write normalise=std (group) or normalise=none",
    }

    init: Path = Field(description="the model directory to start from; also the reference where kl > 0")
    tasks: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="where the training problems come from")
    steps: int = Field(50, ge=1, description="policy updates")
    problems: int = Field(16, ge=1, description="problems per step")
    group: int = Field(8, ge=1, description="completions per problem")
    rewards: dict[str, float | dict[str, Any]] = Field(
        {"accuracy": 1.0}, min_length=1,
        description="rewards and their weights: accuracy, format, language, overlong, cosine_length, group_length, "
        "my_package.module:function; {weight: 0.1, script: latin} gives options")
    sampling: Sampling = Sampling(max_tokens=128)
    variant: str = Field(
        "grpo", description=f"a method by name, which sets what follows where you do not: {', '.join(VARIANTS)}")
    baseline: Baseline = Field("mean", description="taken from rewards: the group's mean, that of the others, or none")
    normalise: Scale = Field(
        "std", description="advantages by the group's deviation, the batch's, whitened over the batch, or as they are")
    weigh: Weigh = Field(
        "sequence_mean", description="each completion weighs the same (DeepSeekMath), each token does, or a token by "
        "1/completions (sequence_sum), or by 1/(completions × sampling.max_tokens) (constant)")
    ratio: Level = Field("token", description="probability ratios by token, or their mean or product by completion")
    clip_rule: ClipRule = Field("ppo", description="how ratios are held: see docs/grpo.md")
    clip: float = Field(0.2, gt=0, description="ε: how far the ratio counts below 1")
    clip_high: float | None = Field(
        None, gt=0, description="the same above 1; without it as `clip`. For cispo the cap itself")
    clip_most: float = Field(4.0, gt=1, description="two_sided: the largest ratio where the advantage is negative")
    kl: float = Field(0.0, ge=0, description="β: weight of KL(policy ‖ reference) in the loss; 0 loads no reference")
    kl_estimator: Estimator = Field("k3", description="how KL is estimated from sampled tokens")
    unbiased_kl: bool = Field(False, description="the estimate times the ratio (DeepSeek-V3.2)")
    reference_every: int | None = Field(None, ge=1, description="steps until the reference follows the policy")
    reference_mix: float = Field(
        1.0, gt=0, le=1, description="how far it follows: 1 replaces it (R1: every 400 steps)")
    updates: int = Field(1, ge=1, description="policy updates per rollout, each on its own share of the problems")
    dynamic: int = Field(
        0, ge=0, description="most rollouts of a step in search of groups that are not flat (DAPO: 10); 0 takes all")
    truncated: Literal["learn", "mask"] = Field(
        "learn", description="completions cut off at the limit are learnt from, or only count in their group")
    correction: Correction = Field(
        "none", description="weigh terms where trainer and sampler disagree: by token or completion, held or dropped")
    correction_most: float = Field(2.0, gt=0, description="the largest such weight")
    off_policy: float | None = Field(
        None, gt=0, description="drop bad completions that the policy left by more nats a token (V3.2: e.g. 0.5)")
    process: str | None = Field(
        None, description="rewards for steps instead of completions: arithmetic, or my_package.module:function")
    tokens_per_batch: int = Field(8192, ge=2, description="most tokens in one forward pass")
    lora: Adapters = Field(None, description="train adapters beside frozen weights; null trains every weight")
    optim: AdamW = AdamW(lr=3e-4, schedule="constant", warmup=5, weight_decay=0.0, bias_speed=0.0)
    engine: EngineSettings = EngineSettings()
    checkpoints: Checkpoints = Checkpoints(every=10)
    samples_every: int = Field(10, ge=1, description="steps between files of completions in DIR/samples")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    @model_validator(mode="after")
    def _can_learn(self) -> Grpo:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant:.40}: " + (
                f"left out: it {LEFT_OUT[self.variant]}" if self.variant in LEFT_OUT
                else f"no such method; there are {', '.join(VARIANTS)}"))
        for name, value in (("steps", self.steps), ("problems", self.problems),
                            ("checkpoints.every", self.checkpoints.every)):
            if value % self.updates:
                raise ValueError(f"{name}={value}: must be a multiple of updates={self.updates}: a rollout is learnt "
                                 "from whole before a checkpoint; change one of them")
        if self.reference_every is not None and not self.kl:
            raise ValueError("reference_every: there is no reference where kl is 0; set kl, or leave it out")
        if self.reference_every is not None and self.lora:
            raise ValueError("reference_every: with lora the reference is the model without its adapters, which does "
                             "not change; leave one of the two out")
        if self.group < 2:
            raise ValueError(f"group={self.group}: an advantage needs at least 2 samples; set group ≥ 2")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0: greedy completions of a group are all the same; set it > 0")
        if self.sampling.top_p < 1:
            raise ValueError(f"sampling.top_p={self.sampling.top_p}: the policy would be compared with another "
                             "distribution than the one sampled from; set top_p=1")
        try:
            check_rewards(self.rewards)
        except UsageError as error:
            raise ValueError(f"rewards: {error}") from error
        if self.lora:
            self.lora.check_biases(self.optim.bias_speed)
        return self

    def chosen(self, name: str) -> Any:
        """A setting's value: as given, else the variant's, else the default."""
        given = getattr(self, name)
        return given if name in self.model_fields_set else VARIANTS[self.variant].get(name, given)

    def rule(self) -> PolicyRule:
        """How a token's term of the loss is made."""
        low, high = self.chosen("clip"), self.chosen("clip_high")
        return PolicyRule(
            self.chosen("ratio"), self.chosen("clip_rule"), low, low if high is None else high, self.clip_most, self.kl,
            self.kl_estimator, self.unbiased_kl, self.correction, 0.0, self.correction_most, self.off_policy)

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        if self.updates > 1:
            return {"steps": self.steps, "rollouts": self.steps // self.updates,
                    "completions per rollout": self.problems * self.group,
                    "most sampled tokens per rollout": self.problems * self.group * self.sampling.max_tokens}
        return {"steps": self.steps, "completions per step": self.problems * self.group,
                "most sampled tokens per step": self.problems * self.group * self.sampling.max_tokens}


def grpo(cfg: Grpo, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    import time
    from collections import deque

    from fathom.core import disk
    from fathom.core.journal import Journal
    from fathom.engine.engine import Engine
    from fathom.judge.rewards import Rewards
    from fathom.model import adapter, lora, weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.judging import Problems, tell_left_out
    from fathom.tasks.task import load_task
    from fathom.train import objective
    from fathom.train.learner import Learner
    from fathom.train.reference import Reference

    tasks = [load_task(spec) for spec in cfg.tasks]
    device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.init)).parameters)
    policy, tokenizer = weights.load(cfg.init, dtype, device)
    reference: Reference | None = None
    if cfg.lora:
        # nothing here trains multi-token prediction, so it gets no adapters
        trained = lora.attach(policy, cfg.lora, run.seed("lora"), mtp=False)
        run.log.info("the weights are frozen; adapters of %d parameters are trained", trained)
    elif cfg.kl:
        reference = Reference(weights.load(cfg.init, dtype, device)[0], run.dir / "reference")
    problems = Problems(tasks, run.seed("problems"))
    engine = Engine(policy, tokenizer, cfg.engine)
    tracked: dict[str, Any] = {"problems": problems, "engine": engine}
    if reference is not None and cfg.reference_every is not None:
        tracked["reference"] = reference
    learner = Learner(policy, cfg.optim, run, cfg.checkpoints, cfg.updates, **tracked)
    rule, told = cfg.rule(), False
    if cfg.engine.compile:
        run.log.info(COMPILING)
    with Journal(run.dir / "verdicts.sqlite") as journal, Rewards(cfg.rewards) as own:
        rollouts = Rollouts(cfg, run, tasks, problems, engine, tokenizer, journal, own)
        shares: deque[list[Any]] = deque()  # the batches of each update that is left of a rollout
        for step in learner.steps(cfg.steps):
            metrics: dict[str, float] = {}
            clock = [time.monotonic()] * 3
            if not shares:
                rolled = rollouts.at(step)
                if not told:  # files have been read by now
                    told = True
                    tell_left_out(tasks, run.log)
                clock = rolled.clock
                metrics = rolled.metrics()
                learner.count_tokens([example for share in rolled.shares for example in share])
                with lora.off(policy):  # with adapters the reference is the model without them
                    shares.extend(_batches(cfg, rolled.shares, device, reference.model if reference else policy))
                if rule.correction != "none" and cfg.updates > 1:
                    shares = deque([[objective.with_old(policy, batch, cfg.sampling.temperature) for batch in share]
                                    for share in shares])
                if step == 1 or (step + cfg.updates - 1) // cfg.samples_every > (step - 1) // cfg.samples_every:
                    disk.write_atomic(run.dir / "samples" / f"{step:06d}.jsonl", rolled.lines(step))
            if batches := shares.popleft():
                for batch in batches:
                    learner.backward(objective.grpo(policy, batch, rule, cfg.sampling.temperature), batch)
                metrics |= learner.step()
            else:
                run.log.warning("step %d: every group is flat or unjudged, so there is nothing to learn from; "
                                "no update", step)
            if reference is not None and cfg.reference_every and step % cfg.reference_every == 0:
                reference.follow(policy, step, cfg.reference_mix)
            clock.append(time.monotonic())
            run.metrics(step, **metrics, **({"expert_load": load} if (load := learner.expert_load()) else {}))
            run.timing(step, generate_s=clock[1] - clock[0], judge_s=clock[2] - clock[1], train_s=clock[3] - clock[2],
                       sampled_tokens=rolled.tokens if len(shares) == cfg.updates - 1 else 0)
            for line in advice(metrics):
                run.log.warning("step %d: %s", step, line)
    if cfg.lora:
        adapter.export(run.dir / "adapter", policy, cfg.lora, weights.resolve(cfg.init, dtype))
    if not disk.is_complete(run.dir / "model"):
        weights.save(run.dir / "model", policy, tokenizer)
    run.finish(prefilled_tokens=engine.prefilled, sampled_tokens=engine.decoded)


def _batches(
    cfg: Grpo, shares: Sequence[Sequence[Example]], device: Any, reference: Transformer
) -> Iterator[list[Batch]]:
    """The micro-batches of each update of a rollout, with the reference's probabilities where they are needed."""
    from fathom.train import objective
    from fathom.train.batch import pack, weight_rule

    rule = weight_rule(cfg.chosen("weigh"), cfg.sampling.max_tokens)
    for share in shares:
        batches = pack(share, rule, cfg.tokens_per_batch, device) if share else []
        if cfg.kl:
            batches = [objective.with_reference(reference, batch, cfg.sampling.temperature) for batch in batches]
        yield batches


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
    seen: int = 0  # problems asked, those included that were left out as flat

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return sum(len(c.tokens) for group in self.groups for c in group)

    def metrics(self) -> dict[str, float]:
        """Its health."""
        found = report(self.groups, self.verdicts, self.rewards, self.parts, self.advantages, self.failed)
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
    """Asks, samples and judges for a step."""

    cfg: Grpo
    run: Run
    tasks: Sequence[Task]
    problems: Problems
    engine: Engine
    tokenizer: Tokenizer
    journal: Journal
    own: Rewards

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
        return found

    def _live(self, rolled: Rollout) -> list[int]:
        return [i for i, rewards in enumerate(rolled.rewards) if len({r for r in rewards if r is not None}) > 1]

    def _sampled(self, step: int, time_: int, number: int) -> Rollout:
        import time

        from fathom.tasks.judging import judge_groups, reward_groups

        clock = [time.monotonic()]
        asked = self.problems.take(number)
        name = ("sample", step) if time_ == 0 else ("sample", step, time_)
        sampling = self.cfg.sampling.model_copy(update={"seed": self.run.seed(*name)})
        self.engine.version = step - 1
        groups = self.engine.generate([p.prompt for p in asked], sampling, self.cfg.group)
        self.engine.release()  # training needs the memory
        clock.append(time.monotonic())
        verdicts = judge_groups(self.tasks, asked, groups, self.journal)
        rewards, parts, failed = reward_groups(
            self.own, asked, groups, verdicts, sampling.max_tokens, self.journal, self.run.log)
        clock.append(time.monotonic())
        return Rollout(asked, groups, verdicts, rewards, parts, failed, clock)

    def _teach(self, rolled: Rollout) -> None:
        """Advantages, and the examples of each update."""
        from fathom.train import advantage

        cfg = self.cfg
        rolled.advantages = advantage.of_groups(rolled.rewards, cfg.chosen("baseline"), cfg.chosen("normalise"))
        by_token: Sequence[Sequence[Any]] = rolled.advantages
        if cfg.process is not None:
            by_token = advantage.of_steps(self._steps(rolled, cfg.process))
            rolled.advantages = [[None if row is None else float(row[0]) if len(row) else 0.0 for row in group]
                                 for group in by_token]
        prompts = [self.tokenizer.prompt(p.prompt) for p in rolled.asked]
        size = -(-len(rolled.asked) // cfg.updates)
        for first in range(0, cfg.updates * size, size):
            part = slice(first, first + size)
            rolled.shares.append(advantage.examples(
                prompts[part], rolled.groups[part], by_token[part], cfg.truncated == "mask"))

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


ADVICE = (  # metric, beyond which value, what it says and what helps
    ("flat_groups", 0.8, "{:.0%} of the groups are flat and teach nothing: take problems that are neither always nor "
     "never solved, a larger group, or dynamic=10"),
    ("judge_failed", 0.05, "{:.0%} of the completions could not be judged: see the reasons in DIR/samples"),
    ("truncated", 0.5, "{:.0%} of the completions are cut off at sampling.max_tokens: raise it, or truncated=mask"),
    ("clip_share", 0.3, "{:.0%} of the tokens' weight is clipped: fewer updates, or a lower optim.lr"),
    ("mismatch_max", 3.0, "trainer and sampler disagree by {:.2f} nats on a token: the same weights? see correction"),
    ("kl", 1.0, "the policy is {:.2f} nats a token from its reference: a larger kl, or reference_every"),
    ("grad_norm", 100.0, "the gradient's norm is {:.0f}: lower optim.lr"),
)


def advice(metrics: Mapping[str, float]) -> list[str]:
    """What to do about the signs of a step that crossed their limits."""
    found = [text.format(metrics[name]) for name, limit, text in ADVICE if metrics.get(name, 0.0) > limit]
    if metrics.get("entropy", 1.0) < 0.01:
        found.append(f"entropy is {metrics['entropy']:.4f} nats a token, nothing new is tried: clip_high=0.28, or a "
                     "higher sampling.temperature from the start")
    return found


def report(
    groups: Sequence[Sequence[Completion]], verdicts: Sequence[Sequence[Verdict]],
    rewards: Sequence[Sequence[float | None]], parts: Sequence[Sequence[Mapping[str, float | None]]],
    advantages: Sequence[Sequence[float | None]], failed: int,
) -> dict[str, float]:
    """The health of one rollout: rewards, shares of outcomes, lengths, flat groups; means leave out the unjudged.

    `failed` is the number of completions on which the task's judge or a reward of the user's own broke.
    """
    import numpy as np

    flat = [c for group in groups for c in group]
    outcomes = [v.outcome.value for group in verdicts for v in group]
    lengths = [len(c.tokens) for c in flat]
    judged = [r for group in rewards for r in group if r is not None]
    logprobs = np.concatenate([c.logprobs for c in flat])
    metrics: dict[str, float] = {
        "length": float(np.mean(lengths)), "length_p95": float(np.quantile(lengths, 0.95)),
        "truncated": float(np.mean([c.finish == "length" for c in flat])),
        "flat_groups": float(np.mean([not any(group) for group in advantages])),
        # −log p averages to the entropy over samples from p: an unbiased estimate that costs nothing
        "entropy": float(-logprobs.mean()),
        **{name: outcomes.count(name) / len(outcomes) for name in ("right", "wrong", "unread", "failed")},
        "judge_failed": failed / len(outcomes),
        "no_reward": 1 - len(judged) / len(outcomes),  # who left their groups, also where a reward chose not to say
    }
    if judged:
        metrics |= {"reward": float(np.mean(judged)), "reward_std": float(np.std(judged))}
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
