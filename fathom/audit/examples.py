"""Data and templates: what is trained, where it stops, what is cut off, whether generation asks as training showed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.audit import Check, State
from fathom.core.chat import Message
from fathom.core.errors import FathomError
from fathom.model.tokenizer import Encoded, Tokenizer
from fathom.tasks.examples import Example, load_source
from fathom.tasks.rows import BadRow

ROWS = 400  # records of each source that are looked at
MOST_REJECTED = 0.2
MOST_TOO_LONG = 0.1
_TURNS = 4  # of an assistant, whose prompts are compared
_SHOWN = 1_500  # characters of the example that is printed

# fault → what it means, and what to do about it
FAULTS = {
    "template": ("the chat template cannot write it", "correct chat_template.jinja"),
    "empty mask": (
        "no token of it is trained",
        "give every chat an assistant turn with text, and a template that writes it"),
    "empty answer": (
        "an assistant turn has no text: the model would learn to stop at once", "drop or fill these rows"),
    "untrained stop token": (
        "a trained turn does not end in the stop token: the model would never learn to stop",
        "let the template write eos_token right after each assistant turn, and name that token in "
        "tokenizer_config.json"),
    "trained beyond the answer": (
        "tokens of the template are trained besides the answer and its stop token",
        "let the template write eos_token right after the assistant's text"),
    "double BOS": ("it begins with two BOS tokens", "write bos_token once: in the template"),
    "prompt differs": (
        "the prompt that generation asks with is not how training shows it",
        "let the template write the same before an assistant turn in both cases (add_generation_prompt)"),
}


def faults(tokenizer: Tokenizer, chat: Sequence[Message], encoded: Encoded) -> dict[str, str]:
    """What is wrong with a chat as it would be trained: names of FAULTS with a word about this chat."""
    found: dict[str, str] = {}
    answers = [message for message in chat if message.role == "assistant"]
    if any(not message.text.strip() for message in answers):
        found["empty answer"] = "of blanks alone"
    turns = [place for place, message in enumerate(chat) if message.role == "assistant"]
    starts = [place for place, now in enumerate(encoded.trained) if now and not (place and encoded.trained[place - 1])]
    for number, start in enumerate(starts):
        run = list(itertools.takewhile(lambda place: encoded.trained[place], range(start, len(encoded.trained))))
        said, last = [encoded.tokens[place] for place in run], encoded.tokens[run[-1]]
        if last not in tokenizer.stop_ids:
            token = tokenizer.backend.id_to_token(last)
            found["untrained stop token"] = f"its last trained token is {token!r}, the stop token is {tokenizer.eos!r}"
        elif len(turns) == len(starts):
            # templates rewrite what stands before </think> and trim; they add nothing after an answer
            end = chat[turns[number]].text.rpartition("</think>")[2].strip()
            if not tokenizer.decode(said[:-1]).rstrip().endswith(end):
                found["trained beyond the answer"] = f"it ends in {_plain(tokenizer, said[-8:])}"
        if said[0] in tokenizer.control_ids and len(said) > 1:
            found["prompt differs"] = f"the answer is trained to begin with {_plain(tokenizer, said[:1])}"
    if tokenizer.bos_id is not None and encoded.tokens[:2] == [tokenizer.bos_id] * 2:
        found["double BOS"] = f"{tokenizer.bos!r} twice"
    if len(turns) == len(starts):
        for turn, start in zip(turns[:_TURNS], starts, strict=False):
            prompt = tokenizer.prompt(chat[:turn]) if turn else encoded.tokens[:start]
            # Shorter, and what comes between is never trained and never given: nobody would write it.
            if encoded.tokens[: len(prompt)] != prompt or len(prompt) < start:
                asked, shown = (_plain(tokenizer, tokens[-8:]) for tokens in (prompt, encoded.tokens[:start]))
                found["prompt differs"] = f"it ends in {asked}, training in {shown}"
    return found


def _plain(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return repr(tokenizer.backend.decode(list(tokens), skip_special_tokens=False))


@dataclass
class _Seen:
    """What was counted over the records of one source."""

    rows: int = 0
    chats: int = 0
    texts: int = 0
    too_long: int = 0
    longest: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    where: dict[str, str] = field(default_factory=dict)
    shown: Encoded | None = None

    def note(self, name: str, found: Mapping[str, str]) -> None:
        """Counts the faults found in the record called `name`."""
        for fault, said in found.items():
            self.faults[fault] += 1
            self.where.setdefault(fault, f"{name}: {said}")


def check_source(
    stage: str, spec: str | Mapping[str, Any], number: int, tokenizer: Tokenizer | None, longest: int | None
) -> Iterator[Check]:
    """Checks of one entry of `data`; `longest` is the most tokens of an example. Rows alone without a tokenizer."""
    source = load_source(spec, 0)
    seen = _Seen()
    for record in itertools.islice(source.records(), ROWS):
        seen.rows += 1
        try:
            example = source.example(record)
        except BadRow as bad:
            seen.rejects[str(bad)] += 1
            continue
        if tokenizer is not None:
            _look(tokenizer, example, record.id, longest, seen)
    about = f"data {number}"
    yield _rows(stage, about, source.name, seen)
    if tokenizer is None:
        return
    if longest is not None and seen.chats + seen.texts:
        yield _lengths(stage, about, longest, seen)
    if seen.chats:
        yield from _masks(stage, about, tokenizer, seen)


def _look(tokenizer: Tokenizer, example: Example, name: str, longest: int | None, seen: _Seen) -> None:
    if isinstance(example, str):
        seen.texts += 1
        tokens = len(tokenizer.document(example).tokens)
    else:
        seen.chats += 1
        try:
            encoded = tokenizer.chat(example)
        except FathomError as error:
            fault = "empty mask" if "nothing would be trained" in str(error) else "template"
            seen.note(name, {fault: str(error)})
            return
        seen.note(name, faults(tokenizer, example, encoded))
        tokens = len(encoded.tokens)
        if seen.shown is None:
            seen.shown = encoded
    seen.longest = max(seen.longest, tokens - 1)
    seen.too_long += longest is not None and tokens > longest + 1


def _rows(stage: str, about: str, name: str, seen: _Seen) -> Check:
    rejected = seen.rejects.total()
    reasons = ", ".join(f"{reason} ({count})" for reason, count in seen.rejects.most_common(3))
    if not seen.rows:
        return Check(stage, f"{about}: rows", State.FAIL, f"{name} has no records", "name data that has rows")
    if rejected > MOST_REJECTED * seen.rows:
        return Check(
            stage, f"{about}: rows", State.FAIL, f"{rejected} of the first {seen.rows} rows are rejected: {reasons}",
            "correct the rows, or the format that they are meant to have (docs/data.md)")
    state = State.NOTE if rejected else State.OK
    said = f"{seen.rows - rejected} of the first {seen.rows} rows are read{': ' + reasons if reasons else ''}"
    return Check(stage, f"{about}: rows", state, said, "see what they are in `fathom show --rejects` after the run")


def _lengths(stage: str, about: str, longest: int, seen: _Seen) -> Check:
    whole = seen.chats + seen.texts
    said = f"longest {seen.longest} tokens, {seen.too_long} of {whole} longer than sequence_length={longest}"
    remedy = f"set sequence_length={seen.longest}, or shorten them: longer ones are rejected, never cut"
    state = State.FAIL if seen.too_long > MOST_TOO_LONG * whole else State.NOTE if seen.too_long else State.OK
    return Check(stage, f"{about}: truncated answers", state, said, remedy)


def _masks(stage: str, about: str, tokenizer: Tokenizer, seen: _Seen) -> Iterator[Check]:
    for fault, count in seen.faults.items():
        meaning, remedy = FAULTS[fault]
        said = f"{count} of {seen.chats} chats: {meaning} (first: {seen.where[fault]})"
        yield Check(stage, f"{about}: {fault}", State.FAIL, said, remedy)
    if seen.shown is None:
        return
    trained = sum(seen.shown.trained)
    if not seen.faults:
        said = f"in {seen.chats} chats the answers and their stop token are trained, and nothing else"
        yield Check(stage, f"{about}: mask", State.OK, said)
    pieces, left = [], _SHOWN
    for mask, run in itertools.groupby(zip(seen.shown.tokens, seen.shown.trained, strict=True), lambda pair: pair[1]):
        text = tokenizer.backend.decode([token for token, _ in run], skip_special_tokens=False)
        pieces.append((text if len(text) <= left else text[:left] + " …", mask))
        left = max(0, left - len(text))
    yield Check(
        stage, f"{about}: first example", State.OK,
        f"{trained} of {len(seen.shown.tokens)} tokens are trained (green)", shown=tuple(pieces))


def check_control(stage: str, tokenizer: Tokenizer) -> Check:
    """Whether control tokens that a user types stay text."""
    name = "control tokens in text"
    for number in sorted(tokenizer.written_ids):
        token = tokenizer.backend.id_to_token(number)
        if number in tokenizer.encode(f"a {token} b"):
            return Check(
                stage, name, State.FAIL, f"{token!r} typed by a user becomes the control token",
                "mark it as special in tokenizer.json (added_tokens: special: true)")
    return Check(stage, name, State.OK, "typed by a user they stay text")
