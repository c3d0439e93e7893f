"""Pretrain: a model trained from nothing on documents, with DeepSeek-V3's objective."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fathom.core.config import Settings, build
from fathom.core.errors import UsageError
from fathom.core.run import Run
from fathom.model.config import ModelConfig
from fathom.model.cost import cost
from fathom.model.presets import preset
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
    fim: float = Field(0, ge=0, le=1, description="share of documents told as prefix, suffix, middle; V3 has 0.1")
    mtp: float = Field(0.3, ge=0, description="weight λ of predicting the token after next")
    balance: float = Field(1e-4, ge=0, description="weight α of the sequence-wise balance loss between experts")
    device_balance: float = Field(0.0, ge=0, description="weight α2 of the same between groups of experts (V2: 0.05)")
    communication_balance: float = Field(0.0, ge=0, description="weight α3 of what groups are sent (V2: 0.02)")
    capacity: float | None = Field(
        None, gt=0, description="a group of experts drops what exceeds so many even shares (V2: 1.0); null: none")
    exempt: float = Field(0.1, ge=0, le=1, description="share of sequences of which nothing is dropped")
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
            shape = self.shape(None)
        except UsageError as error:  # pydantic collects ValueErrors, and `build` says where they belong
            raise ValueError(str(error)) from error
        longest = shape.max_position_embeddings
        if self.sequence_length > longest:
            raise ValueError(f"sequence_length={self.sequence_length}: the model has {longest} positions; set "
                             f"sequence_length ≤ {longest} or raise model.max_position_embeddings")
        between = {"device_balance": self.device_balance, "communication_balance": self.communication_balance,
                   "capacity": self.capacity}
        for name, value in between.items():
            if value and shape.n_group == 1:
                raise ValueError(f"{name}={value}: concerns groups of experts, and the model has n_group=1; set "
                                 f"model.n_group ≥ 2, or leave {name} out")
        return self

    def shape(self, vocab_size: int | None) -> ModelConfig:
        """The model's config, with `vocab_size` rows (None: the preset's) unless the settings say otherwise.

        Raises UsageError where the settings fit no model, or give fewer rows than `vocab_size`.
        """
        values = {"preset": self.model} if isinstance(self.model, str) else dict(self.model)
        name = values.pop("preset", "tiny")
        base = preset(name).model_dump() | ({} if vocab_size is None else {"vocab_size": vocab_size})
        config = build(ModelConfig, base | values, "model")
        if vocab_size is not None and config.vocab_size < vocab_size:
            raise UsageError(f"model: vocab_size={config.vocab_size}: the tokenizer has {vocab_size} tokens; leave "
                             "vocab_size out, or learn a smaller vocabulary")
        return config

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run; with the tokenizer's vocabulary where it is there already."""
        from fathom.model.tokenizer import Tokenizer

        there = (self.tokenizer / "tokenizer.json").is_file()
        config = self.shape(Tokenizer.load(self.tokenizer).vocab_size if there else None)
        steps = -(-self.tokens // self.tokens_per_step)
        bill = cost(config)
        return {
            "vocabulary": config.vocab_size, "parameters": bill.parameters,
            "of multi-token prediction besides": bill.mtp, "active per token": bill.active, "steps": steps,
            "tokens per step": self.tokens_per_step,
            "weights, gradients, optimiser (bytes)": bill.training_bytes("fp32"),
            "arithmetic (FLOP)": bill.training_flops(self.sequence_length) * self.tokens,
            "cache per token (elements)": bill.cache_elements,
        }


def pretrain(cfg: Pretrain, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    import torch

    from fathom.core import disk
    from fathom.core.records import RecordStore
    from fathom.model import weights
    from fathom.model.device import place
    from fathom.model.moe import Dropping
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer
    from fathom.tasks.examples import Example, gather
    from fathom.tasks.rows import BadRow
    from fathom.train import objective, prepare
    from fathom.train.batch import Batch, pack, token_mean
    from fathom.train.learner import Learner, mean_loss
    from fathom.train.loader import Loader

    tokenizer = Tokenizer.load(cfg.tokenizer)
    config = cfg.shape(tokenizer.vocab_size)
    limit = cfg.sequence_length

    def encoded(example: Example) -> dict[str, Any]:
        text = example if isinstance(example, str) else "\n".join(m.text for m in example)
        if cfg.fim:  # the cut is named by the text, so it is the same wherever and whenever it is made
            name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            tokens, trained = tokenizer.fim(text, run.rng("fim", name), cfg.fim)
        else:
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

    def dropping(batch: Batch, step: int, number: int) -> Dropping | None:
        if cfg.capacity is None:
            return None
        draw = run.rng("exempt", step, number).random(batch.layout.sequences)
        exempt_S = torch.from_numpy(draw < cfg.exempt).to(device)
        return Dropping(cfg.capacity, exempt_S[batch.layout.sequence_T])

    for step in learner.steps(-(-cfg.tokens // cfg.tokens_per_step)):
        examples = loader.take(cfg.tokens_per_step)
        for number, batch in enumerate(pack(examples, token_mean, cfg.tokens_per_batch, device)):
            learner.backward(objective.next_token(
                model, batch, cfg.mtp, cfg.balance, device_balance=cfg.device_balance,
                communication_balance=cfg.communication_balance, dropping=dropping(batch, step, number)), batch)
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
