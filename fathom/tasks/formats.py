r"""The table of row formats: how a row is recognised, and what it becomes.

A **chat** format gives an example, something to learn from. A **problem** format gives a question with its answer and,
where there is one, a worked solution, so that it can be asked, and learnt from too. `FORMATS` at the end is the table;
docs/data.md shows a row of each. A row that does not fit is a reject with a reason, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fathom.core.chat import ROLES, Image, Message
from fathom.core.errors import FathomError
from fathom.judge.extract import boxes
from fathom.judge.maths import LONGEST_ANSWER, number
from fathom.tasks.rows import BadRow
from fathom.tasks.solutions import answer_format

Example = tuple[Message, ...] | str  # a chat, or a plain text
Kind = Literal["chat", "problem"]

LOOKED_AT = 100  # rows from which a file's format is told
_QUESTIONS = ("question", "problem", "prompt")
_ABOUT = ("level", "type", "subject")  # what MATH says about a problem; kept with it
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K: "48/2 = <<48/2=24>>24"
_TAGS = re.compile(r"</?(?:think|answer)>")
_WRITTEN = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # transcripts of preferences, as hh-rlhf writes them
_SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "function_call": "assistant", "system": "system", "tool": "tool", "observation": "tool",
}


@dataclass(frozen=True)
class Asked:
    """What a problem row says: the prompt, the answer and, where there is one, a completion to learn from."""

    prompt: tuple[Message, ...]
    answer: str
    solution: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One row of the table. A row of data is recognised by the keys in `needs`, then by `mark` where one is given."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example | Asked]
    may_have: tuple[str, ...] = ()  # other keys that are read
    mark: Callable[[Mapping[str, Any]], bool] = field(default=lambda row: True)

    def has_keys(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has what this format needs, be it right or wrong."""
        return all(key in row for key in self.needs)

    def example(self, row: Mapping[str, Any]) -> Example:
        """The row of a chat format as an example; BadRow says what is wrong with it."""
        found = self.read(row)
        if isinstance(found, Asked):
            raise TypeError(f"{self.name} is a problem format; ask it for problems")
        return found

    def problem(self, row: Mapping[str, Any]) -> Asked:
        """The row of a problem format as a problem; BadRow says what is wrong with it."""
        found = self.read(row)
        if not isinstance(found, Asked):
            raise TypeError(f"{self.name} is a chat format; ask it for examples")
        if len(found.answer) > LONGEST_ANSWER:
            raise BadRow(f"answer is longer than {LONGEST_ANSWER} characters")
        return found


def recognise(rows: Iterable[Mapping[str, Any]], kinds: tuple[Kind, ...] = ("chat", "problem")) -> tuple[Format, ...]:
    """The formats that the rows have, the most frequent first; none where no row has a known one."""
    votes: Counter[str] = Counter()
    for row in rows:
        found = next((f for f in FORMATS if f.kind in kinds and f.has_keys(row) and f.mark(row)), None)
        if found is not None:
            votes[found.name] += 1
    named = {form.name: form for form in FORMATS}
    return tuple(named[name] for name, _ in votes.most_common())


def form_of(row: Mapping[str, Any], usual: Format) -> Format:
    """The format to read a row by: the file's `usual` one where its keys are there, else one of its kind that fits.

    A row that fits none is read by the usual one, which says what is missing.
    """
    if usual.has_keys(row):
        return usual
    return next((f for f in FORMATS if f.kind == usual.kind and f.has_keys(row) and f.mark(row)), usual)


def question_id(row: Mapping[str, Any], otherwise: str) -> str:
    """16 characters that name a row by its question alone, whatever the answer; `otherwise` where it has none."""
    question = _question(row)
    if isinstance(question, str) and question.strip():
        content = question.strip()
    elif isinstance(question, list) and question:
        content = json.dumps(question, sort_keys=True)
    else:
        return otherwise
    return hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]


# Texts and turns.


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    _encodable(value, name)
    return value


def _encodable(text: str, name: str) -> None:
    """Refuses half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} is not UTF-8") from None


def _optional(row: Mapping[str, Any], name: str) -> str:
    """The text of a key that may be absent or empty."""
    return _text(row, name) if row.get(name) not in (None, "") else ""


def _turns(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    turns = row.get(name)
    if turns is None:
        raise BadRow(f"{name} is missing")
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{name} is not a list of turns")
    return tuple(_turn(turn) for turn in turns)


def _turn(turn: Any) -> Message:
    """A turn as OpenAI's chat format writes it. What would not be trained, and would be missed, is refused."""
    if not isinstance(turn, Mapping):
        raise BadRow("a message is malformed")
    if isinstance(role := turn.get("role"), str) and role not in ROLES:
        raise BadRow("a message has an unknown role")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow("a message has tool calls")
    if turn.get("weight", 1) not in (None, 1):
        raise BadRow("a message has a weight")
    try:
        message = Message.from_json(turn)
    except FathomError:
        raise BadRow("a message is malformed") from None
    if isinstance(message.content, tuple) and any(isinstance(part, Image) for part in message.content):
        raise BadRow("a message has an image")
    _encodable(message.text, "a message")
    return _with_reasoning(turn, message)


def _with_reasoning(turn: Mapping[str, Any], message: Message) -> Message:
    """The message with its reasoning in the text, where DeepSeek's API and servers after it keep the two apart."""
    reasoning = turn.get("reasoning_content") or turn.get("reasoning")
    if not reasoning:
        return message
    if not isinstance(reasoning, str) or message.role != "assistant" or "</think>" in message.text:
        raise BadRow("a message has reasoning that cannot be joined with it")
    _encodable(reasoning, "a message")
    return Message("assistant", f"<think>\n{reasoning.strip()}\n</think>\n\n{message.text}")


def _taught(chat: tuple[Message, ...]) -> tuple[Message, ...]:
    if not any(message.role == "assistant" and message.text.strip() for message in chat):
        raise BadRow("no assistant turn")
    return chat


def _prompt(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """What is asked: a text of the user's, or turns that end where the assistant speaks."""
    if not isinstance(row.get(name), list):
        return (Message("user", _text(row, name)),)
    turns = _turns(row, name)
    if turns[-1].role not in ("user", "tool"):
        raise BadRow(f"{name} does not end with the user")
    return turns


def _reply(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """What is answered: a text of the assistant's, or turns that begin with one."""
    if not isinstance(row.get(name), list):
        return (Message("assistant", _text(row, name)),)
    turns = _taught(_turns(row, name))
    if turns[0].role != "assistant":
        raise BadRow(f"{name} does not begin with the assistant")
    return turns


# Chat formats.


def _messages(row: Mapping[str, Any]) -> Example:
    return _taught(_turns(row, "messages"))


def _conversations(row: Mapping[str, Any]) -> Example:
    return _taught(_turns(row, "conversations"))


def _sharegpt(row: Mapping[str, Any]) -> Example:
    turns = row.get("conversations")
    if turns is None:
        raise BadRow("conversations is missing")
    if not isinstance(turns, list) or not turns:
        raise BadRow("conversations is not a list of turns")
    chat = tuple(_said(turn) for turn in turns)
    system = _optional(row, "system")
    return _taught((Message("system", system), *chat) if system else chat)


def _said(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow("a message is malformed")
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or not isinstance(value, str):
        raise BadRow("a message is malformed")
    if speaker not in _SHAREGPT:
        raise BadRow("a message has an unknown role")
    _encodable(value, "a message")
    return Message(_SHAREGPT[speaker], value)


def _has_speakers(row: Mapping[str, Any]) -> bool:
    turns = row["conversations"]
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "from" in turn for turn in turns)


def _completed(row: Mapping[str, Any]) -> Example:
    return (*_prompt(row, "prompt"), *_reply(row, "completion"))


def _preferred(row: Mapping[str, Any]) -> Example:
    """The chosen one of two replies to one prompt, which stands apart or is what both begin with."""
    chosen, rejected = _choice(row, "chosen"), _choice(row, "rejected")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    apart = _prompt(row, "prompt") if row.get("prompt") is not None else ()
    if apart and chosen[0].role == rejected[0].role == "assistant":
        return _taught((*apart, *chosen))
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not any(message.role == "user" for message in chosen[:shared]):
        raise BadRow("chosen and rejected share no prompt")
    if apart and chosen[: len(apart)] != apart and apart[-1] not in chosen[:shared]:
        raise BadRow("chosen does not begin with the prompt")
    _taught(chosen[shared:])
    return chosen


def _choice(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    if isinstance(row.get(name), list):
        turns = _turns(row, name)
    else:
        text = _text(row, name)
        if row.get("prompt") is not None:
            return (Message("assistant", text),)
        turns = _transcript(text)
    if turns[-1].role != "assistant" or not turns[-1].text.strip():
        raise BadRow(f"{name} does not end with the assistant")
    return turns


def _transcript(text: str) -> tuple[Message, ...]:
    """`Human: …`, blank line, `Assistant: …` as turns. Where two plain texts part is not where their prompt ends."""
    pieces = _SPEAKER.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise BadRow("chosen and rejected share no prompt")
    speakers = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(speakers[name], said.strip()) for name, said in zip(pieces[1::2], pieces[2::2], strict=True))


def _alpaca(row: Mapping[str, Any]) -> Example:
    if row.get("history"):
        raise BadRow("history is not read")
    instruction, given, system = _text(row, "instruction"), _optional(row, "input"), _optional(row, "system")
    asked = Message("user", f"{instruction}\n\n{given}" if given.strip() else instruction)
    chat = (asked, Message("assistant", _text(row, "output")))
    return (Message("system", system), *chat) if system else chat


def _document(row: Mapping[str, Any]) -> Example:
    return _text(row, "text")


# Problem formats.


def _question(row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in _QUESTIONS if row.get(name) is not None), None)


def _asked(row: Mapping[str, Any]) -> tuple[Message, ...]:
    question = _question(row)
    if isinstance(question, list):
        return _prompt({"prompt": question}, "prompt")
    return (Message("user", _text({"question": question}, "question").strip()),)


def _answer(row: Mapping[str, Any], name: str = "answer") -> str:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return _text({name: value}, name).strip()


def _plain(row: Mapping[str, Any]) -> Asked:
    return Asked(_asked(row), _answer(row))


def _worked(row: Mapping[str, Any]) -> Asked:
    answer = _answer(row)
    return Asked(_asked(row), answer, _solution(_text(row, "solution").strip(), answer))


def _gsm8k(row: Mapping[str, Any]) -> Asked:
    prompt = _asked(row)
    working, answer = _hashed(_answer(row))
    return Asked(prompt, answer, _solution(working, answer))


def _hashed(text: str) -> tuple[str, str]:
    """Working, without GSM8K's marks for a calculator, and final answer."""
    working, mark, final = text.rpartition("####")
    answer = _without_commas(final.strip())
    if not mark or not answer:
        raise BadRow("no answer after ####")
    return _CALCULATOR.sub("", working).strip(), answer


def _without_commas(answer: str) -> str:
    """A number without its thousands commas, which 79 of GSM8K's 7,473 train answers have; anything else as it is."""
    return answer.replace(",", "") if number(answer) is not None else answer


def _math(row: Mapping[str, Any]) -> Asked:
    prompt, solution = _asked(row), _text(row, "solution").strip()
    if row.get("answer") is not None:
        answer = _answer(row)
    else:
        found = boxes(solution)
        if not found:
            raise BadRow("no boxed answer in the solution")
        answer = _answer({"answer": found[-1]})
    meta = {name: row[name] for name in _ABOUT if isinstance(row.get(name), str | int | float)}
    for name, value in meta.items():
        _encodable(str(value), name)
    return Asked(prompt, answer, _solution(solution, answer), meta)


def _solution(working: str, answer: str) -> str:
    if not _TAGS.search(working):
        return answer_format(working, answer)
    if len(_TAGS.findall(working)) == 4 and _WRITTEN.fullmatch(working):
        return working
    raise BadRow("solution has think or answer tags in disorder")


def _verl(row: Mapping[str, Any]) -> Asked:
    """verl's prompt says itself how to answer ("after ####", "in a box"), so a solution stays as it is written."""
    prompt = _prompt(row, "prompt")
    if not isinstance(reward := row.get("reward_model"), Mapping):
        raise BadRow("reward_model is not a mapping" if reward is not None else "reward_model is missing")
    if row.get("ability") in ("code", "coding"):
        raise BadRow("ability is code")
    answer = _answer(reward, "ground_truth")
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, Mapping):
        raise BadRow("extra_info is not a mapping")
    return Asked(prompt, answer, _written(extra or {}, answer))


def _written(extra: Mapping[str, Any], answer: str) -> str | None:
    """The worked solution in `extra_info`: `solution`, or an `answer` that is worked as GSM8K's are."""
    if extra.get("solution") is not None:
        solution = _text(extra, "solution").strip()
        return _solution(solution, answer) if _TAGS.search(solution) else solution
    worked = extra.get("answer")
    if not isinstance(worked, str) or "####" not in worked:
        return None
    _encodable(worked, "solution")
    working, final = _hashed(worked)
    if final != _without_commas(answer):
        raise BadRow("ground_truth is not the answer of the solution")
    return f"{working}\n#### {final}"


# In order: of several that a row fits, the first. `text` comes last, since many sets add it to what they hold.
FORMATS = (
    Format("messages", "chat", ("messages",), _messages),
    Format("sharegpt", "chat", ("conversations",), _sharegpt, ("system",), _has_speakers),
    Format("conversations", "chat", ("conversations",), _conversations),
    Format("prompt/completion", "chat", ("prompt", "completion"), _completed),
    Format("chosen/rejected", "chat", ("chosen", "rejected"), _preferred, ("prompt",)),
    Format("alpaca", "chat", ("instruction", "output"), _alpaca, ("input", "system", "history")),
    Format("verl", "problem", ("prompt", "reward_model"), _verl, ("data_source", "ability", "extra_info")),
    Format("question/solution/answer", "problem", ("question", "solution", "answer"), _worked),
    Format("gsm8k", "problem", ("question", "answer"), _gsm8k, mark=lambda row: "####" in str(row["answer"])),
    Format("question/answer", "problem", ("question", "answer"), _plain),
    Format("problem/solution", "problem", ("problem", "solution"), _math, ("answer", *_ABOUT)),
    Format("problem/answer", "problem", ("problem", "answer"), _plain),
    Format("prompt/answer", "problem", ("prompt", "answer"), _plain),
    Format("text", "chat", ("text",), _document),
)
FIELDS = frozenset(key for form in FORMATS for key in (*form.needs, *form.may_have))
