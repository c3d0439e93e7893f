"""SFT: a model taught by examples, the assistant's turns alone being trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from fathom.core.config import Settings
from fathom.core.run import Run
from fathom.model.config import Adapters
from fathom.train.schedule import AdamW, Checkpoints


class Sft(Settings):
    """Teaches a model by chats, or by tasks with worked solutions.

    Only the assistant's turns are trained, stop token included. DeepSeek-V3 §5.1. Writes DIR/model and DIR/checkpoints.

    With `lora.rank=16` the weights are frozen and adapters beside them are trained, which wants about ten times the
    learning rate. DIR/adapter then holds them as PEFT reads them, and DIR/model has them merged.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "num_train_epochs": "epochs", "max_length": "sequence_length", "max_seq_length": "sequence_length"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "batch_size": "the step is counted in tokens here; write tokens_per_step=4096",
        "per_device_train_batch_size": "the step is counted in tokens here; write tokens_per_step=4096",
        "learning_rate": "it belongs to the optimiser; write optim.lr=0.001",
        "lr": "it belongs to the optimiser; write optim.lr=0.001",
        "packing": "examples are always packed and never see each other; leave it out",
    }

    init: Path = Field(description="the model directory to start from")
    data: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="tasks, files or stages to learn from")
    epochs: float = Field(2.0, gt=0, description="times through the data")
    tokens_per_step: int = Field(4096, ge=2, description="tokens in one optimiser step")
    tokens_per_batch: int = Field(8192, ge=2, description="most tokens in one forward pass")
    sequence_length: int = Field(512, ge=2, description="longest example, in tokens; longer ones are rejected by name")
    mtp: float = Field(0.3, ge=0, description="weight λ of predicting the token after next, where the model can")
    balance: float = Field(0.0, ge=0, description="weight α of the sequence-wise balance loss")
    lora: Adapters = Field(None, description="train adapters beside frozen weights; null trains every weight")
    optim: AdamW = AdamW(lr=1e-3, schedule="cosine", bias_speed=0.0)
    checkpoints: Checkpoints = Checkpoints()
    held_out: int = Field(64, ge=0, description="examples kept apart for the held-out loss")
    held_out_every: int = Field(25, ge=1, description="steps between held-out losses")
    log_every: int = Field(1, ge=1, description="steps between lines in metrics.jsonl")
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    @model_validator(mode="after")
    def _frozen_stays(self) -> Sft:
        if self.lora:
            self.lora.check_biases(self.optim.bias_speed)
        return self

    def plan(self) -> dict[str, Any]:
        """What is going to be done, for --dry-run; how many steps that is the data will tell."""
        return {
            "init": f"{self.init} (`fathom inspect` tells its parameters and memory)",
            "trained": f"adapters of rank {self.lora.rank}" if self.lora else "every weight", "epochs": self.epochs,
            "tokens per step": self.tokens_per_step, "longest example": self.sequence_length,
            "learning rate": self.optim.lr,
        }


def sft(cfg: Sft, run: Run) -> None:
    """Trains as `cfg` says; the result is DIR/model."""
    from fathom.core import disk
    from fathom.core.errors import UsageError
    from fathom.core.records import RecordStore
    from fathom.model import adapter, lora, weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.examples import Example, gather
    from fathom.tasks.rows import BadRow
    from fathom.train import objective, prepare
    from fathom.train.batch import pack, token_mean
    from fathom.train.learner import Learner, mean_loss
    from fathom.train.loader import Loader

    config = weights.read_config(cfg.init)
    device, dtype = place(cfg.device, cfg.dtype, cost(config).parameters)
    model, tokenizer = weights.load(cfg.init, dtype, device)
    model.recompute = cfg.recompute
    if cfg.lora:
        trained = lora.attach(model, cfg.lora, run.seed("lora"), mtp=cfg.mtp > 0)
        run.log.info("the weights are frozen; adapters of %d parameters are trained", trained)
    limit = cfg.sequence_length
    if limit > config.max_position_embeddings:
        raise UsageError(f"sequence_length={limit}: {cfg.init} has {config.max_position_embeddings} positions; set "
                         f"sequence_length ≤ {config.max_position_embeddings}")

    def encoded(example: Example) -> dict[str, Any]:
        tokens, trained = prepare.encode(tokenizer, example)
        if len(tokens) > limit + 1:
            raise BadRow(f"longer than {limit} tokens")
        return {"tokens": tokens, "trained": trained}

    store = RecordStore(run.dir / "records", prepare.schema())
    ledger = gather(
        store, cfg.data, lambda number: run.seed("data", number), encoded, run.log, lambda: run.stop_requested)
    every = prepare.examples(store)
    train, aside = every.split(min(cfg.held_out, len(every) // 10), run.rng("held out").permutation(len(every)))
    loader = Loader(train, lambda epoch: run.rng("order", epoch))
    learner = Learner(model, cfg.optim, run, cfg.checkpoints, loader=loader)
    kept_apart = [aside[i] for i in range(len(aside))]
    held_out = pack(kept_apart, token_mean, cfg.tokens_per_batch, device) if kept_apart else []
    steps = max(1, round(cfg.epochs * (len(train.tokens) - len(train)) / cfg.tokens_per_step))
    for step in learner.steps(steps):
        examples = loader.take(cfg.tokens_per_step)
        for batch in pack(examples, token_mean, cfg.tokens_per_batch, device):
            learner.backward(objective.next_token(model, batch, cfg.mtp, cfg.balance), batch)
        seen = learner.count_tokens(examples)
        metrics = learner.step()
        if held_out and (step % cfg.held_out_every == 0 or step == steps):
            metrics["held_out"] = mean_loss(model, held_out)
            learner.held_out(metrics["held_out"])
        if step % cfg.log_every == 0:
            run.metrics(step, **metrics, tokens=seen, expert_load=learner.expert_load())
    if cfg.lora:
        adapter.export(run.dir / "adapter", model, cfg.lora, weights.resolve(cfg.init, dtype))
    if not disk.is_complete(run.dir / "model"):
        weights.save(run.dir / "model", model, tokenizer)
    run.finish(tokens=learner.tokens, ledger=str(ledger))
