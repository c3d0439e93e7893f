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
    from typing import NoReturn

_NAME = "program.py"
_MARK = "\ufeff"  # of UTF-8
_DEEPEST = 2**31 - 1  # as C has it
_TRACEBACK = 16_384  # characters; what is longer loses its middle
_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def ordinary(source: str) -> None:
    """Makes the server's copy look like an interpreter that was just started for a program."""
    gc.enable()
    sys.argv[:] = [_NAME]
    sys.orig_argv[:] = ["python", _NAME]
    sys.path.insert(0, os.getcwd())
    if "numpy.random" in sys.modules:  # Python's own generator is seeded by every fork
        sys.modules["numpy.random"].seed()
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=_NAME, __builtins__=__builtins__)
    sys.modules["__main__"] = main
    linecache.cache[_NAME] = (lambda: source.removeprefix(_MARK),)  # tracebacks show lines; split if needed


def rehearse() -> None:
    """In the server: what Python sets up at the first time, once for all.

    A small program is compiled, run, and its traceback printed, and the standard streams are made: each copy finds its
    own files behind their descriptors.
    """
    source = "print(int(input()) + 1)\n1 / 0"
    linecache.cache[_NAME] = (lambda: source,)
    kept, (read, write) = [os.dup(descriptor) for descriptor in range(3)], os.pipe()
    os.write(write, b"1\n")
    for descriptor, end in enumerate((read, write, write)):
        os.dup2(end, descriptor)
    sys.stdin, sys.stdout, sys.stderr = _standard()
    try:
        exec(compile(source, _NAME, "exec"), {})
    except ZeroDivisionError as error:
        sys.stderr.write("".join(traceback.format_exception(error)))
    _flush()
    linecache.cache.clear()
    os.dup2(kept[0], 0)
    sys.stdin, sys.stdout, sys.stderr = _standard()  # which remember that one cannot seek in a pipe
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    for descriptor, end in enumerate(kept):
        os.dup2(end, descriptor)
    for descriptor in (*kept, read, write):
        os.close(descriptor)


def _standard() -> tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]:
    return _stream(0, "<stdin>", "strict"), _stream(1, "<stdout>", "strict"), _stream(2, "<stderr>", "backslashreplace")


def _stream(descriptor: int, name: str, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "rb" if descriptor == 0 else "wb", closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw) if descriptor == 0 else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, "utf-8", errors, "\n", line_buffering=descriptor == 2)  # \r\n stays, as in Python
    stream.mode = "r" if descriptor == 0 else "w"  # type: ignore[misc]  # as Python itself sets it
    return stream


def execute(source: str, slip: int) -> NoReturn:
    """Runs `source` as `__main__` and exits as Python would. `slip` takes the report."""
    _discount_frames()
    code = 0
    try:
        exec(compile(source.removeprefix(_MARK), _NAME, "exec", dont_inherit=True), sys.modules["__main__"].__dict__)
    except BaseException as error:
        code = _uncaught(error, slip)
    os._exit(code if _finish() else 120)  # as Python says it


def _discount_frames() -> None:
    """The caller may recurse as deep as an interpreter allows that runs nothing else: our frames do not count."""
    get, put = sys.getrecursionlimit, sys.setrecursionlimit
    exec_counts = sys.version_info < (3, 12)
    ours, frame = 1 + exec_counts, sys._getframe(1).f_back
    while frame:
        ours, frame = ours + 1, frame.f_back

    def getrecursionlimit() -> int:
        return get() - ours

    def setrecursionlimit(limit: int, /) -> None:
        put(min(limit + ours, _DEEPEST) if isinstance(limit, int) and 0 < limit <= _DEEPEST else limit)

    sys.getrecursionlimit, sys.setrecursionlimit = getrecursionlimit, setrecursionlimit
    put(get() + ours)


def _finish() -> bool:
    """What Python does at its end, as far as it shows, in its order; whether all output could be written."""
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()  # waits for the program's threads
    except BaseException:
        pass  # Python, too, goes on
    try:
        atexit._run_exitfuncs()
        written = _flush()
        gc.collect()
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        sys.modules.pop("__main__", None)  # with it go open writers, which write, and generators, which finish
        gc.collect()
    except BaseException:  # a signal's handler
        written = False
    return _flush() and written


def _flush() -> bool:
    done = True
    for name in ("stdout", "stderr"):
        try:
            stream = getattr(sys, name, None)  # a program may have deleted it
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            done = False
    return done


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
