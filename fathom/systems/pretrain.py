"""Pretrain: a model trained from nothing on documents, with DeepSeek-V3's objective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fathom.core.config import Settings, build, show
from fathom.core.errors import UsageError
from fathom.core.run import Run
from fathom.model.config import PRESETS, ModelConfig
from fathom.model.cost import cost
from fathom.train.schedule import AdamW, Checkpoints


class Pretrain(Settings):
    """Trains a model from random weights on documents: next token, the token after it, balanced experts.

    DeepSeek-V3 §2 and §4.2. Writes DIR/model and DIR/checkpoints; metrics in DIR/metrics.jsonl.
    """

    aliases: ClassVar[Mapping[str, str]] = {"max_tokens": "tokens"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "batch_size": "the step is counted in tokens here; write tokens_per_step=8192",
        "per_device_train_batch_size": "the step is counted in tokens here; write tokens_per_step=8192",
        "learning_rate": "it belongs to the optimiser; write optim.lr=0.003",
        "lr": "it belongs to the optimiser; write optim.lr=0.003",
    }

    model: str | dict[str, Any] = Field(
        "tiny", description="a preset, or {preset: tiny, hidden_size: 256, …} with changes")
    tokenizer: Path = Field(description="a directory with tokenizer.json: DIR/model of the tokenizer stage")
    data: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="tasks, files or stages to learn from")
    tokens: int = Field(1_000_000, ge=1, description="tokens to train on in all")
    tokens_per_step: int = Field(4096, ge=2, description="tokens in one optimiser step")
    tokens_per_batch: int = Field(8192, ge=2, description="most tokens in one forward pass")
    sequence_length: int = Field(512, ge=2, description="longest document, in tokens; longer ones are rejected by name")
    mask_documents: bool = Field(True, description="documents do not see each other; false is V3's pre-training")
    mtp: float = Field(0.3, ge=0, description="weight λ of predicting the token after next")
    balance: float = Field(1e-4, ge=0, description="weight α of the sequence-wise balance loss")
    optim: AdamW = AdamW(lr=3e-3, schedule="wsd")
    checkpoints: Checkpoints = Checkpoints()
    held_out: int = Field(64, ge=0, description="examples kept apart for the held-out loss")
    held_out_every: int = Field(50, ge=1, description="steps between held-out losses")
    log_every: int = Field(1, ge=1, description="steps between lines in metrics.jsonl")
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    @model_validator(mode="after")
    def _fits_the_model(self) -> Pretrain:
        try:
            longest = self.shape(None).max_position_embeddings
        except UsageError as error:  # pydantic collects ValueErrors, and `build` says where they belong
            raise ValueError(str(error)) from error
        if self.sequence_length > longest:
            raise ValueError(f"sequence_length={self.sequence_length}: the model has {longest} positions; set "
                             f"sequence_length ≤ {longest} or raise model.max_position_embeddings")
        return self

    def shape(self, vocab_size: int | None) -> ModelConfig:
        """The model's config, with `vocab_size` rows (None: the preset's) unless the settings say otherwise.

        Raises UsageError where the settings fit no model, or give fewer rows than `vocab_size`.
        """
        values = {"preset": self.model} if isinstance(self.model, str) else dict(self.model)
        preset = values.pop("preset", "tiny")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise UsageError(f"model={show(preset)}: no such preset; there are {', '.join(PRESETS)}: name one of them")
        base = PRESETS[preset].model_dump() | ({} if vocab_size is None else {"vocab_size": vocab_size})
        config = build(ModelConfig, base | values, "model")
        if vocab_size is not None and config.vocab_size < vocab_size:
            raise UsageError(f"model: vocab_size={config.vocab_size}: the tokenizer has {vocab_size} tokens; leave "
                             "vocab_size out, or learn a smaller vocabulary")
        return config

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        config = self.shape(None)
        steps = -(-self.tokens // self.tokens_per_step)
        bill = cost(config)
        return {
            "parameters": bill.parameters, "active per token": bill.active, "steps": steps,
            "tokens per step": self.tokens_per_step, "weights, gradients, optimiser (bytes)": bill.training_bytes(4),
            "arithmetic (FLOP)": bill.flops_per_token() * self.tokens,
            "cache per token (elements)": bill.cache_elements,
        }


def pretrain(cfg: Pretrain, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    from fathom.core import disk
    from fathom.core.records import RecordStore
    from fathom.model import weights
    from fathom.model.device import place
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer
    from fathom.tasks.examples import Example, gather
    from fathom.tasks.rows import BadRow
    from fathom.train import objective, prepare
    from fathom.train.batch import pack, token_mean
    from fathom.train.learner import Learner, mean_loss
    from fathom.train.loader import Loader

    tokenizer = Tokenizer.load(cfg.tokenizer)
    config = cfg.shape(tokenizer.vocab_size)
    limit = cfg.sequence_length

    def encoded(example: Example) -> dict[str, Any]:
        text = example if isinstance(example, str) else "\n".join(m.text for m in example)
        tokens, trained = tokenizer.document(text)
        if len(tokens) > limit + 1:
            raise BadRow(f"longer than {limit} tokens")
        return {"tokens": tokens, "trained": trained}

    store = RecordStore(run.dir / "records", prepare.schema())
    ledger = gather(
        store, cfg.data, lambda number: run.seed("data", number), encoded, run.log, lambda: run.stop_requested)
    every = prepare.examples(store)
    train, aside = every.split(min(cfg.held_out, len(every) // 10), run.rng("held out").permutation(len(every)))
    if not cfg.mask_documents:
        train = prepare.rows(train, limit)

    device, dtype = place(cfg.device, cfg.dtype, cost(config).parameters)
    model = Transformer(config, cfg.recompute).initialise(run.seed("weights")).to(device=device, dtype=dtype)
    loader = Loader(train, lambda epoch: run.rng("order", epoch))
    learner = Learner(model, cfg.optim, run, cfg.checkpoints, loader=loader)
    kept_apart = [aside[i] for i in range(len(aside))]
    held_out = pack(kept_apart, token_mean, cfg.tokens_per_batch, device) if kept_apart else []
    for step in learner.steps(-(-cfg.tokens // cfg.tokens_per_step)):
        examples = loader.take(cfg.tokens_per_step)
        for batch in pack(examples, token_mean, cfg.tokens_per_batch, device):
            learner.backward(objective.next_token(model, batch, cfg.mtp, cfg.balance), batch)
        seen = learner.count_tokens(examples)
        metrics = learner.step()
        if held_out and step % cfg.held_out_every == 0:
            metrics["held_out"] = mean_loss(model, held_out)
            learner.held_out(metrics["held_out"])
        if step % cfg.log_every == 0:
            run.metrics(step, **metrics, tokens=seen, expert_load=learner.expert_load())
    if not disk.is_complete(run.dir / "model"):
        weights.save(run.dir / "model", model, tokenizer)
    run.finish(tokens=learner.tokens, ledger=str(ledger))
