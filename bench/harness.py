"""A model scored twice by lm-evaluation-harness: by the harness's own Hugging Face backend, and through `fathom serve`.

`python -m bench.harness MODEL --lm-eval VENV/bin/python --data FOLDER`: MODEL is a Hugging Face directory that
transformers reads, VENV has `lm-eval[api,hf]`, FOLDER has `gsm8k/` and `reasoning/bbh_even.jsonl.gz`. Both sides
compute in FP32 and run at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.measure import RESULTS
from fathom.core import machine

CLOSE = 0.001  # log-probabilities further apart than this are counted as different, in nats per request
OPTION = re.compile(r"^\(([A-Z])\) (.+)$", re.MULTILINE)
NUMBER = r"(-?[0-9][0-9,]*(?:\.[0-9]+)?)"
# a chat's interface tells no log-probabilities of given texts
KINDS = {False: ("fathom_gsm8k", "fathom_booleans", "fathom_options", "fathom_text"),
         True: ("fathom_gsm8k", "fathom_booleans")}

Records = list[dict[str, Any]]


def write_tasks(data: Path, folder: Path, items: int) -> None:
    """Task files for the harness: answers to be written or chosen, and texts to be predicted."""
    folder.mkdir(parents=True, exist_ok=True)
    problems, shots = (records(data / "gsm8k" / name) for name in ("test_200.jsonl", "train.jsonl.gz"))
    logic = records(data / "reasoning" / "bbh_even.jsonl.gz")
    booleans = [record for record in logic if record["task"] == "boolean_expressions"]
    options = []
    for record in logic:
        query, _, given = record["input"].partition("Options:")
        letters, texts = zip(*OPTION.findall(given), strict=True) if OPTION.search(given) else ((), ())
        if record["task"] in ("hyperbaton", "ruin_names") and (right := record["target"].strip("()")) in letters:
            options.append({"query": query.strip(), "gold": letters.index(right), "choices": texts})
    _task(folder, "gsm8k", problems[:-(-items // 5)], _generated(96, NUMBER, -1) | {
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}"}, shots[:1])
    _task(folder, "booleans", booleans[2: items + 2], _generated(4, "(True|False)", 0) | {
        "doc_to_text": "Question: {{input}}\nAnswer:", "doc_to_target": "{{target}}"}, booleans[:2])
    _task(folder, "options", options[::max(1, len(options) // items)][:items], {
        "output_type": "multiple_choice", "doc_to_text": "{{query}}\nAnswer:", "doc_to_target": "gold",
        "doc_to_choice": "choices", "metric_list": [_metric("acc"), _metric("acc_norm")]})
    _task(folder, "text", problems[:items], {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]})


def _task(
    folder: Path, name: str, records: Records, config: dict[str, Any], shots: Records | None = None
) -> None:
    """Writes a task's file and its records; `shots` stand solved before each."""
    files = {}
    for split, rows in {"test": records, **({"shots": shots} if shots else {})}.items():
        files[split] = str(folder / f"{name}_{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config |= {"task": f"fathom_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
               "test_split": "test", "num_fewshot": len(shots or ()), "metadata": {"version": 1}}
    if shots:
        config |= {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}}
    (folder / f"{name}.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML


def _generated(tokens: int, pattern: str, which: int) -> dict[str, Any]:
    """A task whose answer is the first or last match in what is written."""
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["Question:", "\n\n"], "do_sample": False, "temperature": 0.0,
                              "max_gen_toks": tokens},
        "filter_list": [{"name": "match", "filter": [
            {"function": "regex", "regex_pattern": pattern, "group_select": which}, {"function": "take_first"}]}],
        "metric_list": [_metric("exact_match") | {"regexes_to_ignore": [",", "(?s).*#### "]}]}


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def records(path: Path) -> Records:
    """The rows of a file of JSON lines, packed with gzip or not."""
    if not path.is_file():
        sys.exit(f"{path}: not found; --data is a folder with gsm8k/ and reasoning/")
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@contextlib.contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """The address of our server on the model, while it runs."""
    command = [sys.executable, "-m", "fathom", "serve", str(model), "--dtype", "float32", "--port", "0", "--name", "m"]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        while (told := re.search(r"http://[0-9.]+:[0-9]+", log.read_text())) is None:
            if server.poll() is not None:
                sys.exit(f"the server ended: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield told[0]
    finally:
        server.terminate()
        server.wait(60)


def run(
    python: Path, folder: Path, out: Path, model: list[str], chat: bool, tasks: Sequence[str] = ()
) -> dict[str, Any]:
    """What the harness says of the tasks: results, and samples by task; its log lies beside what it leaves in `out`."""
    command = [str(python), "-m", "lm_eval", "run", "--model", *model, "--include_path", str(folder), "--log_samples",
               "--tasks", ",".join(tasks or KINDS[chat]), "--output_path", str(out), *["--apply_chat_template"][:chat]]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OPENAI_API_KEY": "none"}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with (out / "log").open("w") as log:
        code = subprocess.run(command, env=env, stdout=log, stderr=log, check=False).returncode
    if code:
        raise RuntimeError(f"lm_eval failed ({code}): {(out / 'log').read_text()[-3000:]}")
    samples = {task: sorted(records(next(out.rglob(f"samples_{task}_*.jsonl"))), key=lambda s: int(s["doc_id"]))
               for task in tasks or KINDS[chat]}
    return {"results": json.loads(next(out.rglob("results_*.json")).read_text())["results"], "samples": samples}


def compare(theirs: dict[str, Any], ours: dict[str, Any], task: str) -> dict[str, Any]:
    """Scores of both sides, whether they agree within the harness's standard error, and how many answers are equal."""
    scores: dict[str, Any] = {}
    for metric, value in theirs["results"][task].items():
        name, _, kind = metric.partition(",")
        if kind and not name.endswith("_stderr"):
            error = theirs["results"][task].get(f"{name}_stderr,{kind}")
            mine = ours["results"][task][metric]
            # figures without a standard error are told by sums of log-probabilities
            room = float(error) if isinstance(error, float) else 1e-4 * abs(value)
            scores[name] = {"hf": value, "fathom": mine, "stderr": error, "agrees": abs(mine - value) <= room}
    equal, furthest = 0, 0.0
    pairs = list(zip(theirs["samples"][task], ours["samples"][task], strict=True))
    for his, mine in pairs:
        if task in KINDS[True]:  # what was written
            equal += his["resps"] == mine["resps"]
            continue
        # a log-probability, or a pair of it and whether the text is the likeliest; all as text
        a, b = ([one if isinstance(one, list) else [one] for one, in sample["resps"]] for sample in (his, mine))
        apart = max(abs(float(x[0]) - float(y[0])) for x, y in zip(a, b, strict=True))
        furthest = max(furthest, apart)
        equal += apart <= CLOSE and [x[1:] for x in a] == [y[1:] for y in b]
    return {"task": task, "scores": scores, "items": len(pairs), "equal": equal, "furthest": furthest}


def main(words: Sequence[str] | None = None) -> None:
    """Runs both sides, prints a table and writes bench/results/harness.json."""
    asked = argparse.ArgumentParser(prog="python -m bench harness", description=__doc__)
    asked.add_argument("model", type=Path)
    asked.add_argument("--lm-eval", type=Path, required=True, help="a python that has lm-eval[api,hf]")
    asked.add_argument("--data", type=Path, required=True, help="a folder with gsm8k/ and reasoning/")
    asked.add_argument("--items", type=int, default=100, help="of each task (default: 100)")
    asked.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fathom-harness")
    given = asked.parse_args(words)
    write_tasks(given.data, given.work / "tasks", given.items)
    hf = ["hf", "--model_args", f"pretrained={given.model},dtype=float32", "--device", "cpu", "--batch_size", "20"]
    runs: dict[tuple[str, bool], Future[dict[str, Any]]] = {}
    with served(given.model, given.work / "server.log") as url, ThreadPoolExecutor() as pool:
        for chat in KINDS:
            route = f"{'chat/' if chat else ''}completions"
            api = [f"local-{route.replace('/', '-')}", "--model_args",
                   f"model=m,base_url={url}/v1/{route},num_concurrent=32,max_length=8192,timeout=7200,"
                   f"tokenizer={given.model},tokenizer_backend=huggingface,tokenized_requests={not chat}"]
            for side, backend in (("hf", hf), ("fathom", api)):
                place = given.work / f"{side}-{'chat' if chat else 'plain'}"
                runs[side, chat] = pool.submit(run, given.lm_eval, given.work / "tasks", place, backend, chat)
    rows = [{"backend": f"local-{'chat-' if chat else ''}completions",
             **compare(runs["hf", chat].result(), runs["fathom", chat].result(), task)}
            for chat, tasks in KINDS.items() for task in tasks]
    print("| task | backend | score | hf | through the server | agrees | equal answers |", "|---" * 7 + "|", sep="\n")
    for row in rows:
        for name, score in row["scores"].items():
            error = f" ± {score['stderr']:.4f}" if isinstance(score["stderr"], float) else ""
            print(f"| {row['task']} | {row['backend']} | {name} | {score['hf']:.4f}{error} | {score['fathom']:.4f} | "
                  f"{'yes' if score['agrees'] else 'NO'} | {row['equal']} of {row['items']} |")
    version = subprocess.run([given.lm_eval, "-c", "from importlib.metadata import version as v; "
                              "print(v('lm_eval'), v('transformers'))"], capture_output=True, text=True, check=True)
    RESULTS.joinpath("harness.json").write_text(json.dumps({
        "device": machine.device(), "commit": machine.commit(), "versions": {
            **machine.versions(), **dict(zip(("lm_eval", "peer transformers"), version.stdout.split(), strict=True))},
        "model": given.model.name, "rows": rows}, indent=1) + "\n")
    sys.exit(not all(score["agrees"] for row in rows for score in row["scores"].values()))


if __name__ == "__main__":
    main()
