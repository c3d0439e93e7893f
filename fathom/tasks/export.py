"""A finished evaluation in the files of other harnesses, so that tools which read those read it too."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from fathom.core import disk
from fathom.core.errors import UsageError
from fathom.core.records import RecordStore
from fathom.core.run import read_manifest

Formats = Literal["lm-eval", "lighteval"]
METRIC = "pass@1"


def export(directory: Path, format: str) -> Path:
    """Writes DIR/export/FORMAT from DIR/scores.json and DIR/records; returns it. UsageError where there are none."""
    if format not in get_args(Formats):
        raise UsageError(f"format={format:.40}: must be one of {', '.join(get_args(Formats))}")
    scores = directory / "scores.json"
    if not scores.is_file():
        raise UsageError(f"{directory}: holds no scores.json; name the directory of a finished evaluation")
    found = disk.read_json(scores)
    stamp = str((read_manifest(directory).get("attempts") or [{}])[0].get("started", "")) or "unknown"
    stamp = re.sub(r"[^0-9T.\-]", "-", stamp.partition("+")[0])
    target = directory / "export" / format
    target.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in RecordStore(directory / "records").kept():
        data = {name: json.loads(value) if name in ("prompt", "about", "samples") and isinstance(value, str) else value
                for name, value in record.data.items()}
        rows.setdefault(data["task"], []).append(data)
    (_lm_eval if format == "lm-eval" else _lighteval)(target, stamp, found, rows)
    return target


def _error(rows: list[dict[str, Any]]) -> float:
    """The standard error of the mean over problems, each with the share of its samples that is right."""
    shares = [sum(s["outcome"] == "right" for s in row["samples"]) / len(row["samples"]) for row in rows]
    return statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _lm_eval(target: Path, stamp: str, found: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> None:
    tasks = {score["task"]: score for score in found["tasks"]}
    results = {
        name: {"alias": name, "exact_match,none": score["accuracy"], "exact_match_stderr,none": _error(rows[name])}
        for name, score in tasks.items()}
    text = {
        "results": results,
        "group_subtasks": {name: [] for name in tasks},
        "configs": {name: {"task": name, "output_type": "generate_until", "repeats": score["k"],
                           "metadata": {"version": 1.0}} for name, score in tasks.items()},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": {name: found.get("sampling", {}).get(name, {}).get("shots", 0) for name in tasks},
        "higher_is_better": {name: {"exact_match": True} for name in tasks},
        "n-samples": {name: {"original": s["problems"], "effective": s["problems"]} for name, s in tasks.items()},
        "config": {"model": "fathom", "model_args": found["model"], "gen_kwargs": found.get("sampling", {})},
        "model_source": "fathom", "model_name": found["model"], "model_name_sanitized": _safe(found["model"]),
    }
    disk.write_atomic(target / f"results_{stamp}.json", json.dumps(text, indent=2, ensure_ascii=False))
    for name, kept in rows.items():
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in _lm_eval_samples(name, kept))
        disk.write_atomic(target / f"samples_{_safe(name)}_{stamp}.jsonl", "".join(lines))


def _lm_eval_samples(task: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        question = row["prompt"][-1]["content"]
        doc = {"problem": question, "answer": row["answer"], "id": row["problem"], **(row["about"] or {})}
        texts = [sample["text"] for sample in row["samples"]]
        share = sum(sample["outcome"] == "right" for sample in row["samples"]) / len(texts)
        yield {
            "doc_id": number, "doc": doc, "target": row["answer"],
            "arguments": {"gen_args_0": {"arg_0": json.dumps(row["prompt"], ensure_ascii=False), "arg_1": {}}},
            "resps": [texts], "filtered_resps": [sample["extracted"] for sample in row["samples"]], "filter": "none",
            "metrics": ["exact_match"], "exact_match": share, "doc_hash": _hash(doc),
            "prompt_hash": _hash(question), "target_hash": _hash(row["answer"]), "task": task}


def _lighteval(target: Path, stamp: str, found: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> None:
    import pyarrow
    import pyarrow.parquet

    tasks = {f"fathom|{score['task']}|0": score for score in found["tasks"]}
    results = {name: {METRIC: s["accuracy"], f"{METRIC}_stderr": _error(rows[s["task"]])} for name, s in tasks.items()}
    results["all"] = {
        METRIC: sum(s["accuracy"] for s in tasks.values()) / len(tasks),
        f"{METRIC}_stderr": math.sqrt(sum(_error(kept) ** 2 for kept in rows.values())) / len(tasks)}
    text = {
        "config_general": {"model_name": found["model"], "num_fewshot_seeds": 1, "max_samples": None,
                           "generation_parameters": found.get("sampling", {})},
        "results": results, "versions": dict.fromkeys(tasks, 0),
        "config_tasks": {name: {"name": s["task"], "num_samples": [s["k"]]} for name, s in tasks.items()},
        "summary_tasks": {}, "summary_general": {},
    }
    model = _safe(found["model"])
    results_dir, details = target / "results" / model, target / "details" / model / stamp
    for folder in (results_dir, details):
        folder.mkdir(parents=True, exist_ok=True)
    disk.write_atomic(results_dir / f"results_{stamp}.json", json.dumps(text, indent=2, ensure_ascii=False))
    for name, kept in rows.items():
        table = pyarrow.Table.from_pylist([
            {"doc": {"query": row["prompt"][-1]["content"], "choices": [row["answer"]], "gold_index": [0],
                     "id": row["problem"], "task_name": name},
             "model_response": {"text": [sample["text"] for sample in row["samples"]],
                                "text_post_processed": [sample["extracted"] or "" for sample in row["samples"]]},
             "metric": {METRIC: sum(s["outcome"] == "right" for s in row["samples"]) / len(row["samples"])}}
            for row in kept])
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        disk.write_atomic(details / f"details_fathom|{_safe(name)}|0_{stamp}.parquet", sink.getvalue().to_pybytes())
