"""The same function over many items, in order, in as many processes as are asked for."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from fathom.core.errors import FathomError, UsageError

In = TypeVar("In")
Out = TypeVar("Out")

_AHEAD = 4  # items per worker that may be finished or under way beyond the oldest result not yet taken


def fanout(function: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[Out]:
    """`function(item)` for each item, in the order of the items, which may be endless: few are taken ahead.

    With `workers` ≤ 1 in this process; otherwise in spawned processes, so function and items must pickle. An exception
    of the function, or the death of its process, raises FathomError that names the item (a FathomError keeps its
    class). Closing or leaving the iterator, for whatever reason, ends the processes; they also end when this one dies.
    """
    if workers <= 1:
        return _inline(function, items)
    try:
        packed = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(
            f"{name}: cannot be sent to another process ({error}); define it at the top of a module, or use workers=1"
        ) from error
    return _spawned(packed, items, workers)


def _inline(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    for item in items:
        try:
            result = function(item)
        except Exception as error:
            raise _named(item, error, "") from error
        yield result


class _Failure:
    """In the place of a result: the error to raise when its turn comes."""

    def __init__(self, error: FathomError) -> None:
        self.error = error


class _Worker:
    """One spawned process, our end of its pipe, and the item it works on."""

    def __init__(self, packed: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.task: tuple[int, Any] | None = None
        # Not a daemon, for functions that start processes of their own; so its end at exit is ours to see to.
        self.process = context.Process(target=_work, args=(theirs, packed))
        self.process.start()
        atexit.register(self.end)
        theirs.close()  # so that the death of the process closes the pipe

    def give(self, index: int, item: Any) -> None:
        """Hands over an item; raises FathomError that names it when it cannot be sent."""
        self.task = (index, item)
        try:
            self.pipe.send(item)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _named(item, error, "it cannot be sent to another process; use workers=1") from error
        except OSError:
            pass  # the process died while idle; taking its result says so

    def take(self) -> tuple[int, Any]:
        """The index and the result, or failure, of the item under way."""
        assert self.task is not None
        (index, item), self.task = self.task, None
        try:
            kind, value, story = self.pipe.recv()
        except (EOFError, OSError):
            wait([self.process.sentinel], timeout=5)
            code = self.end()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            reason = f"its process died ({how}); run it alone with workers=1, or give the machine more memory"
            return index, _Failure(FathomError(f"{_name(item)}: {reason}"))
        if kind is None:
            return index, value
        error = kind(f"{_name(item)}: {value}")
        error.add_note(story)
        return index, _Failure(error)

    def end(self) -> int:
        """The process and what it started are gone when this returns; its exit code, negative for a signal."""
        atexit.unregister(self.end)
        self.pipe.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode or 0


def _spawned(packed: bytes, items: Iterable[Any], workers: int) -> Iterator[Any]:
    source = enumerate(items)
    crew: list[_Worker] = []
    results: dict[int, Any] = {}
    taken = given_back = 0
    exhausted = False
    try:
        while True:
            while not exhausted and taken - given_back < workers * _AHEAD:
                free = [worker for worker in crew if worker.task is None]
                if not free and len(crew) == workers:
                    break
                following = next(source, None)
                if following is None:
                    exhausted = True
                    break
                if not free:  # only as many processes as there are items for
                    free = [_Worker(packed)]
                    crew += free
                free[0].give(*following)
                taken += 1
            if given_back in results:
                result = results.pop(given_back)
                if isinstance(result, _Failure):
                    raise result.error
                given_back += 1
                yield result
            elif given_back == taken:
                return
            else:
                ready = wait([worker.pipe for worker in crew if worker.task is not None])
                for worker in [worker for worker in crew if worker.pipe in ready]:
                    index, results[index] = worker.take()
                    if worker.pipe.closed:
                        crew.remove(worker)
    finally:
        for worker in crew:
            worker.end()


def _work(pipe: Connection, packed: bytes) -> None:
    """The life of a worker process: items in, results out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.setpgid(0, 0)  # one group with whatever the function starts, to be ended together
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function = None
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # whatever unpickling an item raises goes to the parent
            pipe.send((FathomError, _reason(error), traceback.format_exc()))
            continue
        try:
            function = function or pickle.loads(packed)
            message = (None, function(item), "")
            pipe.send(message)
        except FathomError as error:
            pipe.send((type(error), str(error), traceback.format_exc()))
        except Exception as error:  # whatever the function raises goes to the parent
            pipe.send((FathomError, _reason(error), traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _named(item: Any, error: Exception, remedy: str) -> FathomError:
    kind = type(error) if isinstance(error, FathomError) else FathomError
    text = str(error) if isinstance(error, FathomError) else _reason(error)
    return kind(f"{_name(item)}: {text}" + (f"; {remedy}" if remedy else ""))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _name(item: Any) -> str:
    """What to call an item in a message: itself when it is short text or a path, its id, or the head of its repr."""
    text = str(item) if isinstance(item, (str, os.PathLike)) else str(getattr(item, "id", "")) or repr(item)
    return text if len(text) <= 80 else text[:79] + "…"
