"""Tests of functions: what is right is RIGHT, and no solution writes its own verdict."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from fathom.core.errors import UsageError
from fathom.judge.code import AssertTests, CaseTests, CodeJudge, from_json, to_json
from fathom.judge.sandbox import Limits
from fathom.judge.verdict import Outcome, Verdict

ADD = AssertTests.of(["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add([1], [2]) == [1, 2]"])
RIGHT = Verdict.right("all tests passed")


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def without_answer(verdict: Verdict) -> tuple[Outcome, float | None, str]:
    return verdict.outcome, verdict.score, verdict.reason


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    with CodeJudge(limits=Limits(cpu_s=1.0, wall_s=10.0, memory_mb=256)) as judge:
        yield judge


def said(judge: CodeJudge, tests: AssertTests | CaseTests, code: str) -> str:
    """The outcome, and where it is not RIGHT the reason."""
    (verdict,) = judge.judge([(tests, block(code))])
    return "right" if verdict.outcome is Outcome.RIGHT else f"{verdict.outcome}: {verdict.reason}"


FRAME = """
import json, os
def frame(message):
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data
"""

# name: (code, reason). Every one is WRONG; a judge in one process would pass most of them.
FORGERIES = {
    "exit": ("import sys\ndef add(a, b):\n    sys.exit(0)", "exited before it answered"),
    "exit at import": ("import sys\nsys.exit(0)", "exited before it answered"),
    "os._exit": ("import os\ndef add(a, b):\n    os._exit(0)", "exited before it answered"),
    "os._exit at import": ("import os\nos._exit(0)", "exited before it answered"),
    "error code": ("import os\ndef add(a, b):\n    os._exit(3)", "exited with an error"),
    "signal": ("import os\ndef add(a, b):\n    os.kill(os.getpid(), 11)", "killed by signal 11"),
    "equal to all": (
        "class Any:\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n"
        "    __hash__ = None\ndef add(a, b):\n    return Any()",
        "wrong output",
    ),
    "an int equal to all": (
        "class Any(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
        "def add(a, b):\n    return Any(7)",
        "wrong output",
    ),
    "a list equal to all": (
        "class Any(list):\n    __eq__ = lambda self, other: True\ndef add(a, b):\n    return Any()",
        "wrong output",
    ),
    "a str that lies": (
        "class Any(str):\n    __eq__ = lambda self, other: True\n    __hash__ = str.__hash__\n"
        "    __str__ = lambda self: '3'\ndef add(a, b):\n    return Any('x')",
        "wrong output",
    ),
    "patched assertions": (
        "import builtins\nbuiltins.AssertionError = ValueError\nclass Quiet(Exception):\n    pass\n"
        "builtins.AssertionError = Quiet\ndef add(a, b):\n    return 7",
        "wrong output",
    ),
    "patched server": (
        "import __main__\nreal = __main__.Codec.encode\n"
        "__main__.Codec.encode = lambda self, value, depth=0: real(self, value) if callable(value) else 3\n"
        "def add(a, b):\n    return 7",
        "wrong output",  # the first test holds, the second does not
    ),
    "printed results": (
        'import os\nprint(\'["pass"]\\n["end"]\')\ndef add(a, b):\n'
        '    os.write(1, b\'["answered"]\\n["pass"]\\n["pass"]\\n["pass"]\\n["done"]\\n["end"]\\n\')\n    os._exit(0)',
        "exited before it answered",
    ),
    "called results": (
        "import __main__, os\nos.write(1, b'[\"done\"]')\ndef add(a, b):\n    raise AssertionError",
        "raised AssertionError",
    ),
    "socket at import": (FRAME + "os.write(3, frame([1, 'value', 3]))\ndef add(a, b):\n    return 3", None),
    "socket in a call": (
        FRAME + "def add(a, b):\n    os.write(3, frame([1, 'value', a + b]))\n    return 3",
        "answered out of turn",
    ),
    "early reply": (
        FRAME + "import __main__\nreal = __main__.send\n"
        "def twice(message):\n    real(message)\n    real(message)\n__main__.send = twice\n"
        "def add(a, b):\n    return a + b",
        None,
    ),
    "endless replies": (
        "import os, threading\n"
        "def flood():\n    while True:\n        os.write(3, b'x' * 65536)\n"
        "def add(a, b):\n    threading.Thread(target=flood, daemon=True).start()\n"
        "    import time\n    time.sleep(60)",
        "answer is too large",
    ),
    "garbage": ("import os\ndef add(a, b):\n    os.write(3, b'\\0\\0\\0\\2xx')\n    return 3", "answered out of turn"),
    "vast message": ("import os\ndef add(a, b):\n    os.write(3, b'\\xff' * 8)\n    return 3", "answer is too large"),
    "no value": (
        FRAME + "import __main__\n__main__.send = lambda message: os.write(3, frame([message[0], 'value', ['?']]))\n"
        "def add(a, b):\n    return 3",
        "answer is not a value",
    ),
    "hostile exception": (
        FRAME + "import __main__\n"
        "__main__.send = lambda message: os.write(3, frame([message[0], 'raised', 'SystemExit', '0']))\n"
        "def add(a, b):\n    return 3",
        "raised Exception",
    ),
    "closed socket": ("import os\nos.close(3)\ndef add(a, b):\n    return 3", None),
    "frames": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals['passed'] = 3\n        frame = frame.f_back\n    return 7",
        "wrong output",
    ),
    "keyboard interrupt": ("def add(a, b):\n    raise KeyboardInterrupt", None),
    "own exception": ("class E(BaseException):\n    pass\ndef add(a, b):\n    raise E", None),
    "own error": ("class E(KeyError):\n    pass\ndef add(a, b):\n    raise E(a)", "raised KeyError"),
    "stop": ("def add(a, b):\n    raise StopIteration", "raised StopIteration"),
    "unprintable error": (
        "class E(Exception):\n    def __str__(self):\n        raise E\ndef add(a, b):\n    raise E",
        "raised Exception",
    ),
    "deep answer": (
        "def add(a, b):\n    answer = []\n    for _ in range(500):\n        answer = [answer]\n    return answer",
        "answer nests too deep",
    ),
    "answer in itself": (
        "def add(a, b):\n    answer = []\n    answer.append(answer)\n    return answer",
        "answer nests too deep",
    ),
    "large answer": ("def add(a, b):\n    return 'x' * 40_000_000", "answer is too large"),
    "generator": ("def add(a, b):\n    yield 3", "wrong output"),
    "brackets that fill the memory": (
        "import __main__, json, os\ndef send(message):\n"
        "    data = f'[{message[0]}, \"value\", [\"l\"'.encode() + b',[[]]' * 5_000_000 + b']]'\n"
        "    data = len(data).to_bytes(4, 'big') + data\n    while data:\n        data = data[os.write(3, data):]\n"
        "__main__.send = send\ndef add(a, b):\n    return 3",
        "answer is too large",
    ),
    "endless things": (
        "class Zeros:\n    __getitem__ = lambda self, i: 0\ndef add(a, b):\n    return Zeros()",
        "answer is endless",
    ),
    "a number for years": (
        FRAME + "import __main__\n__main__.send = lambda message: os.write(3, frame("
        "[message[0], 'value', ['x', 'Fraction', ['t', '1e999999999']]]))\ndef add(a, b):\n    return 3",
        "answer is not a value",
    ),
    "a number of its own for years": (
        "from fractions import Fraction\nclass F(Fraction):\n    pass\n"
        "F.__module__, F.__name__ = 'fractions', 'Fraction'\n"
        "F.__reduce__ = lambda self: (Fraction, ('1e999999999',))\nadd = F(1)",
        "test raised TypeError",
    ),
    "a function that is a set of colliding numbers": (
        FRAME + "import __main__\ncode = ['s', *(['i', format((2**61 - 1) * (8 + i), 'x')] for i in range(120_000))]\n"
        "def send(message):\n    data = frame([message[0], 'value', code])\n"
        "    while data:\n        data = data[os.write(3, data):]\n__main__.send = send\ndef add(a, b):\n    return 3",
        "answer is not a value",
    ),
    "recursion": ("def add(a, b):\n    return add(a, b)", "raised RecursionError"),
    "time": ("def add(a, b):\n    while True:\n        pass", "time limit"),
    "time at import": ("while True:\n    pass", "time limit"),
    "memory": ("def add(a, b):\n    return bytearray(1 << 30)", "memory limit"),
    "syntax": ("def add(a, b", "raised SyntaxError"),
    "null byte": ("def add(a, b):\n    return 3\0", None),
    "no such name": ("def sub(a, b):\n    return a - b", "does not define the name asked for"),
    "no function": ("add = 3", "test raised TypeError"),
    "error at import": ("import no_such_module\ndef add(a, b):\n    return a + b", "raised ModuleNotFoundError"),
}


@pytest.fixture(scope="module")
def forged(judge: CodeJudge) -> dict[str, Verdict]:
    verdicts = judge.judge([(ADD, block(code)) for code, _ in FORGERIES.values()])
    return dict(zip(FORGERIES, verdicts, strict=True))


@pytest.mark.parametrize("name", FORGERIES)
def test_no_verdict_is_forged(forged: dict[str, Verdict], name: str) -> None:
    assert forged[name].outcome is Outcome.WRONG, forged[name]
    expected = FORGERIES[name][1]
    assert expected is None or forged[name].reason == expected


def test_right_and_wrong_beside_each_other(judge: CodeJudge) -> None:
    good, bad = block("def add(a, b):\n    return a + b"), block("def add(a, b):\n    return 3")
    verdicts = judge.judge([(ADD, good), (ADD, bad), (ADD, "no idea"), (ADD, good)])
    assert [without_answer(verdict) for verdict in verdicts] == [
        (Outcome.RIGHT, 1.0, "all tests passed"),
        (Outcome.WRONG, 0.0, "wrong output"),
        (Outcome.UNREAD, 0.0, "no code block"),
        (Outcome.RIGHT, 1.0, "all tests passed"),
    ]
    assert verdicts[0].answer == "def add(a, b):\n    return a + b\n"
    assert judge.judge([]) == []


def test_sleeping_takes_time_too() -> None:
    with CodeJudge(limits=Limits(wall_s=0.5)) as hasty:
        for code in ("import time\ntime.sleep(60)", "import time\ndef add(a, b):\n    time.sleep(60)"):
            assert said(hasty, ADD, code) == "wrong: time limit"


def test_what_is_printed_is_no_answer_and_no_harm(judge: CodeJudge) -> None:
    code = "import sys\ndef add(a, b):\n    print('x' * 1_000_000)\n    sys.stdout.buffer.write(b'y')\n    return a + b"
    assert said(judge, ADD, code) == "right"


def test_credit_is_the_share_passed_where_asked_for(judge: CodeJudge) -> None:
    code = block("def add(a, b):\n    return abs(a) + abs(b) if isinstance(a, int) else a + b")
    with CodeJudge(credit="share", limits=judge.limits) as partial:
        partly, dead, none = partial.judge([
            (ADD, code),
            (ADD, block("import sys\nleft = [3]\ndef add(a, b):\n    return left.pop() if left else sys.exit()")),
            (ADD, block("def add(a, b):\n    raise ValueError")),
        ])  # fmt: skip
    assert without_answer(partly) == (Outcome.WRONG, pytest.approx(2 / 3), "wrong output")
    assert without_answer(dead) == (Outcome.WRONG, pytest.approx(1 / 3), "exited before it answered")
    assert without_answer(none) == (Outcome.WRONG, 0.0, "raised ValueError")
    assert judge.judge([(ADD, code)])[0].score == 0.0


def test_most_tests_caps_what_is_run(judge: CodeJudge) -> None:
    with CodeJudge(most_tests=1, limits=judge.limits) as one:
        assert said(one, ADD, "def add(a, b):\n    return 3") == "right"
    with pytest.raises(UsageError, match="most_tests=0"):
        CodeJudge(most_tests=0)


def test_arguments_are_copies_unless_in_place(judge: CodeJudge) -> None:
    copies = AssertTests.of(["x = [3, 1, 2]\nassert order(x) == sorted(x)\nassert x == [3, 1, 2]"])
    assert said(judge, copies, "def order(x):\n    x.clear()\n    return []") == "wrong: wrong output"
    assert said(judge, copies, "def order(x):\n    x.sort()\n    return x") == "right"
    changed = AssertTests.of(["x = [3, [1], {2}]\norder(x)\nassert x == [{2}, [1], 3], x"], in_place=True)
    assert said(judge, changed, "def order(x):\n    x.reverse()") == "right"
    assert said(judge, changed, "def order(x):\n    return x[::-1]") == "wrong: wrong output"


def test_subclasses_come_back_as_what_they_extend(judge: CodeJudge) -> None:
    code = (
        "from collections import *\nfrom enum import IntEnum\n"
        "P = namedtuple('P', 'x y')\nclass E(IntEnum):\n    A = 1\n"
        "def f():\n    return [P(1, 2), Counter('aab'), OrderedDict(a=1), defaultdict(list, b=[2]), E.A]"
    )
    test = "assert f() == [(1, 2), {'a': 2, 'b': 1}, {'a': 1}, {'b': [2]}, 1]"
    assert said(judge, AssertTests.of([test]), code) == "right"


BOX = """
class Box:
    next = None
    def __init__(self, value):
        self.value = value
    def get(self):
        return self.value
    def grow(self):
        self.value += 1
    def __iter__(self):
        return iter([self.value])
    def __str__(self):
        return f'a box of {self.value}'
def total(box):
    return box.value + box.next.value
def first(box):
    return box
"""


def test_classes_of_the_solution_are_handles(judge: CodeJudge) -> None:
    tests = AssertTests.of([
        "a, b = Box(1), Box(2)\na.next = b\nassert a.next == b and a != b and a.next is not None",
        "assert total(a) == 3 and a.value == 1 and a.get() == 1 and first(a) == a",
        "assert str(a) == 'a box of 1' and {a: 1}[a] == 1 and Box(1) != Box(1)",
        "a.grow()\nassert str(a) == 'a box of 2' and a.value == 2",
        "a.value = 7\nassert a.value == a.get() == 7",
    ])  # fmt: skip
    assert tests.names == ("Box", "first", "total")
    assert said(judge, tests, BOX) == "right"
    for asked in ("len(a)", "list(a)", "a[0]", "1 in a", "a < a", "[*map(str, a)]"):
        nosy = AssertTests.of([f"a = Box(1)\nassert a.get() == 1\n{asked}"])
        assert said(judge, nosy, BOX) == "wrong: test raised TypeError"


SORTED = """
r = order([3, 1, 2, 5])
assert all(r[i] <= r[i + 1] for i in range(len(r) - 1))
assert sorted(r) == [1, 2, 3, 5] and len(r) == 4
"""
FACTORS = """
for n in (12, 91, 1001):
    found = factors(n)
    assert math.prod(found) == n
    assert all(all(p % d for d in range(2, p)) for p in found) and 1 not in found
"""
COLOURS = """
edges = {0: [1, 2], 1: [0, 2], 2: [0, 1]}
c = colour(edges)
assert all(c[u] != c[v] for u in edges for v in edges[u])
assert all(c[u] in (0, 1) for u in edges)
"""
GOT = COLOURS.replace("[u] ", ".get(u) ").replace("[v] ", ".get(v) ")
PALINDROME = "r = after(99)\nassert int(str(r)) > 99 and str(r) == str(r)[::-1]"
ADAPTIVE = {
    "other items by index than by iteration": (
        SORTED,
        "class L:\n    def __init__(self, x):\n        self.x = x\n    __getitem__ = lambda self, i: 0\n"
        "    __iter__ = lambda self: iter(self.x)\n    __len__ = lambda self: len(self.x)\n"
        "def order(x):\n    return L(x)",
    ),
    "a class in a function's place": (
        SORTED,
        "class order:\n    def __init__(self, x):\n        self.x = x\n    __getitem__ = lambda self, i: 0\n"
        "    __iter__ = lambda self: iter(self.x)\n    __len__ = lambda self: len(self.x)\n",
    ),
    "other items each time": (
        FACTORS,
        "class L:\n    k = 0\n    def __init__(self, n):\n        self.n = n\n    def __iter__(self):\n"
        "        self.k += 1\n        return iter([self.n] if self.k == 1 else [2])\n"
        "def factors(n):\n    return L(n)",
    ),
    "items the first time alone": (FACTORS, "def factors(n):\n    yield n"),
    "other values by key": (
        COLOURS,
        "class L:\n    k = 0\n    def __getitem__(self, i):\n        L.k += 1\n        return L.k % 2\n"
        "def colour(edges):\n    return L()",
    ),
    "other values by get": (
        GOT,
        "class L:\n    k = 0\n    def get(self, i):\n        L.k += 1\n        return L.k % 2\n"
        "def colour(edges):\n    return L()",
    ),
    "other values by get, of a method": (
        GOT.replace("colour(", "Solution().colour("),
        "class Solution:\n    k = 0\n    def get(self, i):\n        self.k += 1\n        return self.k % 2\n"
        "    def colour(self, edges):\n        return self",
    ),
    "another text after each call": (
        PALINDROME.replace("\nassert", "\nassert after(1) and", 1).replace(" and str(r)", " and after(1) and str(r)"),
        "class L:\n    k = 0\n    def __str__(self):\n        L.k += 1\n        return '123' if L.k == 1 else '11'\n"
        "def after(n):\n    return L()",
    ),
    "another text each time": (
        PALINDROME,
        "class L:\n    k = 0\n    def __str__(self):\n        L.k += 1\n        return '123' if L.k == 1 else '11'\n"
        "def after(n):\n    return L()",
    ),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_answer_is_one_value_however_often_it_is_read(judge: CodeJudge, name: str) -> None:
    test, code = ADAPTIVE[name]
    assert said(judge, AssertTests.of([test]), code).startswith("wrong: ")


@pytest.mark.parametrize(
    "test",
    ["assert sum(PRIMES) == 5", "assert PRIMES[0] == 2", "assert PRIMES.index(3) == 1", "assert math.sqrt(PRIMES) > 1",
     "a, b = PRIMES", "assert len(PRIMES) == 2", "assert PRIMES + [5]", "assert PRIMES == [2, 3]",
     "assert 2 in PRIMES"],
)  # fmt: skip
def test_a_thing_in_the_place_of_data_is_wrong_and_not_failed(judge: CodeJudge, test: str) -> None:
    assert said(judge, AssertTests.of([test]), "PRIMES = object()").startswith("wrong: ")


def test_sound_properties_hold_of_right_answers(judge: CodeJudge) -> None:
    tests = AssertTests.of([SORTED, FACTORS, PALINDROME])
    code = (
        "order = sorted\ndef factors(n):\n    d = next(d for d in range(2, n + 1) if n % d == 0)\n"
        "    return [d] if d == n else [d, *factors(n // d)]\ndef after(n):\n    return n + 2"
    )
    assert said(judge, tests, code) == "right"
    impossible = "def colour(edges):\n    return {0: 0, 1: 1, 2: 1}"
    assert said(judge, AssertTests.of([GOT]), impossible) == "wrong: wrong output"


@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyError"])
@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(lambda c: f(c[0]) == c[1], [(1, 2), (2, 3)]))",
        "for given, wanted in zip(map(f, [1, 2]), [2, 3]):\n    assert given == wanted",
        "assert not any(filter(lambda x: f(x) != x + 1, range(100)))",
        "assert sum(1 for _ in filter(lambda x: f(x) != x + 1, range(9))) == 0",
    ],
)
def test_no_exception_ends_an_iteration(judge: CodeJudge, test: str, error: str) -> None:
    tests = AssertTests.of([test])
    wrong, right = judge.judge([
        (tests, block(f"def f(x):\n    raise {error}")),
        (tests, block("def f(x):\n    return x + 1")),
    ])  # fmt: skip
    assert (wrong.outcome, right.outcome) == (Outcome.WRONG, Outcome.RIGHT)
    assert wrong.reason == f"raised {error}"


def test_numpy_results_are_lists_and_arguments_are_arrays(judge: CodeJudge) -> None:
    pytest.importorskip("numpy")
    tests = AssertTests.of(["import numpy\nassert f(numpy.arange(3)) == [[0, 2, 4], 6]"])
    code = "import numpy\ndef f(x):\n    assert x.dtype == numpy.int64\n    return [x * 2, (x * 2).sum()]"
    with CodeJudge(preload=("numpy",)) as with_numpy:
        assert said(with_numpy, tests, code) == "right"


def test_exceptions_arrive_as_their_builtin_type(judge: CodeJudge) -> None:
    test = "try:\n    f(-1)\nexcept {} as error:\n    assert str(error) == 'no'\nelse:\n    raise AssertionError"
    code = "class Own(ValueError):\n    pass\ndef f(x):\n    raise Own('no')"
    assert said(judge, AssertTests.of([test.format("ValueError")]), code) == "right"
    assert said(judge, AssertTests.of([test.format("KeyError")]), code) == "wrong: raised ValueError"
    swallowed = AssertTests.of(["try:\n    f(1)\nexcept:\n    pass"])
    assert said(judge, swallowed, "import sys\ndef f(x):\n    sys.exit(0)") == "wrong: exited before it answered"


def test_broken_tests_are_failed_and_not_wrong(judge: CodeJudge) -> None:
    good = "def add(a, b):\n    return a + b"
    assert said(judge, AssertTests(("assert ad(1, 2) == 3",), ("add",)), good) == "failed: test raised NameError"
    assert said(judge, AssertTests(("assert True",), ("add",)), good) == "failed: tests ask nothing of the solution"
    assert said(judge, AssertTests(("raise SystemExit(0)",), ("add",)), good) == "failed: test raised SystemExit"
    assert said(judge, AssertTests(("import os\nos._exit(0)",), ("add",)), good) == "failed: tests ended early: exited"
    assert said(judge, AssertTests(("add(lambda: 0, 1)",), ("add",)), good) == "failed: test raised Unfit"
    assert said(judge, AssertTests(("assert add(1, 2) + no",), ("add",)), good) == "wrong: test raised NameError"


def test_any_text_gets_a_verdict(judge: CodeJudge) -> None:
    draw = random.Random(7)
    pieces = [
        "def add(a, b):", "\n", "    ", "return", "(", ")", "[", "'", '"""', "\\", "\t", "\x00", "é", "\u2028", "\r",
        "#", "yield", "lambda:", "0x", "1e999", "async", "class", "@", "``", "\x0c", "\ufeff",
        "from __future__ import x",
    ]  # fmt: skip
    texts = [block("".join(draw.choices(pieces, k=draw.randint(0, 12)))) for _ in range(30)]
    verdicts = judge.judge([(ADD, text) for text in [*texts, "```", "```python"]])
    assert {verdict.outcome for verdict in verdicts} == {Outcome.WRONG, Outcome.UNREAD}


def test_names_that_tests_take_from_a_solution() -> None:
    assert AssertTests.of(["def check(f):\n    assert f(1)\ncheck(g)"]).names == ("g",)
    assert AssertTests.of(["x = f([i for i in range(3)])\nassert x"], setup="y = Node(1)").names == ("Node", "f")
    assert AssertTests.of(["assert sum(1, 2) == 3"], entry=["sum", "helper"]).names == ("sum",)
    modules = AssertTests.of(["assert f(1) == sys.getsizeof(1) and copy(2)"])
    assert (modules.names, modules.setup) == (("copy", "f"), "import sys\n")
    given = "import math\ndef poly(x):\n    return x\ndef root():\n    'Doc.'\n"
    assert AssertTests.of(["assert poly(root()) < math.inf"], given=given, entry=["root"]).names == ("root",)
    with pytest.raises(UsageError, match="take no name"):
        AssertTests.of(["assert sum([1]) == 1"])
    with pytest.raises(UsageError, match="not Python"):
        AssertTests.of(["assert f("])


def test_helpers_of_a_prompt_cannot_be_redefined(judge: CodeJudge) -> None:
    given = "def double(x):\n    return 2 * x\n\ndef half(x):\n    'x / 2'\n"
    tests = AssertTests.of(["assert double(half(8)) == 8"], given=given, entry=["half"])
    assert said(judge, tests, "def half(x):\n    return 8\ndef double(x):\n    return 8") == "wrong: wrong output"
    assert said(judge, tests, "def half(x):\n    return double(x) // 4") == "right"
    assert said(judge, tests, "x = 1") == "wrong: test raised TypeError"  # the beginning gives None
    completed = judge.judge([(tests, "    return x // 2\n\nhalf = None")], read="completion")
    assert completed[0].outcome is Outcome.RIGHT


def test_tests_survive_json() -> None:
    cases = CaseTests("f", (([1, [2]], {"a": None}),), ("", "list of ListNode"), "TreeNode", 1, True, "import re", 0.5)
    for tests in (ADD, cases):
        assert from_json(json.loads(json.dumps(to_json(tests)))) == tests
    for result in (2, -1, True):
        with pytest.raises(UsageError, match=f"result={result}"):
            CaseTests("f", (([1, 2], 1),), result=result)
    with pytest.raises(UsageError, match="0 cases"):
        CaseTests("f", ())
