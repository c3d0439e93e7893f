"""The benchmarks that are known by name: where each is published, what its rows hold, how it is asked and judged.

Rows are read from the hub or from local files of the published shape. `BENCHMARKS` at the end is the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fathom.core.chat import Message
from fathom.judge.extract import boxes
from fathom.tasks.formats import Asked
from fathom.tasks.rows import BadRow

Judging = Literal["maths", "choice", "words", "brackets", "table", "tolerance"]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DRESSED = re.compile(r"\s*(?:\\\[|\\\(|\$\$?)?\s*(.*?)\s*(?:\\\]|\\\)|\$\$?)?\s*", re.DOTALL)
_LABELLED = re.compile(r"\s*[(（]?([A-J])[)）.．]")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One row of the table.

    `needs` are the keys that every row must have, `asks` those whose content names a problem. `repository` is empty
    where no hub name is known: such data are local files. `rows` is how many the published split has, None where that
    is not known. `k` is the number of samples of DeepSeek-R1's protocol, None where it gives none.
    """

    name: str
    about: str
    read: Callable[[Row], Asked]
    needs: tuple[str, ...]
    asks: tuple[str, ...]
    may_have: tuple[str, ...] = ()
    judging: Judging = "maths"
    ask: str = "boxed"
    repository: str = ""
    config: str | None = None
    split: str = "test"
    rows: int | None = None
    k: int | None = None
    parts: tuple[str, ...] = ()  # of `about` in a problem's meta, each a table of the score


def _text(row: Row, *names: str) -> str:
    """The first of these keys that is there, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if value is None:
            continue
        if not isinstance(value, str):
            raise BadRow(f"{name} is not text")
        if not value.strip():
            raise BadRow(f"{name} is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{name} is not UTF-8") from None
        return value.strip()
    raise BadRow(f"{names[0]} is missing")


def _about(row: Row, *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if isinstance(row.get(name), str | int | float | bool)}


def _asked(question: str, answer: str, solution: str | None = None, **meta: Any) -> Asked:
    return Asked((Message("user", question),), answer, solution, meta)


def bare(answer: str) -> str:
    r"""A gold answer without `\boxed`, `\[ \]` or `$` around it, which 19 of Omni-MATH's have."""
    if inside := boxes(answer):
        return inside[-1].strip()
    match = _DRESSED.fullmatch(answer)
    inner = match[1] if match else answer
    return inner if "$" not in inner and inner else answer.strip()


# Mathematics.


def _plain(*parts: str) -> Callable[[Row], Asked]:
    def read(row: Row) -> Asked:
        solution = row.get("solution")
        return _asked(
            _text(row, "problem", "question", "Question"), _text(row, "answer", "Answer", "final_answer", "golden"),
            solution.strip() if isinstance(solution, str) and solution.strip() else None, about=_about(row, *parts))
    return read


def _omni_math(row: Row) -> Asked:
    domain, difficulty = row.get("domain"), row.get("difficulty")
    if not isinstance(domain, list) or not all(isinstance(text, str) for text in domain):
        raise BadRow("domain is not a list of texts")
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float):
        raise BadRow("difficulty is not a number")
    problem = _text(row, "problem", "question")
    about = {"domain": domain, "difficulty": difficulty, "source": str(row.get("source") or "")}
    return _asked(problem, bare(_text(row, "answer")), _text(row, "solution") if row.get("solution") else None,
                  about={**about, "proof": bool(re.search("prove|proof", problem))})


def _olympiad(row: Row) -> Asked:
    finals = row.get("final_answer")
    if not isinstance(finals, list) or not finals or not all(isinstance(text, str) and text.strip() for text in finals):
        raise BadRow("final_answer is not a list of texts")
    question = _text(row, "question")
    if isinstance(row.get("context"), str) and row["context"].strip():
        question = f"{row['context'].strip()}\n\n{question}"
    meta: dict[str, Any] = {"about": _about(row, "subfield", "answer_type")}
    if isinstance(row.get("error"), str) and row["error"].strip():
        try:
            meta["tolerance"] = float(row["error"])
        except ValueError:
            raise BadRow("error is not a number") from None
    return _asked(question, ", ".join(text.strip() for text in finals), **meta)


def _mgsm(row: Row) -> Asked:
    turns = row.get("messages")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping):
        raise BadRow("messages is not a list of turns")
    return _asked(_text(turns[0], "content"), _text(row, "answer"))


# Choices.


def _choice(row: Row) -> Asked:
    """MMLU, AGIEval and SAT: a question with options, and the letter of the right one."""
    answer = _text(row, "label", "answer", "Answer")
    if not re.fullmatch(r"[A-J]", answer):
        raise BadRow("answer is not one letter")
    options = row["options"]
    if isinstance(options, str):
        if not options.strip():
            raise BadRow("options is empty")
        listed, values = options.strip(), []
    elif isinstance(options, list) and options and all(isinstance(option, str) for option in options):
        marks = [_LABELLED.match(option) for option in options]
        labelled = all(mark and mark[1] == _LETTERS[i] for i, mark in enumerate(marks))
        values = [option[mark.end():].strip() if labelled and mark else option.strip()
                  for option, mark in zip(options, marks, strict=True)]
        listed = "\n".join(f"({_LETTERS[i]}) {value}" for i, value in enumerate(values))
        if _LETTERS.index(answer) >= len(values):
            raise BadRow("answer names no option")
    else:
        raise BadRow("options is not a list of texts")
    question = _text(row, "question")
    if isinstance(row.get("passage"), str) and row["passage"].strip():
        question = f"{row['passage'].strip()}\n\n{question}"
    return _asked(f"{question}\n\n{listed}", answer, options=values, about=_about(row, "topic"))


# Reasoning.


def _bbh(row: Row) -> Asked:
    return _asked(_text(row, "input"), _text(row, "target"), about=_about(row, "task"))


def _kor(row: Row) -> Asked:
    answer = _text(row, "answer")
    if not (answer.startswith("[[") and answer.endswith("]]")):
        raise BadRow("answer is not in double brackets")
    question = f"{_text(row, 'rule')}\n\n{_text(row, 'question')}"
    return _asked(question, answer, about=_about(row, "part", "category"))


def _zebra(row: Row) -> Asked:
    solution = row.get("solution")
    if not isinstance(solution, Mapping) or not isinstance(solution.get("rows"), list):
        raise BadRow("solution is not a table")
    header = [str(name) for name in solution.get("header") or ()]
    lines = [[str(value) for value in line] for line in solution["rows"] if isinstance(line, list)]
    if len(header) < 2 or len(lines) != len(solution["rows"]) or any(len(line) != len(header) for line in lines):
        raise BadRow("solution is not a table")
    if any(value.strip("_ ") == "" for line in lines for value in line):
        raise BadRow("solution is blank")  # the hub hides those of its test split
    shape = ", ".join(f'"{name}": "…"' for name in header[1:])
    question = (f"{_text(row, 'puzzle')}\n\nReason step by step. Then give the whole solution as one JSON object, a "
                f'key for each {header[0].lower()}: {{"{lines[0][0]}": {{{shape}}}, …}}')
    gold = {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in lines}
    return _asked(question, f"{len(lines)} rows of {len(header)} columns", table=gold, about=_about(row, "size"))


BENCHMARKS = {one.name: one for one in (
    Benchmark("omni-math", "Omni-MATH, all problems (arXiv 2410.07985)", _omni_math,
              ("domain", "difficulty", "problem", "answer"), ("problem",), ("solution", "source", "question"),
              repository="KbsdJames/Omni-MATH", rows=4428),
    Benchmark("omni-math-rule", "Omni-MATH, the part that a rule can judge", _omni_math,
              ("domain", "difficulty", "problem", "answer"), ("problem",), ("solution", "source", "question")),
    Benchmark("math500", "500 test problems of MATH", _plain("subject", "level"), ("problem", "answer"), ("problem",),
              ("solution", "subject", "level"), repository="HuggingFaceH4/MATH-500", rows=500, k=16,
              parts=("level", "subject")),
    Benchmark("aime", "AIME, the years 1983 to 2024", _plain("year", "Year", "difficulty"), (),
              ("problem", "Question"), ("answer", "Answer", "solution", "year", "Year", "difficulty"),
              repository="di-zhang-fdu/AIME_1983_2024", split="train", k=64, parts=("year", "Year")),
    Benchmark("aime24", "AIME 2024", _plain(), ("problem", "answer"), ("problem",), ("solution",),
              repository="HuggingFaceH4/aime_2024", split="train", rows=30, k=64),
    Benchmark("aime25", "AIME 2025", _plain("problem_type"), ("problem", "answer"), ("problem",), ("problem_type",),
              repository="MathArena/aime_2025", split="train", rows=30, k=64),
    Benchmark("hmmt-feb-2024", "HMMT, February 2024; local files", _plain(), ("problem", "answer"), ("problem",), k=64),
    Benchmark("hmmt-feb-2025", "HMMT, February 2025", _plain("problem_type"), ("problem", "answer"), ("problem",),
              ("problem_type",), repository="MathArena/hmmt_feb_2025", split="train", rows=30, k=64),
    Benchmark("olympiadbench", "OlympiadBench, English competition mathematics without pictures", _olympiad,
              ("question", "final_answer"), ("context", "question"),
              ("subfield", "answer_type", "error", "unit", "is_multiple_answer"), judging="tolerance",
              repository="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP", split="train",
              parts=("subfield", "answer_type")),
    Benchmark("cmath", "CMATH: Chinese school problems", _plain("grade", "reasoning_step"), ("question", "golden"),
              ("question",), ("grade", "reasoning_step"), ask="boxed_zh", repository="weitianwen/cmath",
              parts=("grade", "reasoning_step")),
    Benchmark("mgsm-zh", "GSM8K's first 250 test problems in Chinese", _mgsm, ("messages", "answer"), ("messages",),
              ask="boxed_zh"),
    Benchmark("gaokao-mathcloze", "AGIEval: Gaokao, gaps to fill", _plain(), ("question", "answer"), ("question",),
              ask="boxed_zh"),
    Benchmark("gaokao-mathqa", "AGIEval: Gaokao, choices", _choice, ("question", "options", "label"),
              ("question", "options"), ("passage",), "choice", "letter_zh"),
    Benchmark("sat-math", "SAT mathematics", _choice, ("question", "options", "Answer"), ("question", "options"), (),
              "choice", "letter"),
    Benchmark("mmlu-stem", "MMLU, the subjects of science", _choice, ("question", "options", "answer"),
              ("question", "options"), ("topic",), "choice", "letter", parts=("topic",)),
    Benchmark("ocw", "OCW courses (Minerva's set)", _plain(), ("problem", "answer"), ("problem",), ("solution",)),
    Benchmark("bbh", "BIG-Bench Hard", _bbh, ("input", "target"), ("task", "input"), ("task",), "words", "words",
              repository="lukaemon/bbh", parts=("task",)),
    Benchmark("kor-bench", "KOR-Bench: rules that no corpus has", _kor, ("rule", "question", "answer"),
              ("rule", "question"), ("part", "category"), "brackets", "", parts=("part", "category")),
    Benchmark("zebra", "Zebra puzzles (ZebraLogic)", _zebra, ("puzzle", "solution"), ("puzzle",), ("size",), "table",
              "", repository="WildEval/ZebraLogic", config="grid_mode", parts=("size",)),
)}
# code benchmarks by name: hub data set and configuration
CODE_BENCHMARKS = {
    "humaneval": ("openai/openai_humaneval", None),
    "mbpp": ("google-research-datasets/mbpp", "full"),
    "code-contests": ("deepmind/code_contests", None),
}
NOT_JUDGED = {"minif2f": "its answers are formal proofs, which need Isabelle"}
