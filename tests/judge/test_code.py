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
    "large answer": ("def add(a, b):\n    return 'x' * 5_000_000", "answer is too large"),
    "generator": ("def add(a, b):\n    yield 3", "wrong output"),
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


VALUES = """[None, True, 0, -7, 2**63, -2**200, 0.1, -0.0, float("inf"), 1j, "", "naïve \\ud800", b"\\x00\\xff",
    [], (), (1, (2,)), {1, 2}, frozenset({"a"}), {}, {(1, 2): [3], None: {}}, int, list,
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.date(1, 1, 1), datetime.timedelta(1, 2, 3),
    decimal.Decimal("1.10"), fractions.Fraction(1, 3)]"""


def test_values_come_back_as_they_were_sent(judge: CodeJudge) -> None:
    test = f"import datetime, decimal, fractions\nfor value in {VALUES}:\n    back = same(value)\n"
    test += "    assert type(back) is type(value) and repr(back) == repr(value), value\n"
    test += "assert same(float('nan')) != same(float('nan'))"
    assert said(judge, AssertTests.of([test]), "def same(x):\n    return x") == "right"


def test_subclasses_come_back_as_what_they_extend(judge: CodeJudge) -> None:
    code = (
        "from collections import *\nfrom enum import IntEnum\n"
        "P = namedtuple('P', 'x y')\nclass E(IntEnum):\n    A = 1\n"
        "def f():\n    return [P(1, 2), Counter('aab'), OrderedDict(a=1), defaultdict(list, b=[2]), E.A]"
    )
    test = "assert f() == [(1, 2), {'a': 2, 'b': 1}, {'a': 1}, {'b': [2]}, 1]"
    assert said(judge, AssertTests.of([test]), code) == "right"


def test_classes_of_the_solution_are_handles(judge: CodeJudge) -> None:
    tests = AssertTests.of([
        "a, b = Box(1), Box([2])\na.next = b\nassert a.next == b and a != b and a.next is not None",
        "assert total(a) == 3 and a.value == 1 and len(b) == 1 and list(b) == [2] and b[0] == 2 and 2 in b",
        "assert str(a) == 'a box' and {a: 1}[a] == 1 and Box(1) != Box(1)",
        "assert [x for x in rows(3)] == [0, 1, 2] and sorted(rows(2)) == [0, 1]",
    ])  # fmt: skip
    code = (
        "class Box:\n    next = None\n    def __init__(self, value):\n        self.value = value\n"
        "    def __len__(self):\n        return len(self.value)\n"
        "    def __iter__(self):\n        return iter(self.value)\n"
        "    def __getitem__(self, i):\n        return self.value[i]\n    def __str__(self):\n        return 'a box'\n"
        "def total(box):\n    return box.value + box.next.value[0]\n"
        "def rows(n):\n    yield from range(n)"
    )
    assert tests.names == ("Box", "rows", "total")
    assert said(judge, tests, code) == "right"
    assert said(judge, tests, code.replace("yield from range(n)", "while True: yield 0")) == "wrong: time limit"


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


REVERSE = CaseTests("turn", (([[1, 2, 3]], [3, 2, 1]), ([[]], [])), ("ListNode",), "ListNode")
TURN = """
class Solution:
    def turn(self, head):
        last = None
        while head:
            {}
        return last
"""


def test_cases_with_lists_of_nodes(judge: CodeJudge) -> None:
    assert said(judge, REVERSE, TURN.format("head.next, last, head = last, head, head.next")) == "right"
    assert said(judge, REVERSE, TURN.format("last, head = head, head.next")) == "wrong: wrong output"
    endless = "class Solution:\n    def turn(self, head):\n        head.next = head\n        return head"
    assert said(judge, REVERSE, endless) == "wrong: answer is an endless list"


def test_cases_with_trees_in_place_and_unwrapped(judge: CodeJudge) -> None:
    tree = [5, 4, 8, 11, None, 13, 4, 7, 2, None, None, None, 1]
    turned = [5, 8, 4, 4, 13, None, 11, 1, None, None, None, 2, 7]
    mirror = CaseTests("f", (([tree], turned),), ("TreeNode",), "TreeNode")
    code = "def f(t):\n    if t:\n        t.left, t.right = f(t.right), f(t.left)\n    return t"
    assert said(judge, mirror, code) == "right"
    assert said(judge, mirror, "def f(t):\n    return t") == "wrong: wrong output"
    in_place = CaseTests("f", (([[3, 1], 0], [1, 3]),), result=0)
    assert said(judge, in_place, "def f(x, y):\n    x.sort()") == "right"
    assert said(judge, in_place, "def f(x, y):\n    return sorted(x)") == "wrong: wrong output"
    wrapped = CaseTests("f", (([1], [2]), ([2], [3])), unwrap=True)
    assert said(judge, wrapped, "def f(x):\n    return x + 1") == "right"
    assert said(judge, wrapped, "def f(x):\n    return (x + 1,)") == "right"
    assert said(judge, CaseTests("f", wrapped.cases), "def f(x):\n    return x + 1") == "wrong: wrong output"
    near = CaseTests("f", (([1], {"a": [0.3]}),), tolerance=1e-6)
    assert said(judge, near, "def f(x):\n    return {'a': (0.1 + 0.2,)}") == "right"
    assert said(judge, near, "def f(x):\n    return {'a': [0.31]}") == "wrong: wrong output"
    assert said(judge, near, "def g(x):\n    return 1") == "wrong: does not define the name asked for"


def test_tests_survive_json() -> None:
    cases = CaseTests("f", (([1, [2]], {"a": None}),), ("", "list of ListNode"), "TreeNode", 1, True, "import re", 0.5)
    for tests in (ADD, cases):
        assert from_json(json.loads(json.dumps(to_json(tests)))) == tests
    for result in (2, -1, True):
        with pytest.raises(UsageError, match=f"result={result}"):
            CaseTests("f", (([1, 2], 1),), result=result)
    with pytest.raises(UsageError, match="0 cases"):
        CaseTests("f", ())
