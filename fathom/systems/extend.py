"""Extend: a model that was trained on short texts learns to read long ones, and proves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from fathom.core.config import Settings
from fathom.core.errors import AuditFailed, UsageError
from fathom.core.run import Run
from fathom.engine.settings import EngineSettings
from fathom.model.config import ModelConfig, RopeScaling
from fathom.train.schedule import AdamW, Checkpoints

if TYPE_CHECKING:
    import numpy

    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer
    from fathom.train.loader import Examples, Loader
    from fathom.train.positions import Curve

FAR = (8, 32)  # lengths of the two phases over the original one: DeepSeek-V3 goes from 4K to 32K, then to 128K
LEAST_TEXTS = 4  # of which a standard error says something


class Phase(Settings):
    """One phase: sequences of one length."""

    aliases: ClassVar[Mapping[str, str]] = {"sequence_length": "length", "max_steps": "steps"}

    length: int = Field(ge=2, description="tokens in a sequence")
    steps: int | None = Field(None, ge=1, description="optimiser steps; null: by `tokens`, or 1,000 as in V3")
    tokens: int | None = Field(None, ge=1, description="tokens to train on, in place of `steps`")
    lr: float | None = Field(None, gt=0, description="peak learning rate of this phase; null: optim.lr")

    @model_validator(mode="after")
    def _one_measure(self) -> Phase:
        if self.steps is not None and self.tokens is not None:
            raise ValueError(f"steps={self.steps} and tokens={self.tokens}: one of them says how long; leave one out")
        return self

    def count(self, tokens_per_step: int) -> int:
        """Optimiser steps of this phase."""
        return self.steps or (1000 if self.tokens is None else -(-self.tokens // tokens_per_step))


class Scaling(Settings):
    """How the rotary frequencies are stretched (YaRN); what is null follows from the model."""

    factor: float | None = Field(None, gt=1, description="s; null: the longest phase over the original length")
    original: int | None = Field(
        None, ge=8, description="the model's length in pre-training; null: its max_position_embeddings")
    beta_fast: float = Field(32.0, gt=0, description="turns over the original length from which frequencies stay (β)")
    beta_slow: float = Field(1.0, gt=0, description="turns up to which frequencies are divided by s (α)")
    mscale: float = Field(
        1.0, ge=0, le=10, description="a in m = 0.1·a·ln s + 1: m² on latent attention's logits, m on cos and sin else")

    @model_validator(mode="after")
    def _ordered(self) -> Scaling:
        if self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow={self.beta_slow}: must be less than beta_fast={self.beta_fast}; 1 and 32 are "
                             "YaRN's own")
        return self


class Proof(Settings):
    """What is measured before and after, and what must come out."""

    texts: int = Field(16, ge=LEAST_TEXTS, description="held-out texts of the full length, for the loss by position")
    margin: float = Field(0.05, ge=0, description="nats by which a loss may rise, beside two standard errors")
    lengths: tuple[int, ...] | None = Field(
        None, min_length=1, description="lengths of the needle grid; null: the original one, doubled up to the longest")
    depths: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="where the needle stands: 0 at the front, 1 at the end")
    samples: int = Field(4, ge=1, description="haystacks in each cell of the grid")
    others: int = Field(3, ge=0, le=40, description="facts about other names beside the needle")
    digits: int = Field(4, ge=2, le=12, description="digits of a code")
    needle_mean: float = Field(0.9, ge=0, le=1, description="least share found at every length; 0 asks for none")
    needle_worst: float = Field(0.5, ge=0, le=1, description="least share found in any cell; 0 asks for none")

    @model_validator(mode="after")
    def _depths_are_shares(self) -> Proof:
        if wrong := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise ValueError(f"depths: {wrong[0]}: a share of the text, from 0 to 1; write 0.5 for its middle")
        return self


class Extend(Settings):
    """Lengthens what a model can read: YaRN, then training on long texts in phases, with a proof.

    DeepSeek-V3 §4.3. Measured before and after each phase: the loss by position on held-out texts, and codes found in
    haystacks by depth and length (DIR/proof). Where the loss bends upwards past the old length, short texts got worse,
    or codes are not found, the stage ends with exit code 3 and without DIR/model; the checkpoint stays.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "rope_scaling": "it is called scaling here; write scaling.factor=8",
        "max_position_embeddings": "it follows from the phases; write phases=[{length: 2048, steps: 100}]",
        "sequence_length": "every phase has its own; write phases=[{length: 2048, steps: 100}]",
        "tokens": "every phase has its own; write phases=[{length: 2048, tokens: 1000000}]",
        "lr": "it belongs to the optimiser; write optim.lr=0.0001",
        "learning_rate": "it belongs to the optimiser; write optim.lr=0.0001",
        "batch_size": "the step is counted in tokens here; write tokens_per_step=65536",
    }

    init: Path = Field(description="the model directory to start from")
    data: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="texts, long ones among them")
    phases: tuple[Phase, ...] | None = Field(
        None, min_length=1, description="null: 8 and then 32 times the original length, 1,000 steps each, as in V3")
    scaling: Scaling | None = Field(Scaling(), description="null leaves the frequencies as they are, to compare with")
    tokens_per_step: int = Field(65_536, ge=2, description="tokens in one optimiser step, the same in every phase")
    tokens_per_batch: int = Field(8192, ge=2, description="most tokens in one forward pass, or one sequence")
    mask_documents: bool = Field(
        True, description="texts do not see each other; false packs them end to end, as V3's pre-training does")
    mtp: float = Field(0.1, ge=0, description="weight λ of predicting the token after next, where the model can")
    balance: float = Field(1e-4, ge=0, description="weight α of the sequence-wise balance loss")
    optim: AdamW = AdamW(lr=7.3e-6, schedule="constant", warmup=0, bias_speed=0.0)
    checkpoints: Checkpoints = Checkpoints()
    proof: Proof = Proof()
    engine: EngineSettings = EngineSettings(batch=16)
    held_out_every: int = Field(50, ge=1, description="steps between held-out losses, over the proof's texts")
    log_every: int = Field(1, ge=1, description="steps between lines in metrics.jsonl")
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    @model_validator(mode="after")
    def _phases_grow(self) -> Extend:
        for before, phase in zip(self.phases or (), (self.phases or ())[1:], strict=False):
            if phase.length < before.length:
                raise ValueError(f"phases: length={phase.length} after {before.length}: sequences grow; order the "
                                 "phases by length")
        if self.phases and self.tokens_per_step < self.phases[-1].length:
            raise ValueError(f"tokens_per_step={self.tokens_per_step}: less than one sequence of "
                             f"{self.phases[-1].length} tokens; raise it")
        return self

    def stages(self, original: int) -> tuple[Phase, ...]:
        """The phases for a model of that length."""
        return self.phases or tuple(Phase(length=times * original) for times in FAR)

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run; lengths are known where the model is there already."""
        from fathom.core import disk
        from fathom.model.pretrained import is_model, locate

        found: dict[str, Any] = {}
        original = self.scaling.original if self.scaling else None
        place = locate(self.init)
        if original is None and is_model(self.init) and place.is_dir():
            raw = disk.read_json(place / "config.json")
            value = raw.get("max_position_embeddings")
            original = value if isinstance(value, int) else None
            if raw.get("rope_scaling"):
                found["refused"] = "the model is stretched already; set scaling.original and scaling.factor"
        if original is not None:
            found["original length"] = original
        if self.phases is None and original is None:
            return {"phases": "8 and 32 times the model's length, which is not known yet", "steps": 2000,
                    "tokens": 2000 * self.tokens_per_step}
        phases = self.stages(original or 1)
        steps = [phase.count(self.tokens_per_step) for phase in phases]
        for number, (phase, count) in enumerate(zip(phases, steps, strict=True), 1):
            found[f"phase {number}"] = (
                f"{count:,} steps of {self.tokens_per_step:,} tokens, sequences of {phase.length:,}")
        if self.scaling and original:
            found["scaling"] = f"yarn, factor {self.scaling.factor or phases[-1].length / original:g}"
        return found | {"steps": sum(steps), "tokens": sum(steps) * self.tokens_per_step}


def stretched(config: ModelConfig, scaling: Scaling | None, target: int) -> tuple[int, ModelConfig]:
    """The original length and the config for sequences of `target` tokens.

    Raises UsageError where target is not longer, the factor does not reach it, or the model is stretched already and
    `scaling` does not say from what and how far.
    """
    original = (scaling.original if scaling else None) or config.max_position_embeddings
    if config.rope_scaling is not None and (scaling is None or scaling.original is None or scaling.factor is None):
        raise UsageError(
            f"init: the model's frequencies are stretched already ({config.rope_scaling.type}, factor "
            f"{config.rope_scaling.factor:g} from {config.rope_scaling.original_max_position_embeddings}); say what to "
            f"put in their place: scaling.original={config.rope_scaling.original_max_position_embeddings} "
            "scaling.factor=…")
    if target <= original:
        raise UsageError(f"phases: the longest has {target} tokens and the model reads {original} already; ask for "
                         "more, or set scaling.original to its length in pre-training")
    if scaling is None:
        return original, config.model_copy(update={"max_position_embeddings": target})
    factor = scaling.factor or target / original
    if round(factor * original) < target:
        raise UsageError(f"scaling.factor={factor:g}: reaches {round(factor * original)} positions from {original}, "
                         f"and the longest phase has {target}; set it to {target / original:g} or more")
    rope = RopeScaling(
        type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=scaling.beta_fast,
        beta_slow=scaling.beta_slow)
    # as every DeepSeek release has it: both scales alike, so that cos and sin stay and the softmax gets m²
    if config.attention == "mla" and scaling.mscale:
        rope = rope.model_copy(update={"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale})
    elif config.attention == "mla" or scaling.mscale != 1.0:  # as a number: readers take a scale of 0 for none given
        rope = rope.model_copy(update={
            "attention_factor": 1.0 if config.attention == "mla" else rope.m(scaling.mscale)})
    longest = max(target, round(factor * original))
    return original, config.model_copy(update={"rope_scaling": rope, "max_position_embeddings": longest})


def extend(cfg: Extend, run: Run) -> None:
    """Extends as `cfg` says; the result is DIR/model. Raises AuditFailed, everything written, where the proof fails."""
    from fathom.core import disk
    from fathom.core.records import RecordStore
    from fathom.model import weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.examples import Example, gather
    from fathom.train import objective, prepare
    from fathom.train.batch import pack, token_mean
    from fathom.train.learner import Learner, mean_loss

    base_config = weights.read_config(cfg.init)
    phases = cfg.stages((cfg.scaling.original if cfg.scaling else None) or base_config.max_position_embeddings)
    target = phases[-1].length
    original, config = stretched(base_config, cfg.scaling, target)
    device, dtype = place(cfg.device, cfg.dtype, cost(config).parameters)
    base, tokenizer = weights.load(cfg.init, dtype, device)

    def encoded(example: Example) -> dict[str, Any]:
        text = example if isinstance(example, str) else "\n".join(m.text for m in example)
        tokens, trained = tokenizer.document(text)
        return {"tokens": tokens, "trained": trained}

    store = RecordStore(run.dir / "records", prepare.schema())
    ledger = gather(
        store, cfg.data, lambda number: run.seed("data", number), encoded, run.log, lambda: run.stop_requested)
    train, apart = _held_out(prepare.examples(store), target, cfg, run.rng("held out"))
    kept_apart = [apart[i] for i in range(len(apart))]
    held_out = pack(kept_apart, token_mean, cfg.tokens_per_batch, device)

    measure = _Measure(cfg, run, tokenizer, kept_apart, original, target)
    if not measure.done("0-before"):
        longer = base_config.model_copy(update={"max_position_embeddings": config.max_position_embeddings})
        measure(_with_config(base, longer), "0-before", 0)
    model = _with_config(base, config)
    model.recompute = cfg.recompute
    del base
    if cfg.scaling and not measure.done("1-stretched"):
        measure(model, "1-stretched", 0)

    loaders = _Loaders([
        _windows(train, phase.length, cfg.mask_documents) for phase in phases], run)
    ends = [sum(phase.count(cfg.tokens_per_step) for phase in phases[: n + 1]) for n in range(len(phases))]
    learner = Learner(model, cfg.optim, run, cfg.checkpoints, loader=loaders)
    for step in learner.steps(ends[-1]):
        if step == 1:
            for name in ("0-before", "1-stretched"):
                if measure.done(name):
                    run.metrics(0, measured=name, **measure.summary(name))
        number = next(n for n, end in enumerate(ends) if step <= end)
        learner.settings = cfg.optim.model_copy(update={"lr": phases[number].lr or cfg.optim.lr})
        examples = loaders.take(number, cfg.tokens_per_step)
        for batch in pack(examples, token_mean, cfg.tokens_per_batch, device):
            learner.backward(objective.next_token(model, batch, cfg.mtp, cfg.balance), batch)
        seen = learner.count_tokens(examples)
        metrics: dict[str, Any] = learner.step()
        if step % cfg.held_out_every == 0 or step == ends[-1]:
            metrics["held_out"] = mean_loss(model, held_out)
            learner.held_out(metrics["held_out"])
        if step in ends:
            name = f"{number + 2}-phase-{number + 1}"
            measure(model, name, step)
            metrics |= {"measured": name, **measure.summary(name)}
        if step % cfg.log_every == 0 or step in ends:
            run.metrics(step, **metrics, length=phases[number].length, tokens=seen, expert_load=learner.expert_load())
    last = f"{len(phases) + 1}-phase-{len(phases)}"
    if faults := measure.faults(last):
        raise AuditFailed(f"not extended to {target:,} tokens: {'; '.join(faults)}. Train longer (phases.tokens), on "
                          "more long texts, or stretch further (scaling.factor), in a directory of its own; this one "
                          f"keeps {learner.folder / f'{ends[-1]:06d}'}, has no model, and `fathom report` shows it all")
    if not disk.is_complete(run.dir / "model"):
        weights.save(run.dir / "model", model, tokenizer)
    run.finish(tokens=learner.tokens, ledger=str(ledger), **measure.summary(last))


def _with_config(base: Transformer, config: ModelConfig) -> Transformer:
    """The same weights in a model of another config, whose tensors are the same."""
    from fathom.model.weights.streamed import empty

    weight = base.embed_tokens.weight
    made = empty(config, weight.dtype, weight.device)
    made.load_state_dict(base.state_dict())
    return made


def _windows(source: Examples, length: int, masked: bool) -> Examples:
    """Sequences of at most `length` + 1 tokens, overlapping by one: each text cut for itself, or all end to end."""
    from fathom.train import prepare
    from fathom.train.loader import Examples

    if not masked:
        return prepare.rows(source, length)
    pieces = []
    for example in (source[i] for i in range(len(source))):
        for a in range(0, max(1, len(example.tokens) - 1), length):
            pieces.append((example.tokens[a: a + length + 1], example.trained[a: a + length + 1]))
    return Examples.gather(pieces)


def _held_out(every: Examples, target: int, cfg: Extend, rng: numpy.random.Generator) -> tuple[Examples, Examples]:
    """(texts to train on, `proof.texts` sequences of `target` + 1 tokens made of texts that are kept apart)."""
    import numpy as np

    lengths = np.diff(every.starts)
    order = rng.permutation(len(every))
    wanted = cfg.proof.texts
    if cfg.mask_documents:
        chosen = [int(i) for i in order if lengths[i] > target][:wanted]
        enough = len(chosen) == wanted
        found = f"{len(chosen)} texts have more than {target:,} tokens"
    else:
        needed = int(np.searchsorted(np.cumsum(lengths[order]), wanted * target + 1)) + 1
        chosen = [int(i) for i in order[:needed]]
        enough = int(lengths[chosen].sum()) > wanted * target
        found = f"all texts together have {int(lengths.sum()):,} tokens"
    if not enough or len(chosen) == len(every):
        packed = "set mask_documents=false, which packs short ones end to end"
        raise UsageError(f"data: {found}, and the proof keeps {wanted} of {target:,} tokens apart (proof.texts), some "
                         "being left to train on; bring more long texts, or "
                         f"{packed if cfg.mask_documents else 'ask for fewer'}")
    train, apart = every.split(len(chosen), np.asarray([*chosen, *(i for i in order if int(i) not in set(chosen))]))
    rows = _windows(apart, target, cfg.mask_documents)
    full = [rows[i] for i in range(len(rows)) if len(rows[i].tokens) == target + 1]
    return train, type(every).gather((row.tokens, row.trained) for row in full[:wanted])


class _Loaders:
    """One loader per phase, of which the current one is read; their places belong in the checkpoint."""

    def __init__(self, phases: Sequence[Examples], run: Run):
        from fathom.train.loader import Loader

        def ordered(phase: int) -> Callable[[int], numpy.random.Generator]:
            return lambda epoch: run.rng("order", phase, epoch)

        self._each: list[Loader] = [Loader(examples, ordered(n)) for n, examples in enumerate(phases)]

    def take(self, phase: int, tokens: int) -> list[Any]:
        """Sequences of a phase until `tokens` are reached."""
        return self._each[phase].take(tokens)

    def state(self) -> dict[str, Any]:
        """Where every loader stands."""
        return {"phases": [loader.state() for loader in self._each]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes where `state` says."""
        for loader, one in zip(self._each, state["phases"], strict=True):
            loader.restore(one)


class _Measure:
    """Measures a model by the same texts and haystacks every time, into DIR/proof/NAME.json, and judges the last."""

    def __init__(
        self, cfg: Extend, run: Run, tokenizer: Tokenizer, texts: Sequence[Any], original: int, target: int,
    ):
        from fathom.tasks.needle import haystack
        from fathom.train.positions import edges

        self.cfg, self.run, self.tokenizer, self.texts = cfg, run, tokenizer, texts
        self.original, self.target = original, target
        self.edges = edges(original, target)
        proof = cfg.proof
        self.lengths = proof.lengths or _doubled(original, target)
        if max(self.lengths) > target or (max(self.lengths) < target and (proof.needle_mean or proof.needle_worst)):
            raise UsageError(f"proof.lengths: {max(self.lengths)} is the longest, and the longest phase has {target}; "
                             "measure up to there")
        self.room = len(tokenizer.encode(" " + "0" * proof.digits + ".")) + 1  # for the answer
        self.asked = [
            (number, depth, haystack(
                length - self.room - 1, place, f"{run.seed('needle')} {length} {depth} {sample}", others=proof.others,
                digits=proof.digits, measure=lambda text: len(tokenizer.encode(text))))
            for number, length in enumerate(self.lengths) for depth, place in enumerate(proof.depths)
            for sample in range(proof.samples)
        ]

    def path(self, name: str) -> Path:
        """Where a measurement stands."""
        return self.run.dir / "proof" / f"{name}.json"

    def done(self, name: str) -> bool:
        """Whether it was made."""
        return self.path(name).exists()

    def __call__(self, model: Transformer, name: str, step: int) -> None:
        """Measures and writes."""
        import json

        from fathom.core import disk
        from fathom.train.positions import loss_by_position

        curve = loss_by_position(model, self.texts, self.edges)
        found: dict[str, Any] = {
            "name": name, "step": step, "original": self.original, "target": self.target, "curve": curve.to_json()}
        found["needle"] = {
            "lengths": list(self.lengths), "depths": list(self.cfg.proof.depths), "samples": self.cfg.proof.samples,
            "right": self._needles(model)}
        disk.make_directory(self.path(name).parent)
        disk.write_atomic(self.path(name), json.dumps(found, allow_nan=False))
        said = ", ".join(f"{key} {value:.3f}" for key, value in self.summary(name).items())
        self.run.log.info("%s: %s", name, said)

    def _needles(self, model: Transformer) -> list[list[int]]:
        """How many codes were found, by depth and length, with greedy decoding."""
        from fathom.core.chat import Sampling
        from fathom.engine.engine import Engine
        from fathom.judge.verdict import Outcome
        from fathom.tasks.needle import judge_code

        # begun as a document is, and not ended
        prompts = [self.tokenizer.document(hay.text + hay.cue).tokens[:-1] for *_, hay in self.asked]
        engine = Engine(model, self.tokenizer, self.cfg.engine)
        answers = engine.complete(prompts, Sampling(max_tokens=self.room, temperature=0.0))
        right = [[0] * len(self.lengths) for _ in self.cfg.proof.depths]
        for (length, depth, hay), [answer] in zip(self.asked, answers, strict=True):
            right[depth][length] += judge_code(hay.code, answer.text).outcome is Outcome.RIGHT
        return right

    def _read(self, name: str) -> tuple[Curve, dict[str, Any]]:
        from fathom.core import disk
        from fathom.train.positions import Curve

        found = disk.read_json(self.path(name))
        return Curve.from_json(found["curve"]), found["needle"]

    def summary(self, name: str) -> dict[str, float]:
        """The figures of a measurement: mean losses before and past the original length, needles found."""
        curve, needle = self._read(name)
        short = float(curve.within(self.original).mean())
        whole = float(curve.within(self.target).mean())
        beyond = (whole * self.target - short * self.original) / (self.target - self.original)
        cells = [count / needle["samples"] for row in needle["right"] for count in row]
        return {"loss_short": short, "loss_beyond": beyond, "needle": sum(cells) / len(cells),
                "needle_worst": min(cells)}

    def faults(self, name: str) -> list[str]:
        """Why this measurement proves nothing, or an empty list."""
        from fathom.train.positions import bend, worsened

        proof = self.cfg.proof
        curve, needle = self._read(name)
        before, needle_before = self._read("0-before")
        losses = bend(curve, self.original, proof.margin), worsened(before, curve, self.original, proof.margin)
        return [*(fault for fault in losses if fault), *needle_faults(needle, needle_before, proof)]


def needle_faults(needle: Mapping[str, Any], before: Mapping[str, Any], proof: Proof) -> list[str]:
    """What a needle grid falls short of, and whether the model could ever do it; empty where it passes."""
    cells = {
        (length, depth): needle["right"][d][n] / needle["samples"]
        for n, length in enumerate(needle["lengths"]) for d, depth in enumerate(needle["depths"])
    }
    found = []
    # each length for itself: the short ones, which the model could always do, must not make up for the long ones
    shares = {one: sum(row[n] for row in needle["right"]) / (len(needle["right"]) * needle["samples"])
              for n, one in enumerate(needle["lengths"])}
    least, mean = min(shares.items(), key=lambda share: share[1])
    if mean < proof.needle_mean:
        found.append(f"{100 * mean:.0f} % of the needles found at {least:,} tokens, fewer than "
                     f"proof.needle_mean={proof.needle_mean:g}")
    (length, depth), worst = min(cells.items(), key=lambda cell: cell[1])
    if worst < proof.needle_worst:
        found.append(f"{100 * worst:.0f} % at {length:,} tokens, depth {100 * depth:.0f} %, fewer than "
                     f"proof.needle_worst={proof.needle_worst:g}")
    if found:
        able = sum(row[0] for row in before["right"]) / (len(before["right"]) * before["samples"])
        if able < proof.needle_mean:
            found.append(f"the model as it came found {100 * able:.0f} % at {before['lengths'][0]:,} tokens: where it "
                         "never could, set proof.needle_mean=0 proof.needle_worst=0 to be judged by the loss alone")
    return found


def _doubled(original: int, target: int) -> tuple[int, ...]:
    lengths = [original]
    while lengths[-1] * 2 < target:
        lengths.append(lengths[-1] * 2)
    return (*lengths, target)
