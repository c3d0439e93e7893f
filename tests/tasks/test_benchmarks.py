"""Benchmarks by name: every published file is read whole, asked as it says, and its own answers are right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from fathom.core.errors import UsageError
from fathom.judge.verdict import Outcome
from fathom.judge.words import brackets_form, in_brackets, judge_table, judge_words
from fathom.tasks.benchmarks import BENCHMARKS, bare
from fathom.tasks.task import load_task

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES: Mapping[str, tuple[str, int]] = {  # benchmark: file, problems in it
    "omni-math-rule": ("omni_math_rule/even.jsonl.gz", 1421),
    "math500": ("math/math500_even.jsonl", 253),
    "aime": ("competition/aime_1983_2023.jsonl.gz", 975),
    "aime24": ("competition/aime_2024.jsonl", 30),
    "hmmt-feb-2024": ("competition/hmmt_feb_2024.jsonl", 30),
    "olympiadbench": ("competition/olympiadbench_even.jsonl.gz", 339),
    "cmath": ("deepseek_math_eval/cmath_test_even.jsonl", 549),
    "mgsm-zh": ("deepseek_math_eval/mgsm_zh_mgsm_zh_even.jsonl", 125),
    "gaokao-mathcloze": ("deepseek_math_eval/agieval_gaokao-mathcloze_even.jsonl", 59),
    "gaokao-mathqa": ("deepseek_math_eval/agieval_gaokao-mathqa_even.jsonl", 176),
    "sat-math": ("deepseek_math_eval/sat_test_even.jsonl", 16),
    "mmlu-stem": ("deepseek_math_eval/mmlu_stem_test_even.jsonl.gz", 1509),
    "ocw": ("deepseek_math_eval/ocw_test_even.jsonl", 136),
    "bbh": ("reasoning/bbh_even.jsonl.gz", 3256),
    "kor-bench": ("reasoning/kor_even.jsonl.gz", 625),
    "zebra": ("reasoning/zebra_train_300.jsonl.gz", 300),
}


def rows_of(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("name", FILES)
def test_published_rows_are_problems_and_their_own_answers_are_right(name):
    file, expected = FILES[name]
    if not (DATA / file).exists():
        pytest.skip(f"needs shared/data/{file}")
    task = load_task({"task": name, "data": str(DATA / file)})
    problems = list(task.problems("test"))
    assert len(problems) + task.skipped.total() >= expected  # a few are told apart from their doubles by name
    assert len(problems) >= 0.98 * expected, task.skipped
    some = problems[:: max(1, len(problems) // 40)]
    if name == "zebra":
        texts = [f"<think>…</think>```json\n{json.dumps(problem.meta['table'])}\n```" for problem in some]
    elif name == "kor-bench":
        texts = [f"So it is {problem.answer}." for problem in some]
    elif name == "bbh":
        texts = [f"The answer is {problem.answer}." for problem in some]
    else:
        texts = [f"Therefore \\boxed{{{problem.answer}}}." for problem in some]
    verdicts = task.judge(list(zip(some, texts, strict=True)))
    wrong = [(p.answer, v.outcome, v.reason) for p, v in zip(some, verdicts, strict=True) if v.outcome != Outcome.RIGHT]
    assert len(wrong) <= 0.05 * len(some), wrong
    assert {problem.meta.get("about", {}).keys() >= {"domain", "difficulty"} for problem in some} == {
        name.startswith("omni")}


def test_a_benchmark_says_how_to_answer_and_its_own_file_is_all_tested(tmp_path):
    file = rows_of(tmp_path / "m.jsonl", [{"problem": f"What is {i}+1?", "answer": str(i + 1), "level": i % 5 + 1,
                                           "subject": "Algebra"} for i in range(20)])
    task = load_task({"task": "math500", "data": str(file)})
    problems = list(task.problems("test"))
    assert len(problems) == 20
    assert problems[0].prompt[-1].text == (
        "What is 0+1?\n\nPlease reason step by step, and put your final answer within \\boxed{}.")
    assert problems[0].meta["question"] == "What is 0+1?"
    assert problems[0].meta["about"] == {"subject": "Algebra", "level": 1}
    assert task.k == 16
    bare_ask = load_task({"task": "math500", "data": str(file), "ask": "", "system": "Be brief."})
    assert [m.role for m in next(bare_ask.problems("test")).prompt] == ["system", "user"]
    assert next(bare_ask.problems("test")).prompt[-1].text == "What is 0+1?"
    assert next(bare_ask.problems("test")).id == problems[0].id


def test_examples_come_first_as_turns_or_as_text(tmp_path):
    file = rows_of(tmp_path / "m.jsonl", [{"problem": "What is 1+1?", "answer": "2"}])
    shown = rows_of(tmp_path / "s.jsonl", [
        {"problem": f"What is {i}+{i}?", "solution": f"It is \\boxed{{{2 * i}}}.", "answer": str(2 * i)}
        for i in (5, 6, 7)])
    task = load_task({"task": "math500", "data": str(file), "examples": str(shown), "shots": 2})
    prompt = next(task.problems("test")).prompt
    assert [m.role for m in prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert prompt[0].text.startswith("What is 5+5?") and "\\boxed{10}" in prompt[1].text
    text = load_task({"task": "math500", "data": str(file), "examples": str(shown), "shots": 3, "shots_as": "text"})
    problem = next(text.problems("test"))
    assert problem.prompt[-1].text.count("Problem:\n") == 4
    assert problem.prompt[-1].text.endswith("\n\nSolution:")
    # an answer that an example shows is no copy of the question
    [verdict] = text.judge([(problem, "\\boxed{2}")])
    assert verdict.outcome is Outcome.RIGHT
    with pytest.raises(UsageError, match="3 training problems"):
        next(load_task({"task": "math500", "data": str(file), "examples": str(shown), "shots": 4}).problems("test"))


def test_what_is_not_given_or_not_known_is_named(tmp_path):
    with pytest.raises(UsageError, match="is on no hub"):
        load_task("omni-math-rule")
    with pytest.raises(UsageError, match="did you mean olympiadbench"):
        load_task("olympiadbnch")
    with pytest.raises(UsageError, match="need Isabelle"):
        load_task("minif2f")
    wrong = rows_of(tmp_path / "w.jsonl", [{"instruction": "x"}])
    with pytest.raises(UsageError, match=r"needs domain, difficulty, problem, answer"):
        load_task({"task": "omni-math", "data": str(wrong)})
    with pytest.raises(UsageError, match="did you mean shots"):
        load_task({"task": "math500", "data": str(wrong), "shot": 4})
    with pytest.raises(UsageError, match="tiers='paper'"):
        load_task({"task": "omni-math", "data": str(wrong), "tiers": "paper"})


def test_bad_rows_are_rejects_by_name(tmp_path):
    good = {"domain": ["Mathematics -> Algebra"], "difficulty": 2.0, "problem": "p?", "answer": "\\boxed{3}"}
    file = rows_of(tmp_path / "o.jsonl", [
        good, {**good, "problem": "q?", "difficulty": "hard"}, {**good, "problem": "r?", "domain": "Algebra"},
        {**good, "problem": "s?", "answer": ""}, {**good, "problem": "t?", "answer": None}, good])
    task = load_task({"task": "omni-math", "data": str(file)})
    [problem] = task.problems("test")
    assert problem.answer == "3"
    assert dict(task.skipped) == {
        "difficulty is not a number": 1, "domain is not a list of texts": 1, "answer is empty": 1,
        "answer is missing": 1, "question appeared before": 1}


def test_gold_answers_lose_their_dress():
    assert bare("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert bare("\\[ 5 \\]") == "5"
    assert bare("$5$ or $7$") == "$5$ or $7$"
    assert bare("\\binom{2k+1}{3}") == "\\binom{2k+1}{3}"


@pytest.mark.parametrize("gold,text,outcome", [
    ("(B)", "The answer is (B).", "right"), ("(B)", "So \\boxed{B}", "right"), ("(B)", "The answer is (C).", "wrong"),
    ("(B)", "The answer is (B) owl", "right"), ("True", "The answer is true", "right"),
    ("Yes", "The answer is **No**.", "wrong"), ("-50", "The answer is -50", "right"),
    ("24", "The answer is 25", "wrong"),
    ("] ]", "The answer is ] ]", "right"), ("] )", "The answer is ] ]", "wrong"),
    ("cat dog eel", "The answer is cat, dog, eel", "right"), ("cat dog", "The answer is dog cat", "wrong"),
    ("valid", "Hmm", "unread"), ("valid", "<think>The answer is valid", "unread"),
    ("invalid", "The answer is valid", "wrong"),
])
def test_words(gold, text, outcome):
    assert judge_words(gold, text).outcome == outcome


def test_double_brackets():
    assert in_brackets("like [[your answer]], I say [[ X ]]").answer == "X"
    assert in_brackets("[[[c1;c2]φ]]").answer == "[c1;c2]φ"
    assert in_brackets("[[A];[B]]").answer == "A];[B"
    assert in_brackets("<think>[[A]]</think>none").reason == "no answer in double brackets"
    assert in_brackets("]]" * 5000 + "[[").reason
    assert brackets_form("1 2 , 3") == brackets_form("1 2,3")


def test_tables_of_puzzles():
    gold = {"1": {"Name": "Arnold", "Birthday": "april"}, "2": {"Name": "Eric", "Birthday": "jan"}}
    said = json.dumps({"solution": {"House 1": {"Name": "arnold", "Birthday": "April"},
                                    "House 2": {"Name": "Eric", "Birthday": "jan"}}})
    assert judge_table(gold, f"I think {{so}}. {said}").outcome is Outcome.RIGHT
    half = judge_table(gold, json.dumps({"1": {"Name": "Arnold", "Birthday": "jan"}}))
    assert (half.outcome, half.score, half.reason) == (Outcome.WRONG, 0.25, "cells are wrong")
    assert judge_table(gold, "no table").outcome is Outcome.UNREAD
    assert judge_table(gold, '{"a": 1}').outcome is Outcome.UNREAD


def test_every_benchmark_is_in_the_docs():
    docs = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text()
    assert [name for name in BENCHMARKS if f"`{name}`" not in docs] == []


PROGRAMS = {  # head of a function, tests as MultiPL-E writes them, a right and a wrong body
    "js": ("//Adds.\nfunction add(a, b){\n",
           "const assert = require('node:assert');\nfunction test() {\n  let candidate = add;\n"
           "  assert.deepEqual(candidate(1, 2),3);\n}\n\ntest();",
           "  return a + b;\n}\n", "  return a - b;\n}\n", "  process.exit(0);\n}\n"),
    "sh": ("#!/bin/bash\n# Adds.\nadd() {\n",
           "}\n\ncandidate() {\n    add \"$@\"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate \"1\" \"2\") = \"3\" ]]\n"
           "}\n\nrun_test", "    echo $(($1 + $2))\n", "    echo $(($1 - $2))\n", "    kill -9 $$\n"),
    "cpp": ("#include<assert.h>\n#include<bits/stdc++.h>\n// Adds.\nlong add(long a, long b) {\n",
            "}\nint main() {\n    auto candidate = add;\n    assert(candidate((1), (2)) == (3));\n}\n",
            "    return a + b;\n", "    return a - b;\n", "    exit(0);\n"),
    "rs": ("/// Adds.\nfn add(a: isize, b: isize) -> isize {\n",
           "}\n\nfn main() {\n    let candidate = add;\n    assert_eq!(candidate(1, 2), 3);\n}\n",
           "    a + b\n", "    a - b\n", "    std::process::exit(0)\n"),
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_programs_in_other_languages(language, tmp_path):
    from fathom.judge.code.foreign import LANGUAGES, missing

    if (lacking := missing(language)) is not None:
        pytest.skip(lacking)
    head, tests, right, wrong, early = PROGRAMS[language]
    file = rows_of(tmp_path / "h.jsonl", [{"name": "HumanEval_1_add", "prompt": head, "tests": tests}])
    task = load_task({"task": f"humaneval-{language}", "data": str(file)})
    [problem] = task.problems("test")
    mark = LANGUAGES[language].fences[0]
    end = "}\n" if tests.lstrip().startswith("}") else ""
    texts = [f"Here:\n```{mark}\n{head}{body}{end}```" for body in (right, wrong, early)]
    texts += [right, "no code at all" if language != "sh" else "```sh\n```", f"```{mark}\n{head}"]
    verdicts = task.judge([(problem, text) for text in texts])
    assert [verdict.outcome for verdict in verdicts[:4]] == ["right", "wrong", "wrong", "right"]
    assert verdicts[4].outcome in ("wrong", "unread")
    assert verdicts[5].reason == "code block was never closed"


@pytest.mark.skipif(shutil.which("bwrap") is None or shutil.which("bash") is None, reason="needs bubblewrap and bash")
def test_programs_in_other_languages_reach_neither_files_nor_network(tmp_path):
    from fathom.judge.code.foreign import Foreign, ForeignJudge

    secret = tmp_path / "secret"
    secret.write_text("x")
    tests = "}\nset -e\n[[ $(look) = \"\" ]]"
    attacks = [f"cat {secret}; cat /etc/passwd /root/.bashrc; ls /home", "echo > /dev/tcp/127.0.0.1/22 && echo out",
               f"touch {secret}.made && echo made"]
    found = ForeignJudge("sh").judge([(Foreign("look() {\n", tests), f"  ({attack}) 2>/dev/null || true\n")
                                      for attack in attacks])
    assert [verdict.outcome for verdict in found] == ["right"] * 3, found
    assert not Path(f"{secret}.made").exists()
    [slow] = ForeignJudge("sh", time_s=1).judge([(Foreign("look() {\n", tests), "  while :; do :; done\n")])
    assert slow.outcome is Outcome.WRONG


def test_languages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"language js: bwrap, node not found"):
        load_task({"task": "humaneval-js", "data": "x.jsonl"})
