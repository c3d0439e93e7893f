"""The same prompts to the same model by `fathom evaluate` and by lm-evaluation-harness: texts and scores side by side.

`python -m bench evaluation MODEL --lm-eval VENV/bin/python --data FOLDER`: as for `harness`. Two tasks: GSM8K, asked
for a boxed answer, and true or false of BIG-Bench Hard. Both sides compute in FP32, greedily, and see the same chat.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import _generated, _task, records, run
from bench.measure import RESULTS
from fathom.core import machine
from fathom.core.records import RecordStore
from fathom.tasks.prompting import ASKS

TOKENS = {"fathom_gsm8k": 256, "fathom_bbh": 128}


def main(words: Sequence[str] | None = None) -> None:
    """Runs both sides and prints the table; rows are saved in bench/results/evaluation.json."""
    asked = argparse.ArgumentParser(prog="python -m bench evaluation", description=__doc__)
    asked.add_argument("model", type=Path)
    asked.add_argument("--lm-eval", type=Path, required=True, help="a python that has lm-eval[api,hf]")
    asked.add_argument("--data", type=Path, required=True, help="a folder with gsm8k/ and reasoning/")
    asked.add_argument("--items", type=int, default=100, help="of each task (default: 100)")
    asked.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fathom-evaluation")
    given = asked.parse_args(words)
    shutil.rmtree(given.work, ignore_errors=True)
    files = _tasks(given.data, given.work / "tasks", given.items)
    ours = {name: _ours(given.model, given.work, name, path, given.items) for name, path in files.items()}
    theirs = run(given.lm_eval, given.work / "tasks", given.work / "hf", [
        "hf", "--model_args", f"pretrained={given.model},dtype=float32", "--batch_size", "8"], True, tuple(files))
    rows = [_row(name, ours[name], theirs) for name in files]
    print("| task | items | lm-eval's score | Fathom's score | difference | lm-eval's standard error | equal texts |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['task']} | {row['items']} | {row['theirs']:.3f} | {row['ours']:.3f} | "
              f"{row['ours'] - row['theirs']:+.3f} | {row['stderr']:.3f} | {row['equal texts']} |")
        for line in row["verdicts that differ"]:
            print(f"  {line}")
    about = {"device": machine.device(), "commit": machine.commit(), "versions": machine.versions()}
    (RESULTS / "evaluation.json").write_text(json.dumps({**about, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


def _tasks(data: Path, folder: Path, items: int) -> dict[str, Path]:
    """The same questions as the harness's tasks and as files of ours."""
    folder.mkdir(parents=True)
    problems = [{"problem": row["question"], "answer": row["answer"].rpartition("####")[2].strip().replace(",", "")}
                for row in records(data / "gsm8k" / "test_200.jsonl")[:items]]
    logic = [row for row in records(data / "reasoning" / "bbh_even.jsonl.gz") if row["task"] == "boolean_expressions"]
    _task(folder, "gsm8k", problems, _written(TOKENS["fathom_gsm8k"], r"\\boxed\{\$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)") | {
        "doc_to_text": "{{problem}}\n\n" + ASKS["boxed"], "doc_to_target": "{{answer}}"})
    _task(folder, "bbh", logic[:items], _written(TOKENS["fathom_bbh"], r"[Tt]he answer is:? \**(True|False)") | {
        "doc_to_text": "{{input}}\n\n" + ASKS["words"], "doc_to_target": "{{target}}"})
    return {"fathom_gsm8k": folder / "gsm8k_test.jsonl", "fathom_bbh": folder / "bbh_test.jsonl"}


def _written(tokens: int, pattern: str) -> dict[str, Any]:
    found = _generated(tokens, pattern, -1)
    found["generation_kwargs"]["until"] = ["<|im_end|>"]  # nothing but the end of the turn
    return found


def _ours(model: Path, work: Path, name: str, path: Path, items: int) -> dict[str, Any]:
    """Score, and samples by question, of our own evaluation."""
    task = {"task": {"fathom_gsm8k": "math500", "fathom_bbh": "bbh"}[name], "data": str(path)}
    place = work / f"ours-{name}"
    subprocess.run(
        [sys.executable, "-m", "fathom", "evaluate", f"model={model}", f"tasks={json.dumps([task])}",
         f"problems={items}", f"sampling.max_tokens={TOKENS[name]}", "sampling.temperature=0", "dtype=float32",
         "--dir", str(place)], check=True)
    [score] = json.loads((place / "scores.json").read_text())["tasks"]
    kept = RecordStore(place / "records").kept()
    samples = {row.data["prompt"][-1]["content"]: row.data["samples"][0] for row in kept}
    return {"score": score, "samples": samples}


def _row(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    result = theirs["results"][name]
    equal, items, differ = 0, 0, []
    for sample in theirs["samples"][name]:
        doc = sample["doc"]
        question = f"{doc.get('problem', doc.get('input'))}\n\n{ASKS['boxed' if 'problem' in doc else 'words']}"
        mine, text = ours["samples"][question], sample["resps"][0][0]
        items += 1
        equal += mine["text"].strip() == text.strip()
        if (mine["outcome"] == "right") != bool(sample["exact_match"]):
            differ.append(f"{doc.get('answer', doc.get('target'))}: ours {mine['outcome']} ({mine['extracted']!r}), "
                          f"theirs {sample['filtered_resps']}; texts equal: {mine['text'].strip() == text.strip()}")
    return {"task": name, "items": items, "ours": ours["score"]["accuracy"], "theirs": result["exact_match,match"],
            "stderr": result["exact_match_stderr,match"], "equal texts": equal, "verdicts that differ": differ}


if __name__ == "__main__":
    main()
