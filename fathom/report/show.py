"""Looking into a run from the terminal: records, completions with their verdicts, rejects with their reasons."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from fathom.core.console import trained_pieces, trained_text, visible
from fathom.core.errors import UsageError
from fathom.report.read import Row, RunDir, Stage, prompt_text, read_run

if TYPE_CHECKING:
    from fathom.model.tokenizer import Tokenizer

STYLES = {"right": "green", "wrong": "red", "unread": "yellow", "failed": "magenta"}
MARKS = {"right": "✓", "wrong": "✕", "unread": "?", "failed": "!"}


def show(
    run_dir: Path,
    n: int = 5,
    rejects: bool = False,
    outcome: str | None = None,
    step: int | None = None,
    width: int = 2000,
    console: Console | None = None,
) -> None:
    """Prints the first `n` items of every stage at `run_dir` that has any; texts are cut after `width` characters.

    Problems with their completions for training and evaluation, kept records for stages that make data; `rejects`
    prints rejected records instead. `outcome` (right, wrong, unread, failed) keeps problems with such a completion and
    prints only these; `step` picks a training step. Raises UsageError where nothing is there to show.
    """
    if outcome is not None and outcome not in STYLES:
        raise UsageError(f"outcome={outcome}: no such outcome; use one of {', '.join(STYLES)}")
    out = console or Console()
    run = read_run(Path(run_dir))
    shown = 0
    for stage in run.stages:
        items = _rejects(stage) if rejects else _items(stage, outcome, step)
        for i, item in enumerate(itertools.islice(items, n)):
            if i == 0:
                out.print(Text(f"{stage.name}  {_about(stage, rejects)}", style="bold"))
            for text in item.lines(width):
                out.print(text, soft_wrap=True, highlight=False)
            shown += 1
    there = outcome is not None and step is None and any(True for s in run.stages for _ in _items(s, None, None))
    if not shown and (rejects or there):  # that there is none is an answer, and no error
        out.print(Text(f"{run.dir}: {_nothing(run, rejects, outcome, step)}"))
    elif not shown:
        raise UsageError(f"{run.dir}: {_nothing(run, rejects, outcome, step)}")


class _Record:
    def __init__(self, row: Row, tokenizer: Tokenizer | None = None) -> None:
        self.row, self.tokenizer = row, tokenizer

    def lines(self, width: int) -> Iterator[Text]:
        row = self.row
        yield Text(f"── {row.id}", style="dim") + (
            Text(f"  from {row.source}", style="dim") if row.source else Text("")
        )
        if row.reason is not None:
            yield Text(f"rejected: {row.reason}", style="yellow")
        if self.tokenizer is not None and isinstance(row.data.get("trained"), list):
            yield self._coloured(self.tokenizer, row.data["tokens"], row.data["trained"])
            yield Text("")
            return
        for name, value in row.data.items():
            if value is None:
                continue
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if name in ("messages", "prompt") and isinstance(value, list):
                text = "\n" + "\n".join(
                    f"  {m.get('role', '')}: {prompt_text([m])}" for m in value if isinstance(m, dict)
                )
            yield Text(f"{name}: ", style="cyan") + Text(cut(text, width))
        yield Text("")


    @staticmethod
    def _coloured(tokenizer: Tokenizer, tokens: Sequence[int], trained: Sequence[bool]) -> Text:
        """The example as the model sees it, control tokens too: what it is trained on in green, the rest dim; where no
        colours are seen, it stands between marks."""
        def decode(run: list[int]) -> str:
            return cut(tokenizer.backend.decode(run, skip_special_tokens=False), 4000)

        marked = not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
        text = trained_text(trained_pieces(decode, tokens, trained), marked)
        seen = "between ⟦ and ⟧" if marked else "green"
        text.append(f"\n{sum(trained)} of {len(tokens)} tokens trained ({seen})", style="dim italic")
        return text


class _Problem:
    def __init__(self, row: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        self.row, self.samples = row, samples

    def lines(self, width: int) -> Iterator[Text]:
        row = self.row
        step = f"step {row['step']}  " if row.get("step") is not None else ""
        yield Text(f"── {step}{row.get('problem', '')}", style="dim")
        yield Text(cut(prompt_text(row.get("prompt")), width))
        yield Text(f"reference answer: {row.get('answer', '')}", style="cyan")
        for sample in self.samples:
            outcome = str(sample.get("outcome", ""))
            numbers = [f"reward {sample['reward']:.3g}" if isinstance(sample.get("reward"), (int, float)) else ""]
            parts = sample.get("rewards")
            if isinstance(parts, dict) and len(parts) > 1:
                numbers += [f"{name} {'none' if value is None else f'{value:.3g}'}" for name, value in parts.items()]
            tokens = sample.get("tokens")
            numbers += [f"{len(tokens) if isinstance(tokens, list) else tokens} tokens" if tokens is not None else ""]
            about = ", ".join(part for part in (str(sample.get("reason") or ""), *numbers) if part)
            yield Text(f"{MARKS.get(outcome, '·')} {outcome}", style=STYLES.get(outcome, "")) + Text(
                f"  {about}", style="dim"
            )
            yield Text("  " + cut(str(sample.get("text", "")), width).replace("\n", "\n  "))
        yield Text("")


def cut(text: str, width: int) -> str:
    """`text` without its middle where it is longer than `width`, saying how much is left out; control bytes shown."""
    text = visible(text)
    if len(text) <= width:
        return text
    head = width * 2 // 3
    return f"{text[:head]} … {len(text) - width} characters left out … {text[len(text) - (width - head) :]}"


def _items(stage: Stage, outcome: str | None, step: int | None) -> Iterable[_Record | _Problem]:
    if (stage.dir / "samples").is_dir():
        return _problems(stage.samples(), "group", outcome, step)
    if stage.scores:
        return _problems((row.data for row in stage.kept()), "samples", outcome, None)
    if outcome is not None or step is not None:
        return ()
    tokenizer = _tokenizer(stage)
    return (_Record(row, tokenizer) for row in stage.kept())


def _tokenizer(stage: Stage) -> Tokenizer | None:
    """The tokenizer that a training stage read, where it still lies where the settings say."""
    for name in ("tokenizer", "init"):
        path = stage.settings.get(name)
        if isinstance(path, str) and (Path(path) / "tokenizer.json").is_file():
            from fathom.model.tokenizer import Tokenizer  # of the extra `model`, which a reader of runs may lack

            return Tokenizer.load(Path(path))
    return None


def _problems(rows: Iterable[dict[str, Any]], name: str, outcome: str | None, step: int | None) -> Iterator[_Problem]:
    for row in rows:
        listed = row.get(name)
        samples = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
        samples = [s for s in samples if outcome is None or s.get("outcome") == outcome]
        if samples and (step is None or row.get("step") == step):
            yield _Problem(row, samples)


def _rejects(stage: Stage) -> Iterator[_Record]:
    return map(_Record, stage.rejected())


def _about(stage: Stage, rejects: bool) -> str:
    ledger = stage.ledger
    if ledger is None:
        return stage.system
    return str(ledger) if rejects else f"{ledger.outputs} records"


def _nothing(run: RunDir, rejects: bool, outcome: str | None, step: int | None) -> str:
    if rejects:
        return "no rejected records in any stage"
    if step is None and outcome is not None:
        return f"no completion is {outcome}"
    if step is not None:
        return "no completion fits outcome and step; leave one of them out"
    return f"no records, samples or evaluated problems in {', '.join(s.name for s in run.stages)}"
