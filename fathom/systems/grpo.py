"""GRPO: a model improved on problems that a program checks (DeepSeekMath §4.1, DeepSeek-R1 §2.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from fathom.systems.samplers import PolicyEndpoint
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
    from fathom.model.transformer import Transformer
    from fathom.systems.samplers import Sampler
    from fathom.train.batch import Batch, Example
    from fathom.train.critic import Critic
    from fathom.train.parallel import Team


class PpoCritic(Settings):
    """PPO's critic: a second model of the policy's size (DeepSeekMath §4.1.1)."""

    init: Path | None = Field(None, description="the model directory that its body begins as; none: as the policy")
    gamma: float = Field(1.0, gt=0, le=1, description="γ: what a reward is worth a token later")
    lam: float = Field(1.0, ge=0, le=1, description="λ of GAE; 0.95 is PPO's habit, R1 did better with 1")
    clip: float = Field(0.2, gt=0, description="how far a value moves in an update")
    optim: AdamW = AdamW(lr=1e-3, schedule="constant", warmup=5, weight_decay=0.0, bias_speed=0.0)


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
    manners: ClassVar[tuple[str, ...]] = ("nproc",)
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
    baseline: Baseline = Field(
        "mean", description="taken from rewards: the group's mean, that of the others, none; critic: PPO, pairs: DPO")
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
    critic: PpoCritic | None = Field(
        None, description="variant=ppo: the model of values; critic={} begins as the policy does")
    router: Literal["own", "replay"] = Field(
        "own", description="experts: those chosen now, or, from the second update of a rollout on, those of before it")
    endpoint: PolicyEndpoint | None = Field(
        None, description="draws the completions, on weights that it is sent, in place of this process")
    nproc: int = Field(1, ge=1, le=4096, description="processes on this machine, each with its share of every step")
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
        baseline = self.chosen("baseline")
        if (baseline == "critic") != (self.critic is not None):
            raise ValueError("critic: belongs to variant=ppo, which needs it; set both, as critic={}, or neither")
        if baseline in ("critic", "pairs"):
            if self.process is not None or self.chosen("normalise") != "none" or self.chosen("dynamic"):
                raise ValueError(f"baseline={baseline}: makes its advantages of rewards alone; leave process, "
                                 "normalise and dynamic out")
            if self.reference_every is not None:
                raise ValueError(f"baseline={baseline}: its reference stands still; leave reference_every out")
        if baseline == "pairs" and (not self.kl or self.updates > 1):
            raise ValueError(f"baseline=pairs: kl={self.kl:g} updates={self.updates}: DPO's β is kl, and its pairs are "
                             "weighed by the policy that drew them; set kl=0.1, updates=1")
        if self.endpoint is not None and self.lora:
            raise ValueError("endpoint: is sent whole models, and with lora there are only adapters; leave one of the "
                             "two out")
        if self.critic is not None and self.critic.optim.bias_speed:
            raise ValueError("critic.optim.bias_speed: the critic's experts are not balanced; leave it out")
        if self.router == "replay" and self.updates == 1:
            raise ValueError("router=replay: at the first update the experts are those of before it; set updates > 1")
        if self.reference_every is not None and not self.kl:
            raise ValueError("reference_every: there is no reference where kl is 0; set kl, or leave it out")
        if self.reference_every is not None and self.lora:
            raise ValueError("reference_every: with lora the reference is the model without its adapters, which does "
                             "not change; leave one of the two out")
        if self.group < 2:
            raise ValueError(f"group={self.group}: an advantage needs at least 2 samples; set group ≥ 2")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0: greedy completions of a group are all the same; set it > 0")
        plain = Sampling()
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
                     "logit_bias", "min_tokens", "json_schema"):
            if (value := getattr(self.sampling, name)) != getattr(plain, name):
                raise ValueError(f"sampling.{name}={value}: the policy would be compared with another distribution "
                                 f"than the one sampled from; set {name}={getattr(plain, name)}")
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
        kl = 0.0 if self.chosen("baseline") in ("critic", "pairs") else self.kl  # theirs is no term of the loss
        return PolicyRule(
            self.chosen("ratio"), self.chosen("clip_rule"), low, low if high is None else high, self.clip_most, kl,
            self.kl_estimator, self.unbiased_kl, self.correction, 0.0, self.correction_most, self.off_policy,
            self.router == "replay")

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        models = ["policy, with gradients and moments", *(["reference"] if self.kl and not self.lora else []),
                  *(["critic, with gradients and moments"] if self.critic else [])]
        where = {"sampled": f"at {self.endpoint.base}, {self.endpoint.behind} rollouts behind"} if self.endpoint else {}
        told = {"models in memory": "; ".join(models), "processes": self.nproc, **where}
        if self.updates > 1:
            return {"steps": self.steps, "rollouts": self.steps // self.updates,
                    "completions per rollout": self.problems * self.group,
                    "most sampled tokens per rollout": self.problems * self.group * self.sampling.max_tokens, **told}
        return {"steps": self.steps, "completions per step": self.problems * self.group,
                "most sampled tokens per step": self.problems * self.group * self.sampling.max_tokens, **told}


def grpo(cfg: Grpo, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    from fathom.train.parallel import Team

    team = Team.join(cfg.device)
    _grpo(cfg, run, team)
    team.leave()


def _grpo(cfg: Grpo, run: Run, team: Team) -> None:
    import itertools
    import time
    from collections import deque
    from contextlib import ExitStack, closing

    from fathom.core import disk
    from fathom.core.journal import Journal
    from fathom.engine.engine import Engine
    from fathom.judge.rewards import Rewards
    from fathom.model import adapter, lora, weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.systems.rollouts import Rollouts, advice
    from fathom.systems.samplers import OnEndpoint, OwnModel
    from fathom.tasks.judging import Problems, tell_left_out
    from fathom.tasks.task import load_task
    from fathom.train import objective
    from fathom.train.critic import Critic, value_loss
    from fathom.train.learner import Beside, Learner
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
        reference = Reference(weights.load(cfg.init, dtype, device)[0], run.dir / "reference", team.leads)
    critic: Critic | None = None
    if cfg.critic is not None:
        critic = Critic(weights.load(cfg.critic.init or cfg.init, dtype, device)[0])
        if (size := critic.body.config.vocab_size) != policy.config.vocab_size:
            raise UsageError(f"critic.init={cfg.critic.init}: a vocabulary of {size}, the policy's has "
                             f"{policy.config.vocab_size}; take a model with the same tokenizer")
    if cfg.router == "replay" and not policy.routers():
        raise UsageError(f"router=replay: {cfg.init} has no experts; leave it out")
    problems = Problems(tasks, run.seed("problems"))
    sampler: Sampler
    if cfg.endpoint is None:
        sampler = OwnModel(Engine(policy, tokenizer, cfg.engine), team)
        if cfg.engine.compile:
            run.log.info(COMPILING)
    else:
        sampler = OnEndpoint(cfg.endpoint, run, team, policy, tokenizer, cfg.updates)
    tracked: dict[str, Any] = {"problems": problems, "engine": sampler}
    if reference is not None and cfg.reference_every is not None:
        tracked["reference"] = reference
    beside = {"critic": Beside(critic, cfg.critic.optim)} if critic is not None and cfg.critic is not None else {}
    learner = Learner(policy, cfg.optim, run, cfg.checkpoints, cfg.updates, team, beside, **tracked)
    rule, told = cfg.rule(), False
    if team.size > 1:
        run.log.info("%d processes share every step", team.size)
    with ExitStack() as stack:
        stack.enter_context(closing(sampler))
        journal = stack.enter_context(Journal(run.dir / "verdicts.sqlite")) if team.leads else None
        own = stack.enter_context(Rewards(cfg.rewards)) if team.leads else None
        rollouts = Rollouts(cfg, run, tasks, problems, sampler, tokenizer, team, journal, own)
        updates: deque[Update] = deque()  # those that are left of a rollout
        for step in learner.steps(cfg.steps):
            metrics: dict[str, Any] = {}
            clock = [time.monotonic()] * 3
            sampled = 0
            if not updates:
                rolled = rollouts.at(step)
                if not told:  # files have been read by now
                    told = True
                    tell_left_out(tasks, run.log)
                clock, sampled = rolled.clock, rolled.tokens
                metrics = rolled.metrics(cfg.sampling.max_tokens)
                learner.count_tokens([example for share in rolled.shares for example in share])
                with lora.off(policy):  # with adapters the reference is the model without them
                    updates.extend(_updates(cfg, rolled.shares, device, dtype, team,
                                            reference.model if reference else policy, critic))
                if cfg.updates > 1 and (rule.correction != "none" or rule.replay):
                    for update in updates:
                        update.batches = [objective.with_old(policy, batch, cfg.sampling.temperature)
                                          for batch in update.batches]
                if team.leads and (
                        step == 1 or (step + cfg.updates - 1) // cfg.samples_every > (step - 1) // cfg.samples_every):
                    disk.write_atomic(run.dir / "samples" / f"{step:06d}.jsonl", rolled.lines(step))
            update = updates.popleft()
            for batch in update.batches:
                learner.backward(objective.grpo(policy, batch, rule, cfg.sampling.temperature), batch)
                if critic is not None and cfg.critic is not None:
                    learner.backward(value_loss(critic, batch, cfg.critic.clip))
            if update.teaches:
                metrics |= learner.step()
            else:
                run.log.warning("step %d: every group is flat or unjudged, so there is nothing to learn from; "
                                "no update", step)
            if reference is not None and cfg.reference_every and step % cfg.reference_every == 0:
                reference.follow(policy, step, cfg.reference_mix)
            clock.append(time.monotonic())
            run.metrics(step, **metrics, **({"expert_load": load} if (load := learner.expert_load()) else {}))
            generating, judging, training = (b - a for a, b in itertools.pairwise(clock))
            rates = {"trained_per_s": update.tokens / training}
            if sampled:
                rates["sampled_per_s"] = sampled / generating
            run.timing(step, generate_s=generating, judge_s=judging, train_s=training, sampled_tokens=sampled, **rates)
            for line in advice(metrics):
                run.log.warning("step %d: %s", step, line)
    if team.leads:
        if cfg.lora:
            adapter.export(run.dir / "adapter", policy, cfg.lora, weights.resolve(cfg.init, dtype))
        if not disk.is_complete(run.dir / "model"):
            weights.save(run.dir / "model", policy, tokenizer)
    run.finish(prefilled_tokens=sampler.prefilled, sampled_tokens=sampler.decoded)


@dataclass
class Update:
    """One update of a rollout: this process's micro-batches, the tokens of all processes', and if there are any."""

    batches: list[Batch]
    tokens: int
    teaches: bool


def _updates(
    cfg: Grpo, shares: Sequence[Sequence[Example]], device: Any, dtype: Any, team: Team, reference: Transformer,
    critic: Critic | None,
) -> Iterator[Update]:
    """The updates of a rollout, with the reference's probabilities and the critic's advantages where needed."""
    from fathom.model.device import full_precision
    from fathom.train import objective
    from fathom.train.batch import pack, weight_rule
    from fathom.train.critic import with_values
    from fathom.train.pairs import with_pairs

    rule = weight_rule(cfg.chosen("weigh"), cfg.sampling.max_tokens)
    for share in shares:
        batches = pack(share, rule, cfg.tokens_per_batch, device, full_precision(dtype), team) if share else []
        if cfg.kl:
            batches = [objective.with_reference(reference, batch, cfg.sampling.temperature) for batch in batches]
        if critic is not None and cfg.critic is not None:
            batches = [with_values(critic, batch, cfg.critic.gamma, cfg.critic.lam, cfg.kl) for batch in batches]
        if cfg.chosen("baseline") == "pairs":
            batches = with_pairs(batches, cfg.kl)
        yield Update(batches, sum(int(example.trained.sum()) for example in share), bool(share))
