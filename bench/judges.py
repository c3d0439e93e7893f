"""The mathematics judge: agreement with labels, pathological answers, answers a second beside a loop of math-verify.

`python -m bench judges`; the labelled sets lie in /work/shared/data or $FATHOM_DATA.
"""

from __future__ import annotations

import ast
import gzip
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import Pair
from bench.pathological import pathological
from fathom.judge.extract import Extracted, extract
from fathom.judge.maths import MathsJudge
from fathom.judge.verdict import Verdict

DATA = Path(os.environ.get("FATHOM_DATA", "/work/shared/data"))
PAGE = Path(__file__).parents[1] / "docs/answers.md"
ROUNDS = 5


@dataclass
class Labelled:
    """A set of (id, gold, text, label); label None where nobody knows."""

    name: str
    rows: list[tuple[str, str, str, bool | None]]
    texts: bool = True  # whether the answer must be found in a text
    excluded: frozenset[str] = field(default_factory=frozenset)  # labels of another policy


def read(path: str) -> list[dict[str, Any]]:
    """Records of a JSON-lines file below DATA."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(DATA / path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def conflicts() -> frozenset[str]:
    """Ids of pairs that docs/answers.md names as labelled by another rule."""
    table = PAGE.read_text().partition("## Where labels differ")[2]
    return frozenset(re.findall(r"\b(?:mv|hm|hv)\d+(?:_[tf]n)?", table))


def _gold(text: str) -> str:
    found = extract(text, "any")
    return found.answer if isinstance(found, Extracted) else text


def answer_pairs() -> Labelled:
    """Test pairs of Math-Verify, lighteval and MATH; both sides may need extraction."""
    rows = [
        (row["id"], _gold(row["gold"]), row["pred"], bool(row["equal"]))
        for row in read("grader_pairs/answer_pairs_even.jsonl")
    ]
    return Labelled("answer_pairs", rows, excluded=conflicts())


def hard_verify() -> Labelled:
    """Right answers that rule graders reject, wrong ones beside them."""
    rows = [
        (row["id"], row["gold"], row["pred"], bool(row["equal"])) for row in read("grader_pairs/hardverify_even.jsonl")
    ]
    return Labelled("hardverify", rows, texts=False, excluded=conflicts())


def omni_disagreements() -> list[Labelled]:
    """Where a rule grader and GPT-4o disagree; the hand label counts where there is one."""
    hand = {"equal": True, "not_equal": False, "decimal_approximation": False, "unclear": None}
    parts: dict[str, list[tuple[str, str, str, bool | None]]] = {"A": [], "B": []}
    for row in read("omni_math_judged/rule_vs_gpt4o.jsonl.gz"):
        label = hand[row["hand_label"]] if row.get("hand_label") else bool(row["gpt4o_correct"])
        parts[row["part"]].append((f"{row['part']}{row['i']}", row["answer"], row["generation"], label))
    return [Labelled(f"rule_vs_gpt4o {part}", rows) for part, rows in parts.items()]


def gpt4o_judged() -> Labelled:
    """Generations judged by GPT-4o."""
    rows = [
        (f"{row['model'][:8]} {row['i']}", row["answer"], row["generation"], bool(row["judge_verdict"]))
        for row in read("omni_math_judged/gpt4o_judged.jsonl.gz")
    ]
    return Labelled("gpt4o_judged", rows)


def process_bench() -> Labelled:
    """Solutions with `final_answer_correct`; golds come from the other sets by the text of the problem."""
    golds: dict[str, str] = {}
    for row in [*read("gsm8k/test_200.jsonl"), *read("gsm8k/train.jsonl.gz")]:
        golds[_key(row["question"])] = row["answer"].rpartition("####")[2].strip()
    for path in ("math/math500_even.jsonl", "math/train_answers.jsonl.gz", "omni_math_rule/even.jsonl.gz"):
        for row in read(path):
            golds.setdefault(_key(row["problem"]), row["answer"])
    for row in read("competition/olympiadbench_even.jsonl.gz"):
        finals = row["final_answer"]
        finals = ast.literal_eval(finals) if isinstance(finals, str) and finals.startswith("[") else finals
        if finals and len(finals) == 1:
            golds.setdefault(_key(row["question"]), finals[0])
    rows: list[tuple[str, str, str, bool | None]] = []
    for path in ("gsm8k.jsonl", "math.jsonl.gz", "olympiadbench.jsonl.gz", "omnimath.jsonl.gz"):
        for row in read(f"processbench/{path}"):
            steps = row["steps"] if isinstance(row["steps"], list) else ast.literal_eval(row["steps"])
            if gold := golds.get(_key(row["problem"])):
                rows.append((row["id"], gold, "\n".join(steps), bool(row["final_answer_correct"])))
    return Labelled("processbench", rows)


def _key(problem: str) -> str:
    return "".join(problem.split())


def gsm8k_and_math() -> list[tuple[str, str, bool]]:
    """(gold, text, label) of real outputs on GSM8K and MATH, each pair once."""
    found: dict[tuple[str, str], bool] = {}
    for row in read("gsm8k/model_solutions_200.jsonl.gz"):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            found[gold, row[model]["solution"]] = row[model]["is_correct"]
    for row in read("math/qwen_8_samples.jsonl.gz"):
        texts = ast.literal_eval(row["code"]) if isinstance(row["code"], str) else row["code"]
        for text, label in zip(texts, row["score"], strict=True):
            found[row["gt"], text] = label
    return [(gold, text, label) for (gold, text), label in found.items()]


def score(labelled: Labelled, judge: MathsJudge) -> dict[str, Any]:
    """Counts of both judges against the labels, and every false accept of ours."""
    pairs = [(gold, text) for _, gold, text, _ in labelled.rows]
    verdicts = judge.judge(pairs, "any") if labelled.texts else judge.equal(pairs)
    theirs = [math_verify_says(gold, text if labelled.texts else f"${text}$") for gold, text in pairs]
    known = [
        (name, label, verdict, peer, gold)
        for (name, gold, _, label), verdict, peer in zip(labelled.rows, verdicts, theirs, strict=True)
        if label is not None and name not in labelled.excluded
    ]
    return {
        "set": labelled.name,
        "judged": len(known),
        "excluded": sorted(labelled.excluded & {row[0] for row in labelled.rows}),
        "right": sum(label for _, label, *_ in known),
        "ours": _counts([(label, verdict.outcome == "right") for _, label, verdict, _, _ in known]),
        "failed": sum(verdict.outcome == "failed" for _, _, verdict, _, _ in known),
        "math-verify": _counts([(label, peer) for _, label, _, peer, _ in known]),
        "false accepts": [_row(name, gold, said) for name, label, said, _, gold in known if not label and said.score],
        "false rejects": [_row(name, gold, said) for name, label, said, _, gold in known if label and not said.score],
    }  # fmt: skip


def _row(name: str, gold: str, verdict: Verdict) -> list[str]:
    return [name, gold[:120], (verdict.answer or "")[:120], verdict.reason]


def _counts(pairs: list[tuple[bool, bool]]) -> dict[str, int]:
    return {
        "agree": sum(label == said for label, said in pairs),
        "right accepted": sum(label and said for label, said in pairs),
        "wrong accepted": sum(not label and said for label, said in pairs),
    }


def math_verify_says(gold: str, text: str) -> bool:
    """The peer as its README has it: gold in dollars, parse, parse, verify, all by default."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return bool(verify(parse(gold if "$" in gold else f"${gold}$"), parse(text)))


def judge_pathological(count: int, limit_s: float = 1.0) -> dict[str, Any]:
    """Time an item, workers and memory over answers that are right by construction."""
    items = pathological(count)
    seconds: list[float] = []
    outcomes: dict[str, Counter[str]] = {}
    zeros: list[list[str]] = []
    with MathsJudge(workers=1, timeout_s=limit_s) as judge:
        judge.equal([("1", r"\sum_{k=1}^{1} k")])  # starts the worker
        sizes = [_resident(judge)]
        workers = {len(judge._pool.pids())}
        for number, (family, gold, answer) in enumerate(items):
            start = time.perf_counter()
            (verdict,) = judge.equal([(gold, answer)])
            seconds.append(time.perf_counter() - start)
            outcomes.setdefault(family, Counter())[verdict.outcome.value] += 1
            workers.add(len(judge._pool.pids()))
            if verdict.score == 0:
                zeros.append([family, gold[:80], answer[:80], verdict.reason])
            if number % 100 == 99:
                sizes.append(_resident(judge))
    ordered = sorted(seconds)
    return {
        "items": count, "limit": limit_s, "median": statistics.median(seconds), "p99": ordered[int(count * 0.99)],
        "max": ordered[-1], "workers": sorted(workers), "resident MiB (parent, workers)": sizes, "scored 0": zeros,
        "outcomes": {family: dict(counts) for family, counts in outcomes.items()},
    }  # fmt: skip


def _resident(judge: MathsJudge) -> tuple[float, float]:
    pids = judge._pool.pids()
    return _mib("self"), sum(_mib(str(pid)) for pid in pids)


def _mib(pid: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return round(int(found[1]) / 1024, 1) if found else 0.0


def loop(side: str) -> None:
    """One cold round of one side in a process of its own; prints seconds and verdicts as JSON."""
    pairs = [(gold, text) for gold, text, _ in gsm8k_and_math()]
    if side == "ours":
        start = time.perf_counter()
        with MathsJudge(workers=2) as judge:
            said = [verdict.outcome == "right" for verdict in judge.judge(pairs, "any")]
        seconds = time.perf_counter() - start
    else:
        import math_verify  # noqa: F401  (loading is not timed on either side)

        start = time.perf_counter()
        said = [math_verify_says(gold, text) for gold, text in pairs]
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "said": said}))


def throughput() -> Pair:
    """Both sides in turns, each round a fresh process: nothing is remembered."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    said: dict[str, list[bool]] = {}
    for _ in range(ROUNDS):
        for side, times in seconds.items():
            command = [sys.executable, "-c", f"from bench.judges import loop; loop({side!r})"]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            round_ = json.loads(output.splitlines()[-1])
            times.append(round_["seconds"])
            said[side] = round_["said"]
    rows = gsm8k_and_math()
    differ = [
        {"gold": gold, "end": text[-80:], "label": label, "ours": ours, "math-verify": theirs}
        for (gold, text, label), ours, theirs in zip(rows, said["ours"], said["theirs"], strict=True)
        if ours != theirs
    ]
    notes = {
        "answers": len(rows),
        "answers/s ours": round(len(rows) / statistics.median(seconds["ours"])),
        "answers/s math-verify": round(len(rows) / statistics.median(seconds["theirs"])),
        "verdicts that differ": differ,
        "labels that differ from ours": sum(
            ours != label for (*_, label), ours in zip(rows, said["ours"], strict=True)
        ),
    }
    return Pair("judging GSM8K and MATH outputs, cold", seconds["ours"], seconds["theirs"], bar=5.0, notes=notes)


def agreement() -> list[dict[str, Any]]:
    """`score` of every labelled set, printed as a table with the false accepts below."""
    with MathsJudge(workers=2, timeout_s=5.0) as judge:
        sets = [answer_pairs(), hard_verify(), *omni_disagreements(), gpt4o_judged(), process_bench()]
        scores = [score(one, judge) for one in sets]
    print(
        "| set | judged (right) | agree | right accepted | wrong accepted | failed | math-verify: agree, right, wrong |"
    )
    print("|---|---|---|---|---|---|---|")
    for one in scores:
        ours, peer, wrong = one["ours"], one["math-verify"], one["judged"] - one["right"]
        print(
            f"| {one['set']} | {one['judged']} ({one['right']}) | {ours['agree'] / one['judged']:.1%} | "
            f"{ours['right accepted']}/{one['right']} | {ours['wrong accepted']}/{wrong} | {one['failed']} | "
            f"{peer['agree'] / one['judged']:.1%}, {peer['right accepted']}, {peer['wrong accepted']} |"
        )
    for one in scores:
        for row in one["false accepts"]:
            print(f"false accept in {one['set']}:", *row, sep=" ; ")
    return scores


def add_to(path: Path, scores: list[dict[str, Any]], hard: dict[str, Any]) -> None:
    """Puts what is no pair of timings into the JSON of the bench."""
    content = json.loads(path.read_text())
    content.update(labelled=scores, pathological=hard)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def measure(count: int = 2_000) -> tuple[Pair, list[dict[str, Any]], dict[str, Any]]:
    """The three rows: throughput, agreement, pathological answers."""
    pair = throughput()
    scores = agreement()
    hard = judge_pathological(count)
    print(
        f"{count} pathological answers at {hard['limit']:g} s: p99 {hard['p99']:.2f} s, max {hard['max']:.2f} s, "
        f"workers {hard['workers']}, scored 0: {len(hard['scored 0'])}, resident MiB (parent, workers) "
        f"{hard['resident MiB (parent, workers)'][0]} to {hard['resident MiB (parent, workers)'][-1]}"
    )
    return pair, scores, hard
