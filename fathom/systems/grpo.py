"""GRPO: a model improved on problems that a program checks (DeepSeekMath §4.1, DeepSeek-R1 §2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

if TYPE_CHECKING:
    from fathom.core.chat import Completion
    from fathom.judge.verdict import Verdict
    from fathom.tasks.task import Problem


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
    clip: float = Field(0.2, gt=0, description="ε: how far the ratio counts below 1")
    clip_high: float | None = Field(None, gt=0, description="the same above 1; without it as `clip`")
    kl: float = Field(0.0, ge=0, description="β: weight of the k3 estimate of KL(policy ‖ reference)")
    normalise: Literal["std", "none"] = Field("std", description="divide advantages by the group's deviation, or not")
    weigh: Literal["sequence_mean", "token_mean"] = Field(
        "sequence_mean", description="each completion weighs the same (DeepSeekMath), or each token does")
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

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        return {"steps": self.steps, "completions per step": self.problems * self.group,
                "most sampled tokens per step": self.problems * self.group * self.sampling.max_tokens}


def grpo(cfg: Grpo, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    import time

    from fathom.core import disk
    from fathom.core.journal import Journal
    from fathom.engine.engine import Engine
    from fathom.judge.rewards import Rewards
    from fathom.model import adapter, lora, weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.judging import Problems, judge_groups, reward_groups, tell_left_out
    from fathom.tasks.task import load_task
    from fathom.train import advantage, objective
    from fathom.train.batch import WEIGHT_RULES, pack
    from fathom.train.learner import Learner

    tasks = [load_task(spec) for spec in cfg.tasks]
    device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.init)).parameters)
    policy, tokenizer = weights.load(cfg.init, dtype, device)
    if cfg.lora:
        # nothing here trains multi-token prediction, so it gets no adapters
        trained = lora.attach(policy, cfg.lora, run.seed("lora"), mtp=False)
        run.log.info("the weights are frozen; adapters of %d parameters are trained", trained)
        reference = policy  # with its adapters off
    elif cfg.kl:
        reference = weights.load(cfg.init, dtype, device)[0].requires_grad_(False)
    problems = Problems(tasks, run.seed("problems"))
    engine = Engine(policy, tokenizer, cfg.engine)
    learner = Learner(policy, cfg.optim, run, cfg.checkpoints, problems=problems, engine=engine)
    clip = (cfg.clip, cfg.clip if cfg.clip_high is None else cfg.clip_high)
    told = False
    if cfg.engine.compile:
        run.log.info(COMPILING)
    with Journal(run.dir / "verdicts.sqlite") as journal, Rewards(cfg.rewards) as own:
        for step in learner.steps(cfg.steps):
            clock = [time.monotonic()]
            asked = problems.take(cfg.problems)
            if not told:  # files have been read by now
                told = True
                tell_left_out(tasks, run.log)
            sampling = cfg.sampling.model_copy(update={"seed": run.seed("sample", step)})
            engine.version = step - 1
            groups = engine.generate([p.prompt for p in asked], sampling, cfg.group)
            engine.release()  # training needs the memory
            clock.append(time.monotonic())
            verdicts = judge_groups(tasks, asked, groups, journal)
            rewards, parts, failed = reward_groups(
                own, asked, groups, verdicts, sampling.max_tokens, journal, run.log)
            clock.append(time.monotonic())
            advantages = [advantage.of_group(group, cfg.normalise) for group in rewards]
            examples = advantage.examples([tokenizer.prompt(p.prompt) for p in asked], groups, advantages)
            metrics = report(groups, verdicts, rewards, parts, advantages, failed)
            if examples:
                for batch in pack(examples, WEIGHT_RULES[cfg.weigh], cfg.tokens_per_batch, device):
                    if cfg.kl:
                        with lora.off(reference):
                            batch = objective.with_reference(reference, batch, sampling.temperature)
                    learner.backward(objective.grpo(policy, batch, clip, cfg.kl, sampling.temperature), batch)
                metrics |= learner.step()
            else:
                run.log.warning("step %d: every group is flat or unjudged, so there is nothing to learn from; "
                                "no update", step)
            learner.count_tokens(examples)
            clock.append(time.monotonic())
            run.metrics(step, **metrics, **({"expert_load": load} if (load := learner.expert_load()) else {}))
            run.timing(step, generate_s=clock[1] - clock[0], judge_s=clock[2] - clock[1], train_s=clock[3] - clock[2],
                       sampled_tokens=sum(len(c.tokens) for g in groups for c in g))
            if step == 1 or step % cfg.samples_every == 0:
                lines = sample_lines(step, asked, groups, verdicts, rewards, parts, advantages)
                disk.write_atomic(run.dir / "samples" / f"{step:06d}.jsonl", lines)
    if cfg.lora:
        adapter.export(run.dir / "adapter", policy, cfg.lora, weights.resolve(cfg.init, dtype))
    if not disk.is_complete(run.dir / "model"):
        weights.save(run.dir / "model", policy, tokenizer)
    run.finish(prefilled_tokens=engine.prefilled, sampled_tokens=engine.decoded)


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
