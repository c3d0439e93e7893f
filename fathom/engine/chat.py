"""`fathom chat`: a conversation in the terminal, with a model of this machine or with an endpoint.

Importing this loads no tensor library and no client.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fathom.core.chat import Message, Sampling
from fathom.core.config import build, merge, parse_overrides
from fathom.core.console import visible
from fathom.core.errors import FathomError, UsageError
from fathom.engine.talkers import Interrupted, Loop, Part, Talker, Usage, meet

if TYPE_CHECKING:
    from rich.console import Console

JOINERS = "\u200c\u200d"  # inside words of some scripts and inside emoji; no terminal obeys them
BROKEN_PIPE = 141  # the shell's word for a program whose reader went away


def shown(text: str) -> str:
    """`text` with whatever a terminal might obey spelt out; blanks of all kinds and joiners stay."""
    if text.isascii():
        return visible(text)
    return "".join(c if c in JOINERS or unicodedata.category(c) == "Zs" else visible(c) for c in text)


@dataclass
class Turn:
    """A question and what came of it."""

    question: str
    answer: str = ""
    thinking: str = ""
    usage: Usage | None = None
    parts: int = 0
    first: float = 0.0  # seconds from the question to the first part
    span: float = 0.0  # seconds from the first part to the last
    seed: int = 0

    def told(self) -> str:
        """Counts and times."""
        count = self.usage.completion if self.usage else self.parts
        about = "" if self.usage else "≈ "
        told = [f"{about}{count:,} token{'' if count == 1 else 's'}"]
        if count > 1 and self.span > 0:
            told.append(f"{about}{(count - 1) / self.span:,.1f} tokens/s")
        told.append(f"first after {self.first:.2f} s")
        if self.usage:
            cached = f" ({self.usage.cached:,} cached)" if self.usage.cached else ""
            told.append(f"prompt {self.usage.prompt:,}{cached}")
        return ", ".join(told)


@dataclass
class Chat:
    """A conversation and how it is shown."""

    talker: Talker
    loop: Loop
    console: Console
    chosen: dict[str, Any] = field(default_factory=dict)  # fields of Sampling
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """What is sent: the last question, and before it the exchanges that have an answer."""
        asked = [Message("system", self.system)] if self.system else []
        for turn in self.turns[:-1]:
            if turn.answer:
                asked += [Message("user", turn.question), Message("assistant", turn.answer)]
        return [*asked, Message("user", self.turns[-1].question)]

    def ask(self, question: str, show: Callable[[Part], None]) -> str | None:
        """Adds an exchange, shows its parts as they come and gives back how it finished."""
        turn = Turn(question, seed=self.chosen.get("seed", secrets.randbelow(1 << 31)))
        self.turns.append(turn)
        began, finish = time.monotonic(), None
        with contextlib.closing(
            self.loop.parts(self.talker, self.messages(), {**self.chosen, "seed": turn.seed})
        ) as parts:
            for part in parts:
                if part.text or part.thinking:
                    now = time.monotonic() - began
                    turn.first, turn.span = (turn.first, now - turn.first) if turn.parts else (now, 0.0)
                    turn.parts += 1
                turn.answer, turn.thinking = turn.answer + part.text, turn.thinking + part.thinking
                turn.usage, finish = part.usage or turn.usage, part.finish or finish
                show(part)
        return finish

    def cut(self) -> str:
        """Why an answer was cut off."""
        if "max_tokens" in self.chosen:
            return f"cut off at max_tokens={self.chosen['max_tokens']}; a larger one allows more"
        return "cut off where the model's length, or the endpoint's own limit, ends"

    def say(self, text: str, style: str = "dim") -> None:
        """A line of ours."""
        from rich.text import Text

        self.console.print(Text(shown(text), style=style), soft_wrap=True, highlight=False)

    def exchange(self, question: str) -> bool:
        """Asks and shows the answer, what went wrong, times and counts; False if Ctrl-C stopped it."""
        from rich.text import Text

        place = ""  # the kind of text that was written last

        def show(part: Part) -> None:
            nonlocal place
            for kind, text, style in (("thinking", part.thinking, "dim"), ("answer", part.text, "")):
                text = text if place == kind else text.lstrip("\n")
                if not text:
                    continue
                if place and place != kind:
                    text = f"\n\n{text}"
                place = kind
                self.console.print(Text(shown(text), style=style), end="", soft_wrap=True, highlight=False)

        note, went = "", True
        try:
            finish = self.ask(question, show)
            if finish == "length":
                note = self.cut()
        except Interrupted:
            note, went = "stopped", False
        except FathomError as error:
            if place:
                self.console.print()
            self.say(f"{error}", "red")
        if place:
            self.console.print()
            self.say(self.turns[-1].told())
        if note:
            self.say(note, "yellow")
        return went

    # What can be typed: the first line of each docstring is its line in /help.

    def do_help(self, words: str) -> None:
        """/help  these lines"""
        for name in COMMANDS:
            self.say((getattr(self, f"do_{name}").__doc__ or "").splitlines()[0], "")
        self.say('A question that begins with / is written with //; one of several lines stands between """ and """.')
        self.say("Ctrl-C stops an answer, twice leaves; so does Ctrl-D.")

    def do_new(self, words: str) -> None:
        """/new  forget the conversation; settings and system prompt stay"""
        self.turns.clear()
        self.say("a new conversation")

    def do_system(self, words: str) -> None:
        """/system TEXT  set the system prompt; without TEXT, remove it"""
        self.system = words
        self.say("system prompt set" if words else "no system prompt")

    def do_set(self, words: str) -> None:
        """/set temperature=0.6 …  choose how answers are drawn; NAME= takes it back; alone, what is chosen"""
        try:
            given = shlex.split(words)
        except ValueError as error:
            raise UsageError(f"/set {words}: {error}; close the quotes") from error
        back = [word[:-1] for word in given if word.endswith("=")]
        if unknown := [name for name in back if name not in Sampling.model_fields]:
            raise UsageError(f"{unknown[0]}: no such setting; there are {', '.join(Sampling.model_fields)}")
        chosen = choose(self.chosen, [word for word in given if not word.endswith("=")])
        self.chosen = {name: value for name, value in chosen.items() if name not in back}
        self.say(" ".join(f"{name}={value}" for name, value in self.chosen.items()) or "nothing is chosen")

    def do_retry(self, words: str) -> None:
        """/retry  ask the last question again"""
        if not self.turns:
            raise UsageError("/retry: nothing was asked yet; ask something")
        if not self.exchange(self.turns.pop().question):
            raise Interrupted

    def do_undo(self, words: str) -> None:
        """/undo  take the last question and its answer back"""
        if not self.turns:
            raise UsageError("/undo: nothing was asked yet; ask something")
        self.say(f"taken back: {self.turns.pop().question[:60]}")

    def do_save(self, words: str) -> None:
        """/save FILE.jsonl  append the conversation as a line {"messages": [...]}"""
        if not words:
            raise UsageError("/save: no file; name one, like /save chats.jsonl")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            if turn.answer:
                thought = {"reasoning_content": turn.thinking} if turn.thinking else {}
                messages += [{"role": "user", "content": turn.question},
                             {"role": "assistant", "content": turn.answer, **thought}]
        if not any(message["role"] == "assistant" for message in messages):
            raise UsageError("/save: no answer to save yet; ask something")
        path = Path(words).expanduser()
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(f"/save {words}: {error.strerror}; name a file that can be written") from error
        self.say(f"{path}: {len(messages)} messages appended")

    def do_stats(self, words: str) -> None:
        """/stats  model, settings, tokens and times"""
        self.say(f"model: {self.talker.name}", "")
        self.say(f"system prompt: {self.system or 'none'}", "")
        self.say("settings: " + (" ".join(f"{n}={v}" for n, v in self.chosen.items()) or "none chosen"), "")
        used = [turn.usage for turn in self.turns if turn.usage]
        self.say(f"exchanges: {len(self.turns)}; tokens: {sum(u.prompt for u in used):,} of prompts "
                 f"({sum(u.cached for u in used):,} cached), {sum(u.completion for u in used):,} of answers", "")
        if self.turns and self.turns[-1].parts:
            self.say(f"last: {self.turns[-1].told()}, seed {self.turns[-1].seed}", "")

    def do_quit(self, words: str) -> None:
        """/quit  leave"""
        raise EOFError

    def handle(self, line: str) -> None:
        """Obeys a command or asks a question."""
        if not line.startswith("/") or line.startswith("//"):
            if not self.exchange(line[1:] if line.startswith("//") else line):
                raise Interrupted
            return
        name, _, words = line[1:].partition(" ")
        if name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise UsageError(f"/{name}: no such command; " + (f"did you mean /{near[0]}?" if near else "see /help"))
        getattr(self, f"do_{name}")(words.strip())

    def converse(self, read: Callable[[str], str] = input) -> None:
        """Asks for lines until the user leaves."""
        self.say(f"{self.talker.name}: /help shows what can be typed; Ctrl-C stops an answer, Ctrl-D leaves")
        interrupted = False
        while True:
            try:
                text = _question(read)
            except EOFError:
                return
            except UnicodeError:
                self.say("that was no UTF-8; set the terminal to UTF-8", "red")
                continue
            except KeyboardInterrupt:
                self.console.print()
                if interrupted:
                    return
                interrupted = True
                self.say("Ctrl-C once more leaves")
                continue
            try:
                if text.strip():
                    interrupted = False
                    self.handle(text if "\n" in text else text.strip())
            except FathomError as error:
                self.say(f"{error}", "red")
            except Interrupted:
                interrupted = True
            except (EOFError, KeyboardInterrupt):  # /quit, and a second Ctrl-C before an answer had stopped
                return


COMMANDS = tuple(name.removeprefix("do_") for name in vars(Chat) if name.startswith("do_"))


def _question(read: Callable[[str], str]) -> str:
    """A line, or the lines between two triple quotes; raises UnicodeError for what is no UTF-8."""
    text = read("> ")
    if text.lstrip().startswith('"""'):
        text = text.lstrip()[3:]
        while not text.rstrip().endswith('"""'):
            text += "\n" + read("… ")
        text = text.rstrip()[:-3].strip("\n")
    text.encode()  # some locales let broken UTF-8 through
    return text


def choose(before: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`before` with the name=value words laid on top, checked as fields of Sampling; raises UsageError."""
    named = parse_overrides(words)
    if "logprobs" in named:
        raise UsageError("logprobs: a chat shows none; leave it out")
    checked = build(Sampling, merge(before, named), "chat")
    try:
        json.loads(checked.json_schema or "{}")
    except json.JSONDecodeError as error:
        raise UsageError(f"json_schema: not JSON ({error}); write a JSON schema, or {{}} for any JSON") from error
    return {name: getattr(checked, name) for name in (*before, *(n for n in named if n not in before))}


def chat(
    model: str, words: Sequence[str] = (), *, system: str = "", name: str | None = None, key_env: str | None = None,
    device: str = "auto", dtype: str = "auto",
) -> None:
    """Talks with a model directory or the endpoint at a URL: in the terminal, or one question from a pipe.

    `words` are name=value settings of Sampling. What a pipe brings is asked as it stands, and the answer alone goes to
    stdout. Raises FathomError; KeyboardInterrupt where Ctrl-C stops a piped answer.
    """
    chosen = choose({}, words)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    question = "" if terminal else _piped(sys.stdin)  # before minutes go into loading
    loop = Loop()
    try:
        talker = meet(model, loop, name, key_env, device, dtype)
        try:
            _talk(talker, loop, chosen, system, question if not terminal else None)
        finally:
            loop.run(talker.close())
    finally:
        loop.close()


def _piped(stream: TextIO) -> str:
    try:
        question = stream.buffer.read().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: byte {error.start} is no UTF-8; convert it") from error
    if not question.strip():
        raise UsageError("stdin: no question; pipe one in, or start without a pipe")
    return question.strip("\n")


def _talk(talker: Talker, loop: Loop, chosen: dict[str, Any], system: str, question: str | None) -> None:
    """A conversation, or the answer to one question."""
    from rich.console import Console

    conversation = Chat(talker, loop, Console(), chosen, system)
    if question is None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrows and history for input()

        conversation.converse()
        return
    out, tame, began = sys.stdout, sys.stdout.isatty(), False

    def show(part: Part) -> None:
        nonlocal began
        text = part.text if began else part.text.lstrip("\n")
        began = began or text != ""
        out.write(shown(text) if tame else text)
        out.flush()

    try:
        finish = conversation.ask(question, show)
        if not conversation.turns[0].answer.endswith("\n"):
            out.write("\n")
            out.flush()
    except Interrupted:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        sys.exit(BROKEN_PIPE)
    if finish == "length":
        print(f"fathom: {conversation.cut()}", file=sys.stderr)
