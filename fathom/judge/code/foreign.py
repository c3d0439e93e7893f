"""Programs in other languages than Python, run by their own compilers and interpreters inside bubblewrap.

    verdict = ForeignJudge("js").judge([(Foreign(prompt, tests), text)])[0]

A program and its tests are one process here, as MultiPL-E joins them: it passes where it exits with 0 after the tests
printed a word that is drawn anew each time, so that ending early is no success. This holds less than the sandbox for
Python does: good for scores, not for training. docs/code.md says what it stops.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fathom.core import machine
from fathom.core.errors import UsageError
from fathom.judge.code.programs import last_block
from fathom.judge.extract import Unread, after_thinking
from fathom.judge.verdict import Verdict

_READ_ONLY = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/alternatives", "/etc/ld.so.cache",
              "/etc/java-17-openjdk", "/etc/java-21-openjdk", "/etc/java-11-openjdk", "/opt")
_OUTPUT = 64 << 10  # bytes kept of what a program prints
_BUILD_S = 60.0


@dataclass(frozen=True)
class Language:
    """How a language is built and run. `tools` must be found; `needs` says what else, `probe` whether it is there."""

    name: str
    tools: tuple[str, ...]
    file: str
    build: tuple[str, ...]
    run: tuple[str, ...]
    say: Callable[[str, str], str]  # tests and the word that they must print last
    limited: bool = True  # whether its address space can be limited
    needs: str = ""
    probe: Callable[[], bool] = lambda: True
    fences: tuple[str, ...] = ()


def _at_end(line: str) -> Callable[[str, str], str]:
    return lambda tests, word: f"{tests.rstrip()}\n{line.format(word)}\n"


def _before_last_braces(line: str, braces: int) -> Callable[[str, str], str]:
    """Before the closing braces of the function that holds the tests."""
    def say(tests: str, word: str) -> str:
        head = tests.rstrip()
        for _ in range(braces):
            head = head[: head.rindex("}")].rstrip()
        return f"{head}\n{line.format(word)}\n{'}' * braces}\n"
    return say


def _javatuples() -> bool:
    return any("javatuples" in entry for entry in os.environ.get("CLASSPATH", "").split(os.pathsep))


LANGUAGES = {one.name: one for one in (
    Language("js", ("node",), "program.js", (), ("node", "--max-old-space-size=512", "program.js"),
             _at_end("console.log('{}');"), limited=False, fences=("js", "javascript")),
    Language("ts", ("node", "tsc"), "program.ts", ("tsc", "--target", "es2020", "--module", "commonjs", "program.ts"),
             ("node", "program.js"), _at_end("console.log('{}');"), limited=False, fences=("ts", "typescript")),
    Language("cpp", ("g++",), "program.cpp", ("g++", "-std=c++17", "-O1", "-o", "program", "program.cpp"),
             ("./program",), _before_last_braces('puts("{}");', 1), fences=("cpp", "c++", "cc")),
    Language("sh", ("bash",), "program.sh", (), ("bash", "program.sh"), _at_end("echo '{}'"),
             fences=("sh", "bash", "shell")),
    Language("rs", ("rustc",), "program.rs", ("rustc", "-o", "program", "program.rs"), ("./program",),
             _before_last_braces('println!("{}");', 1), fences=("rs", "rust")),
    Language("go", ("go",), "program_test.go", (), ("go", "test", "program_test.go"), lambda tests, word: tests,
             limited=False, fences=("go", "golang")),
    Language("java", ("javac", "java"), "Problem.java", ("javac", "Problem.java"),
             ("java", "-Xmx512m", "-ea", "Problem"),
             _before_last_braces('System.out.println("{}");', 2), limited=False,
             needs="javatuples in CLASSPATH", probe=_javatuples, fences=("java",)),
    Language("php", ("php",), "program.php", (), ("php", "program.php"), _at_end('echo "{}";'), fences=("php",)),
    Language("rb", ("ruby",), "program.rb", (), ("ruby", "program.rb"), _at_end("Test::Unit.at_exit {{ puts '{}' }}"),
             fences=("rb", "ruby")),
    Language("lua", ("lua",), "program.lua", (), ("lua", "program.lua"), lambda tests, word: tests,
             needs="luaunit", fences=("lua",)),
    Language("cs", ("mcs", "mono"), "program.cs", ("mcs", "-d:DEBUG", "-out:program.exe", "program.cs"),
             ("mono", "program.exe"), _before_last_braces('Console.WriteLine("{}");', 2), limited=False,
             fences=("cs", "csharp")),
)}


def missing(name: str) -> str | None:
    """What this machine lacks to run a language; None where it lacks nothing."""
    language = LANGUAGES[name]
    if absent := [tool for tool in ("bwrap", *language.tools) if shutil.which(tool) is None]:
        return f"{', '.join(absent)} not found"
    return None if language.probe() else language.needs


@dataclass(frozen=True)
class Foreign:
    """A problem: the beginning of a program up to the function's body, and the tests that follow its end."""

    prompt: str
    tests: str


class ForeignJudge:
    """Verdicts on programs in one language. UsageError names what the machine lacks to run it."""

    def __init__(self, name: str, time_s: float = 10.0, memory_mb: int = 1024, workers: int = 2) -> None:
        if name not in LANGUAGES:
            raise UsageError(f"language={name:.40}: not known; there are {', '.join(LANGUAGES)}")
        if (lacking := missing(name)) is not None:
            raise UsageError(f"language {name}: {lacking}; install it, or leave this language out")
        self.language, self.time_s, self.memory_mb = LANGUAGES[name], time_s, memory_mb
        self.workers = max(1, min(workers, machine.cores()))

    def judge(self, items: Sequence[tuple[Foreign, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), in order. UNREAD: no code in the text."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda item: self._judge(*item), items))

    def _judge(self, problem: Foreign, text: str) -> Verdict:
        body = body_of(problem, text, self.language)
        if isinstance(body, Unread):
            return Verdict.unread(body.reason)
        word = secrets.token_hex(12)
        try:
            tests = self.language.say(problem.tests, word)
        except ValueError:
            return Verdict.failed("tests have no end that can be told", body)
        with tempfile.TemporaryDirectory(prefix="fathom-foreign-") as folder:
            (Path(folder) / self.language.file).write_text(f"{problem.prompt}{body}\n{tests}", encoding="utf-8")
            if self.language.build:
                ended, printed = self._run(folder, self.language.build, _BUILD_S, build=True)
                if ended is None:
                    return Verdict.wrong("building passed its time", body)
                if ended:
                    return Verdict.wrong("does not compile", body)
            ended, printed = self._run(folder, self.language.run, self.time_s)
        if ended is None:
            return Verdict.wrong("passed its time", body)
        if ended:
            return Verdict.wrong("tests failed", body)
        if tests != problem.tests and word not in printed:
            return Verdict.wrong("ended before its tests did", body)
        return Verdict.right("all tests passed", body)

    def _run(self, folder: str, command: Sequence[str], seconds: float, build: bool = False) -> tuple[int | None, str]:
        """Exit code, None where time ran out, and the end of what was printed."""
        limits = [f"--cpu={int(seconds) + 1}", f"--fsize={64 << 20}", "--nofile=256", "--core=0"]
        if self.language.limited and not build:
            limits.append(f"--as={self.memory_mb << 20}")
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
        for place in _READ_ONLY:
            words += ["--ro-bind-try", place, place]
        for name in {str(Path(found).resolve()) for tool in self.language.tools if (found := shutil.which(tool))}:
            for home in (".cargo", ".rustup"):  # a compiler in somebody's home
                if (at := name.find(f"/{home}/")) >= 0:
                    root = name[:at]
                    words += ["--ro-bind-try", f"{root}/.cargo", "/cargo"]
                    words += ["--ro-bind-try", f"{root}/.rustup", "/rustup"]
                    words += ["--setenv", "RUSTUP_HOME", "/rustup", "--setenv", "CARGO_HOME", "/cargo"]
                    break
        if classes := os.environ.get("CLASSPATH"):
            for entry in classes.split(os.pathsep):
                words += ["--ro-bind-try", entry, entry]
            words += ["--setenv", "CLASSPATH", f"{classes}{os.pathsep}."]
        words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", folder, "/work", "--chdir", "/work",
                  "--setenv", "PATH", "/cargo/bin:/usr/local/bin:/usr/bin:/bin", "--setenv", "HOME", "/tmp",
                  "prlimit", *limits, "--", *command]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            try:
                code: int | None = process.wait(timeout=2 * seconds)
            except subprocess.TimeoutExpired:
                process.kill()  # bubblewrap's end takes its whole namespace along
                process.wait()
                code = None
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - _OUTPUT))
            return code, output.read().decode(errors="replace")


def body_of(problem: Foreign, text: str, language: Language) -> str | Unread:
    """The function's body in a completion: what follows the function's head in the last code block, or all of it.

    Where the tests begin by closing the function, the body ends before its own closing brace.
    """
    rest = after_thinking(text)
    if isinstance(rest, Unread):
        return rest
    code = last_block(rest, language.fences) if "```" in rest or "~~~" in rest else rest
    if isinstance(code, Unread):
        return code
    if not code.strip():
        return Unread("no code in the text")
    head = next((line.strip() for line in reversed(problem.prompt.splitlines()) if line.strip()), "")
    at = code.find(head) if head else -1
    body = code[at + len(head):] if at >= 0 else code
    return body[: _closing(body)] if problem.tests.lstrip().startswith("}") else body


def _closing(body: str) -> int:
    """Where the brace closes that was open before `body`; its length where none does. Texts in quotes do not count."""
    depth = 0
    for match in re.finditer(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.){1,2}'|//[^\n]*|[{}]", body):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth < 0:
                return match.start()
    return len(body)
