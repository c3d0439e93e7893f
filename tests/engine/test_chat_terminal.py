"""`fathom chat`: what is sent, what a terminal gets to see, and what Ctrl-C does."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fathom.core.chat import Message, Sampling
from fathom.core.errors import FathomError, UsageError
from fathom.engine.chat import COMMANDS, Chat, choose, shown
from fathom.engine.talkers import Local, Loop, Part, Remote, Usage, meet

sys.path.insert(0, str(Path(__file__).parent / "server"))
from made_browser import Fake, Reply, saying

ROOT = Path(__file__).parents[2]
NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08 \u202eevil\u2066"


class Scripted:
    """A talker that says what it was given, and remembers what it was asked."""

    name = "made"

    def __init__(self, *answers: Sequence[Part] | FathomError):
        self.answers = list(answers)
        self.asked: list[tuple[list[tuple[str, str]], dict[str, Any]]] = []
        self.let_go = threading.Event()

    async def answer(self, messages: Sequence[Message], chosen: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        self.asked.append(([(m.role, m.text) for m in messages], dict(chosen)))
        answer = self.answers.pop(0) if self.answers else [Part("Fine.", finish="stop")]
        if isinstance(answer, FathomError):
            raise answer
        try:
            for part in answer:
                yield part
                if part.text == "…":
                    await asyncio.sleep(60)
        finally:
            self.let_go.set()

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


def talk(loop: Loop, talker: Any, *lines: str, **how: Any) -> tuple[Chat, str]:
    """A conversation in which these lines are typed, and what was shown."""
    out = io.StringIO()
    chat = Chat(talker, loop, Console(file=out, force_terminal=True, color_system="standard", width=80), **how)
    typed = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    chat.converse(read)
    return chat, out.getvalue()


def test_an_answer_is_shown_with_counts_and_goes_along_with_the_next(loop: Loop) -> None:
    talker = Scripted([Part(thinking="\nHm."), Part(" So.\n"), Part(text="\n\nYes"), Part("!", finish="stop",
                      usage=Usage(12, 5, 8))])
    chat, seen = talk(loop, talker, "First?", "Second?", system="Be brief.")
    assert "\x1b[2mHm.\x1b[0m" in seen, "thinking is dimmed"
    assert "Yes!" in seen
    assert "5 tokens, " in seen
    assert "prompt 12 (8 cached)" in seen
    assert talker.asked[1][0] == [
        ("system", "Be brief."), ("user", "First?"), ("assistant", chat.turns[0].answer), ("user", "Second?")]
    assert chat.turns[0].thinking == "\nHm."
    assert "Hm." not in chat.turns[0].answer


def test_nothing_that_a_terminal_obeys_gets_through(loop: Loop) -> None:
    talker = Scripted([Part(thinking=NASTY), Part(NASTY, finish="stop")], FathomError(f"refused {NASTY}"))
    _, seen = talk(loop, talker, "a", "b", "/undo", f"/{NASTY}", "/stats")
    for what in ("\x07", "\x9b", "\x08", "\u202e", "\u2066", "\x1b]", "\x1b[2J"):
        assert what not in seen
    assert "\\x1b]0;owned\\x07" in seen
    rest = seen
    for ours in ("\x1b[0m", "\x1b[2m", "\x1b[31m"):
        rest = rest.replace(ours, "")
    assert "\x1b" not in rest
    assert "\r" not in rest


def test_what_scripts_need_stays() -> None:
    kept = "naïve 10\u202f000 \u00a0\u3000日本語 👩‍🔬 می‌خواهم\n\t"
    assert shown(kept) == kept
    assert shown("\u202e\x85\u2028\ud800\x00") == "\\u202e\\x85\\u2028\\ud800\\x00"


def test_commands(loop: Loop, tmp_path: Path) -> None:
    talker = Scripted([Part("One.", thinking="Hm.", finish="stop")], [Part("Two.", finish="length")])
    file = tmp_path / "chats.jsonl"
    chat, seen = talk(
        loop, talker, "/system Be brief.", "/set temperature=0.6 stop='[\"a b\"]'", "A", "/retry", f"/save {file}",
        "/undo", f"/save {file}", "/set seed=7 temperature=", "B", f"/save {file}", "//quit", "/stats", "/new", "C",
        "/help", "/quit", "never")
    sent = [asked for asked, _ in talker.asked]
    system = ("system", "Be brief.")
    assert sent == [[system, ("user", "A")], [system, ("user", "A")], [system, ("user", "B")],
                    [system, ("user", "B"), ("assistant", "Fine."), ("user", "/quit")], [system, ("user", "C")]]
    chosen = [options for _, options in talker.asked]
    assert chosen[0]["temperature"] == 0.6
    assert chosen[0]["stop"] == ("a b",)
    assert chosen[0]["seed"] != chosen[1]["seed"], "a random seed is another one each time"
    assert "temperature" not in chosen[2]
    assert chosen[2]["seed"] == chosen[3]["seed"] == 7
    saved = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert [[message["content"] for message in chat] for chat in saved] == [
        ["Be brief.", "A", "Two."], ["Be brief.", "B", "Fine."]]
    assert [Message.from_json(message).role for message in saved[0]] == ["system", "user", "assistant"]
    assert "no answer to save yet" in seen
    assert "cut off where the model's length" in seen
    assert all(f"/{name}" in seen for name in COMMANDS)
    assert [turn.question for turn in chat.turns] == ["C"]


def test_thinking_is_saved_beside_the_answer(loop: Loop, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    talk(loop, Scripted([Part("One.", thinking="Hm.", finish="stop")]), "A", f"/save {file}")
    assert json.loads(file.read_text())["messages"][1] == {
        "role": "assistant", "content": "One.", "reasoning_content": "Hm."}


@pytest.mark.parametrize(("line", "words"), [
    ("/rety", "did you mean /retry?"),
    ("/set temprature=1", "did you mean temperature?"),
    ("/set temperature=-1", "temperature"),
    ("/set temprature=", "no such setting"),
    ("/set stop='a", "close the quotes"),
    ("/set logprobs=2", "a chat shows none"),
    ("/set json_schema=a", "json_schema: not JSON"),
    ("/retry", "nothing was asked yet"),
    ("/undo", "nothing was asked yet"),
    ("/save", "no file"),
])
def test_what_is_wrong_is_said_and_the_chat_goes_on(loop: Loop, line: str, words: str) -> None:
    talker = Scripted()
    _, seen = talk(loop, talker, line, "Still there?")
    assert words in seen.replace("\n", " ")
    assert len(talker.asked) == 1


def test_a_file_that_cannot_be_written_is_said(loop: Loop, tmp_path: Path) -> None:
    _, seen = talk(loop, Scripted(), "A", f"/save {tmp_path}/no/such.jsonl")
    assert "No such file or directory" in seen


def test_a_question_of_several_lines(loop: Loop) -> None:
    talker = Scripted()
    talk(loop, talker, '"""', "one", "", "two", '"""', '"""three"""', '  """four', 'five"""')
    assert [asked[-1][1] for asked, _ in talker.asked] == ["one\n\ntwo", "three", "four\nfive"]


def test_a_failed_exchange_is_left_out_and_can_be_asked_again(loop: Loop) -> None:
    talker = Scripted(FathomError("the model is away"), FathomError("still away"), [Part("Yes.", finish="stop")])
    _, seen = talk(loop, talker, "A", "/retry", "B", "C")
    assert "still away" in seen
    assert [asked for asked, _ in talker.asked] == [
        [("user", "A")], [("user", "A")], [("user", "B")], [("user", "B"), ("assistant", "Yes."), ("user", "C")]]


def test_control_c_stops_the_answer_and_only_that(loop: Loop) -> None:
    talker = Scripted([Part("Half"), Part("…")])
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    chat, seen = talk(loop, talker, "A", "B")
    assert talker.let_go.is_set()
    assert "stopped" in seen
    assert chat.turns[0].answer == "Half…"
    assert talker.asked[1][0] == [("user", "A"), ("assistant", "Half…"), ("user", "B")]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_stops_the_answer(loop: Loop) -> None:
    talker = Scripted([Part("Half"), Part("…")])
    parts = loop.parts(talker, [Message("user", "A")], {})
    assert next(parts).text == "Half"
    parts.close()
    assert talker.let_go.wait(10)


# A model of this machine


class Letters:
    """A tokenizer whose tokens are characters."""

    control_ids = frozenset((10,))  # the line end is its control token

    def __init__(self, end: str = ""):
        self.end = end

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return [ord(c) for m in messages for c in f"{m.role[0]}:{m.text}\n"] + [ord(c) for c in self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


class MadeStream:
    def __init__(self, pieces: Sequence[Any]):
        self.pieces, self.cancelled = list(pieces), 0

    async def __aiter__(self) -> AsyncIterator[list[Any]]:
        for piece in self.pieces:
            yield [piece]

    def cancel(self) -> None:
        self.cancelled += 1


class MadeService:
    def __init__(self, texts: Sequence[str], end: str = "", finish: str = "stop", length: int = 100):
        self.tokenizer, self.max_length, self.closed = Letters(end), length, False
        pieces = [SimpleNamespace(index=0, text=text, tokens=(1, 2), cached=3, finish=None) for text in texts]
        pieces[-1].finish = finish
        self.stream = MadeStream(pieces)
        self.submitted: list[tuple[str, Sampling]] = []

    def submit(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> MadeStream:
        self.submitted.append((self.tokenizer.decode(prompt), sampling))
        return self.stream

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("end", "texts"), [
    ("", ["<th", "ink>\nHm", ".</thi", "nk>\n\nYes", "."]), ("<think> ", ["H", "m.</think>", "Yes."])])
def test_a_model_of_this_machine(loop: Loop, end: str, texts: list[str]) -> None:
    service = MadeService(texts, end)
    talker: Any = Local(service, "m")  # type: ignore[arg-type]
    chat, seen = talk(loop, talker, "Well?", chosen={"temperature": 0.5})
    assert (chat.turns[0].thinking, chat.turns[0].answer) == ("Hm.", "Yes.")
    prompt, sampling = service.submitted[0]
    assert prompt == "u:Well?\n" + end
    assert sampling == Sampling(temperature=0.5, max_tokens=100 - len(prompt), seed=chat.turns[0].seed)
    assert chat.turns[0].usage == Usage(len(prompt), 2 * len(texts), 3)
    assert "(3 cached)" in seen
    assert service.stream.cancelled == 1
    loop.run(talker.close())
    assert service.closed


def test_a_conversation_that_fills_the_model_is_refused(loop: Loop) -> None:
    service = MadeService(["x"], length=10)
    _, seen = talk(loop, Local(service, "m"), "A question")  # type: ignore[arg-type]
    assert "13 tokens, the model holds 10" in seen
    assert service.submitted == []


# An endpoint


def connected(loop: Loop, fake: Fake, **how: Any) -> Remote:
    return loop.run(Remote.connect(fake.url, how.get("name"), how.get("key")))


@contextlib.contextmanager
def closing(loop: Loop, remote: Remote) -> Iterator[Remote]:
    try:
        yield remote
    finally:
        loop.run(remote.close())


def test_an_endpoint(loop: Loop, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody")
    fake.scripts.append(saying("Yes.", thinking="Hm.", prompt=9, cached=4, completion=6))
    with closing(loop, connected(loop, fake)) as remote:
        assert remote.name == "made-10m"
        chosen = choose({}, ["temperature=0.6", "top_k=5", "ignore_stop=true", "stop=[a]", "json_schema='{}'"])
        chat, seen = talk(loop, remote, "Well?", chosen=chosen)
    assert (chat.turns[0].thinking, chat.turns[0].answer) == ("Hm.", "Yes.")
    assert chat.turns[0].usage == Usage(9, 6, 4)
    assert "6 tokens" in seen
    assert fake.asked == [{
        "model": "made-10m", "messages": [{"role": "user", "content": "Well?"}], "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 0.6, "top_k": 5, "ignore_eos": True, "stop": ["a"],
        "response_format": {"type": "json_object"}, "seed": chat.turns[0].seed}]
    assert set(fake.keys) == {None}, "the environment's key is for somebody else"


def test_what_an_endpoint_refuses_is_said(loop: Loop, fake: Fake) -> None:
    def breaks(reply: Reply) -> None:
        reply.delta(content="Half")

    def dies(reply: Reply) -> None:
        reply.event({"error": {"message": "the engine ended"}})

    fake.scripts += [lambda reply: reply.refuse(400, "prompt: too long"), breaks, dies,
                     lambda reply: reply.refuse(429, "busy", Retry_After="0"), saying("At last.")]
    with closing(loop, connected(loop, fake)) as remote:
        chat, seen = talk(loop, remote, "A", "B", "C", "D")
    assert "prompt: too long (400)" in seen
    assert "broke before the answer was whole" in seen.replace("\n", " ")
    assert "the engine ended" in seen
    assert [turn.answer for turn in chat.turns] == ["", "Half", "", "At last."]
    fake.models = ["a", "b"]
    with pytest.raises(UsageError, match="serves a, b; name one"):
        connected(loop, fake)
    with pytest.raises(UsageError, match=r"model=c: .* serves a, b"):
        connected(loop, fake, name="c")
    fake.key = "k"
    with pytest.raises(FathomError, match=r"a key is needed \(401\).*--key-env"):
        connected(loop, fake, name="a")
    with closing(loop, connected(loop, fake, name="b", key="k")) as remote:
        assert remote.name == "b"


def test_the_real_server_is_understood(loop: Loop) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fake import FakeService, running

    service = FakeService(script="<think>\nHm.\n</think>\n\nYes, 42.")
    with running(service, api_key="k-1") as server, closing(loop, loop.run(
        Remote.connect(server.url, None, "k-1"))) as remote:
        chat, _ = talk(loop, remote, "Well?", chosen=choose({}, ["top_k=5", "min_p=0.1", "stop=[x]", "min_tokens=2"]))
        service.script = lambda i: "Half"
        service.fail_at = 1
        _, seen = talk(loop, remote, "Well?")
    assert (chat.turns[0].thinking, chat.turns[0].answer) == ("Hm.", "Yes, 42.")
    prompt, sampling = service.streams[0].prompt, service.streams[0].sampling
    assert chat.turns[0].usage is not None
    assert (chat.turns[0].usage.prompt, chat.turns[0].usage.cached) == (len(prompt), len(prompt) // 2)
    assert (sampling.top_k, sampling.min_p, sampling.stop, sampling.min_tokens) == (5, 0.1, ("x",), 2)
    assert sampling.seed == chat.turns[0].seed
    assert server.url in seen


def test_who_cannot_be_met_is_said(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FathomError, match="is the server running"):
        meet("http://127.0.0.1:9", loop, None, None, "auto", "auto")
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    with pytest.raises(UsageError, match="key-env=NO_KEY_HERE: holds no key"):
        meet("http://127.0.0.1:9", loop, None, "NO_KEY_HERE", "auto", "auto")
    with pytest.raises(UsageError, match="--model and --key-env are for endpoints"):
        meet(str(tmp_path), loop, "x", None, "auto", "auto")
    with pytest.raises(UsageError, match="--device and --dtype are for models of this machine"):
        meet("http://127.0.0.1:9", loop, None, None, "cpu", "auto")
    find = "fathom.engine.talkers.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'fathom-reasoning\[client\]'"):
        meet("http://127.0.0.1:9", loop, None, None, "auto", "auto")
    with pytest.raises(UsageError, match=r"pip install 'fathom-reasoning\[model\]'"):
        meet(str(tmp_path), loop, None, None, "auto", "auto")


# The whole program

PROGRAM = """
import sys
from fathom.core.errors import FathomError
from fathom.engine.chat import chat
try:
    chat(sys.argv[1], sys.argv[2:])
except FathomError as error:
    print("fathom:", error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
assert "torch" not in sys.modules
"""


def piped(fake: Fake, question: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", PROGRAM, fake.url, *words], input=question, capture_output=True,
                          timeout=60, check=False, cwd=ROOT)


def test_a_pipe_brings_one_question_and_takes_the_answer(fake: Fake) -> None:
    fake.scripts.append(saying("\n\nYes\x1b[0m", thinking="Hm.", finish="length"))
    done = piped(fake, "Wäre das\n/help so?\n".encode(), "max_tokens=9")
    assert done.returncode == 0
    assert done.stdout == b"Yes\x1b[0m\n", "a file gets the text as it is"
    assert done.stderr.decode() == "fathom: cut off at max_tokens=9; a larger one allows more\n"
    assert fake.asked[0]["messages"] == [{"role": "user", "content": "Wäre das\n/help so?"}]
    assert fake.asked[0]["max_tokens"] == 9


@pytest.mark.parametrize(("question", "words", "code", "said"), [
    (b" \n", [], 2, "stdin: no question"), (b"\xff", [], 2, "is no UTF-8"), (b"A", ["tempo=1"], 2, "tempo"),
    (b"A", [], 1, "not today (400)")])
def test_what_goes_wrong_with_a_pipe_has_its_exit_code(
    fake: Fake, question: bytes, words: list[str], code: int, said: str
) -> None:
    fake.scripts.append(lambda reply: reply.refuse(400, "not today"))
    done = piped(fake, question, *words)
    assert done.returncode == code
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def endless(reply: Reply) -> None:
    for i in range(5000):
        reply.delta(content=f"{i} ")
        time.sleep(0.01)


def test_control_c_and_a_closed_pipe_end_a_piped_answer(fake: Fake) -> None:
    for end, code in (("signal", 130), ("close", 141)):
        fake.scripts.append(endless)
        fake.closed.clear()
        done = subprocess.Popen([sys.executable, "-c", PROGRAM, fake.url], stdin=subprocess.PIPE, cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.stdin and done.stdout and done.stderr
        done.stdin.write(b"Count")
        done.stdin.close()
        assert done.stdout.read(4) == b"0 1 "
        if end == "signal":
            done.send_signal(signal.SIGINT)
        else:
            done.stdout.close()
        assert done.wait(20) == code
        assert done.stderr.read() == b""
        assert fake.closed.wait(10), "the server was never left"
        done.stdout.close()
        done.stderr.close()


class Terminal:
    """The program in a terminal of its own."""

    def __init__(self, *arguments: str):
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\0\x78\0\0\0\0\0")

        def own() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdin=theirs, stdout=theirs,
                                        stderr=theirs, preexec_fn=own, cwd=ROOT, env=environment)
        os.close(theirs)
        self.seen = ""

    def until(self, words: str, seconds: float = 30) -> str:
        """What was written since the last such wait, `words` at its end."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"never came: {words}\n{self.seen}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        cut = self.seen.index(words) + len(words)
        seen, self.seen = self.seen[:cut], self.seen[cut:]
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at a prompt, once its reader waits: CPython's hears no signal that comes just before."""
        time.sleep(0.5)
        self.type("\x03")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


def test_a_conversation_in_a_terminal(fake: Fake) -> None:
    fake.scripts += [saying(f"Yes {NASTY}.", thinking="Hm."), endless, saying("After."), endless]
    terminal = Terminal(fake.url)
    try:
        terminal.until("> ")
        terminal.type("Well?\n")
        seen = terminal.until("first after")
        assert "\x1b[2mHm" in seen
        assert "\\x1b]0;owned\\x07" in seen
        assert "\x1b]" not in seen
        assert "\x07" not in seen
        terminal.until("> ")
        terminal.type("Count\n")
        terminal.until(" 7 ")
        terminal.type("\x03")
        terminal.until("stopped")
        assert fake.closed.wait(10), "the server was never left"
        terminal.until("> ")
        terminal.type("Go on\n")
        terminal.until("After.")
        assert fake.asked[2]["messages"][-2]["content"].startswith("0 1 2 3 4 5 6 7 ")
        terminal.until("> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt()
        terminal.until("once more leaves")
        terminal.until("> ")
        terminal.type("Again\n")
        terminal.until(" 3 ")
        terminal.type("\x03")
        terminal.until("stopped")
        terminal.until("> ")
        terminal.interrupt()
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()


def test_control_d_leaves(fake: Fake) -> None:
    terminal = Terminal(fake.url)
    try:
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
