"""Tokenizer: a byte-level BPE vocabulary learnt from the training data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fathom.core.config import Settings
from fathom.core.run import Run


class TokenizerSettings(Settings):
    """Learns a byte-level BPE vocabulary and writes it, with a chat template, to DIR/model.

    Digits are tokens of their own; control tokens, chat template and stop token have the form of the family named.
    """

    data: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="tasks and files whose text the vocabulary is learnt from")
    template: Literal["v2", "v3", "r1", "llama3", "qwen2", "qwen2.5", "qwen3", "smollm2"] = Field(
        "v3", description="family whose chat template and control tokens it gets")
    infill: bool = Field(False, description="add the FIM markers that fim of pretrain needs")
    vocab_size: int = Field(512, ge=265, le=1_000_000, description="most tokens, control tokens included")


def tokenizer(cfg: TokenizerSettings, run: Run) -> None:
    """Trains the tokenizer of `cfg`; the result is DIR/model/tokenizer.json and its companions."""
    from fathom.core import disk
    from fathom.core.records import RecordStore
    from fathom.model.tokenizer import Tokenizer
    from fathom.tasks.examples import Example, gather

    def text(example: Example) -> dict[str, Any]:
        return {"text": example if isinstance(example, str) else "\n".join(m.text for m in example)}

    store = RecordStore(run.dir / "records")
    ledger = gather(
        store, cfg.data, lambda number: run.seed("data", number), text, run.log, lambda: run.stop_requested)
    learnt = Tokenizer.train(
        (record.data["text"] for record in store.kept()), cfg.vocab_size, cfg.template, cfg.infill)
    if learnt.vocab_size < cfg.vocab_size:
        run.log.info("the data has no more pairs to merge: %d tokens", learnt.vocab_size)
    if not disk.is_complete(run.dir / "model"):
        with disk.commit(run.dir / "model") as folder:
            for name, content in learnt.files().items():
                folder.write(name, content)
    run.finish(vocab_size=learnt.vocab_size, ledger=str(ledger))
