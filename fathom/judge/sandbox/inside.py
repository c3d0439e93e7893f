"""The program's own process, from its slip to its exit. Runs after everything that holds it is in place."""

from __future__ import annotations

import atexit
import errno
import gc
import io
import linecache
import os
import sys
import traceback
import types
from contextlib import suppress

from fathom.judge.sandbox.wire import Told, report

TYPE_CHECKING = False
if TYPE_CHECKING:  # as typing's, without importing it
    from collections.abc import Callable
    from typing import NoReturn

_NAME = "program.py"
_TRACEBACK = 16_384  # characters; what is longer loses its middle
_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

_streams: list[io.TextIOWrapper] = []  # made once; each copy finds its own files behind the descriptors


def ordinary() -> None:
    """Makes the server's copy look like an interpreter that was just started for a program."""
    gc.enable()
    sys.argv[:] = [_NAME]
    sys.orig_argv[:] = ["python", _NAME]
    sys.path.insert(0, os.getcwd())
    sys.stdin, sys.stdout, sys.stderr = _streams
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = _streams  # type: ignore[misc]
    if "numpy.random" in sys.modules:  # Python's own generator is seeded by every fork
        sys.modules["numpy.random"].seed()


def rehearse() -> None:
    """In the server, whose descriptors 0 to 2 are /dev/null: what Python sets up at the first time, once for all.

    A small program is compiled, run and its traceback printed; the standard streams are made.
    """
    linecache.cache[_NAME] = (lambda: "1 / 0",)
    try:
        exec(compile("1 / 0", _NAME, "exec"), {})
    except ZeroDivisionError as error:
        traceback.format_exception(error)
    linecache.cache.clear()
    null, (other, pipe) = os.dup(0), os.pipe()
    for descriptor in (1, 2):
        os.dup2(pipe, descriptor)  # streams remember whether one can seek in them
    _streams[:] = (_stream(0, "<stdin>", "strict"), _stream(1, "<stdout>", "strict"),
                   _stream(2, "<stderr>", "backslashreplace"))
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    for descriptor in (null, other, pipe):
        os.close(descriptor)


def _stream(descriptor: int, name: str, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "rb" if descriptor == 0 else "wb", closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw) if descriptor == 0 else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=descriptor == 2)
    stream.mode = "r" if descriptor == 0 else "w"  # type: ignore[misc]  # as Python itself sets it
    return stream


def execute(source: str, slip: int, seal: Callable[[], None]) -> NoReturn:
    """Seals the process, runs `source` as `__main__` and exits as Python would. `slip` takes the report."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=_NAME, __builtins__=__builtins__)
    sys.modules["__main__"] = main
    source = source.removeprefix("\ufeff")
    linecache.cache[_NAME] = (lambda: source,)  # tracebacks show lines; split if needed
    seal()
    code = 0
    try:
        exec(compile(source, _NAME, "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:
        code = _uncaught(error, slip)
    with suppress(BaseException):
        if threading := sys.modules.get("threading"):
            threading._shutdown()  # waits for the program's threads
    with suppress(BaseException):
        atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except Exception:
        code = code or 120  # as Python says it
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(code)


def _uncaught(error: BaseException, slip: int) -> int:
    """Prints the error as Python would, reports it, and gives the exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        with suppress(Exception):
            print(error.code, file=sys.stderr)
        return 1
    told = Told.RAISED
    if isinstance(error, MemoryError):
        told = Told.MEMORY
    elif isinstance(error, OSError) and error.errno in _DISK:
        told = Told.DISK
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    with suppress(BaseException):
        os.pwrite(slip, report(told, name), 0)  # should the text raise, hang or not fit into memory
        os.pwrite(slip, report(told, f"{name}: {text}" if (text := str(error)) else name), 0)
    ours = error.__traceback__
    error.__traceback__ = ours.tb_next if ours else None
    with suppress(BaseException):
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(kind, error, error.__traceback__)
        else:
            sys.stdout.flush()
            printed = "".join(traceback.format_exception(error))
            if len(printed) > _TRACEBACK:
                printed = f"{printed[: _TRACEBACK // 2]}\n…\n{printed[-_TRACEBACK // 2 :]}"
            sys.stderr.write(printed)
    return 1
