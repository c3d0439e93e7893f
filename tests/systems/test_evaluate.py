"""Evaluations of endpoints and of stored answers: nothing is asked twice, labels are compared, costs are capped."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from endpoint import FakeEndpoint, Status, reply

from fathom.core.errors import AuditFailed, FathomError, UsageError
from fathom.core.records import RecordStore
from fathom.systems import start

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def problems(path: Path, number: int) -> Path:
    rows = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i), "level": i % 5 + 1} for i in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def adds(asked, number):
    """Right on even numbers; an answer names the request that it came with, so that another try would differ."""
    question = asked.body["messages"][-1]["content"]
    i = int(question.split()[2])
    seed = asked.body.get("seed", 0)
    n = asked.body.get("n", 1)
    told = reply(asked)
    for j in range(n):
        right = i % 2 == 0 or (seed + j) % 3 == 0
        told["choices"][j]["message"]["content"] = f"I get \\boxed{{{2 * i if right else 2 * i + 1}}} {seed + j}"
    return told


def evaluated(directory: Path, **values):
    return start("evaluate", values, directory, 7, "test", console=False)


def endpoint_of(endpoint: FakeEndpoint, **more):
    return {"url": endpoint.url, "model": "m", "concurrency": 4, **more}


def scores(directory: Path) -> dict:
    return json.loads((directory / "scores.json").read_text())


def kept(directory: Path) -> list[dict]:
    return [record.data for record in RecordStore(directory / "records").kept()]


def test_an_endpoint_is_evaluated_without_torch(tmp_path):
    file = problems(tmp_path / "p.jsonl", 30)
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "run", endpoint=endpoint_of(endpoint), k=4, problems=30,
                  tasks=[{"task": "math500", "data": str(file)}])
        assert len(endpoint.asked) == 30
    found = scores(tmp_path / "run")
    [task] = found["tasks"]
    assert (task["problems"], task["samples"], task["k"]) == (30, 120, 4)
    assert task["right"] + task["wrong"] == 120 and 60 < task["right"] < 120
    assert set(task["pass_at"]) == {"1", "2", "4"} and set(task["maj_at"]) == {"4"}
    assert task["pass_at"]["4"] > task["pass_at"]["1"] == pytest.approx(task["accuracy"])
    assert task["tables"][0]["title"] == "By level" and len(task["tables"][0]["rows"]) == 5
    assert found["sampling"]["math500"]["k"] == 4
    text = (tmp_path / "run" / "scores.txt").read_text()
    assert "pass@4" in text and "By level" in text and "evaluated: m at" in text
    # the last few lines of the journal hold every answer; another run asks for nothing new
    imported = subprocess.run(
        [sys.executable, "-c", "import fathom.systems.evaluate, sys; sys.exit('torch' in sys.modules)"], check=False)
    assert imported.returncode == 0


def test_the_protocol_of_r1(tmp_path):
    file, other = problems(tmp_path / "p.jsonl", 2), tmp_path / "other.jsonl"
    other.write_text(json.dumps({"problem": "What is 7 + 8?", "answer": "15"}) + "\n")
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "run", endpoint=endpoint_of(endpoint), protocol="r1", problems=2,
                  tasks=[{"task": "math500", "data": str(file)}, {"task": "aime24", "data": str(other)}])
        bodies = [asked.body for asked in endpoint.asked]
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {(0.6, 0.95, 32768)}
    assert sorted({body["n"] for body in bodies}) == [16, 64]
    assert {name: s["k"] for name, s in scores(tmp_path / "run")["sampling"].items()} == {"math500": 16, "aime24": 64}
    with pytest.raises(UsageError, match=r"sampling.temperature: protocol=r1 sets it"):
        evaluated(tmp_path / "other", model="m", protocol="r1", sampling={"temperature": 0.3}, tasks=["x.jsonl"])


def test_what_the_endpoint_withholds_is_not_judged_and_not_wrong(tmp_path):
    file = problems(tmp_path / "p.jsonl", 20)

    def script(asked, number):
        if "What is 3 +" in asked.body["messages"][-1]["content"]:
            return Status(400, {"error": {"message": "content filter", "code": "content_filter"}})
        return adds(asked, number)

    with FakeEndpoint(script) as endpoint, pytest.raises((AuditFailed, FathomError)):
        evaluated(tmp_path / "run", endpoint=endpoint_of(endpoint), problems=20,
                  tasks=[{"task": "math500", "data": str(file)}])


def test_one_model_has_to_be_given(tmp_path):
    with pytest.raises(UsageError, match="0 of them are given"):
        evaluated(tmp_path / "run", tasks=["x.jsonl"])
    with pytest.raises(UsageError, match="no such file or directory"):
        evaluated(tmp_path / "run", stored="nothing.jsonl", tasks=["gsm8k"])
    assert not (tmp_path / "run").exists()


def test_killed_twenty_times_it_asks_only_what_was_in_flight_again(tmp_path):
    file = problems(tmp_path / "p.jsonl", 120)
    flying = 4
    values = {"k": 2, "problems": 120, "tasks": [{"task": "math500", "data": str(file)}]}
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "whole", endpoint=endpoint_of(endpoint, concurrency=flying), **values)
        twin = kept(tmp_path / "whole")
    random.seed(5)
    with FakeEndpoint(adds, delay=0.03) as endpoint:
        command = [sys.executable, "-m", "fathom", "evaluate", f"endpoint.url={endpoint.url}", "endpoint.model=m",
                   f"endpoint.concurrency={flying}", "k=2", "problems=120", "--dir", str(tmp_path / "run"),
                   "--seed", "7", f"tasks=[{{task: math500, data: {file}}}]", "--quiet"]
        kills = 0
        while kills < 20:
            process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
            before, wait = len(endpoint.asked), random.randrange(1, 12)
            while len(endpoint.asked) < before + wait and process.poll() is None:
                time.sleep(0.002)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert ended.returncode == 0
        assert kills == 20
        assert len(endpoint.asked) <= 120 + 20 * flying
        asked = [request.name for request in endpoint.asked]
        assert len(set(asked)) == 120
    assert kept(tmp_path / "run") == twin
    ours, theirs = scores(tmp_path / "run"), scores(tmp_path / "whole")
    assert ours["tasks"] == theirs["tasks"]


REPORT = "## Student Final Answer\nx\n\n## Equivalence Judgement\n{}\n\n## Justification\ny\n\n=== report over ==="


def judges(asked, number):
    content = asked.body["messages"][0]["content"]
    solution = content.rsplit("Student's solution:", 1)[1]
    text = "no report" if "31" in solution else REPORT.format("TRUE" if number % 2 else "**TRUE**")
    told = reply(asked, message={"role": "assistant", "content": text})
    told["usage"] = {"prompt_tokens": len(content) // 3, "completion_tokens": 100, "total_tokens": 0}
    return told


def test_a_model_judges_beside_the_rule_and_what_it_cannot_say_stays_in_the_denominator(tmp_path):
    file = problems(tmp_path / "p.jsonl", 20)
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps({"problem": "p", "answer": "1", "generation": "1", "right": True}) + "\n")
    with FakeEndpoint(adds) as model, FakeEndpoint(judges) as judge, pytest.raises(AuditFailed, match="not be judged"):
        evaluated(tmp_path / "run", endpoint=endpoint_of(model), problems=20,
                  tasks=[{"task": "math500", "data": str(file)}],
                  judge={"endpoint": endpoint_of(judge, model="judge-1", price_in=1.0, price_out=1.0, cap=1.0,
                                                 concurrency=1), "labelled": str(labels)})
    found = scores(tmp_path / "run")
    [task] = found["tasks"]
    assert task["samples"] == 20 == task["right"] + task["wrong"] + task["failed"]
    assert task["failed"] == sum("31" in row["samples"][0]["text"] for row in kept(tmp_path / "run")) > 0
    assert task["accuracy"] == task["right"] / task["samples"]
    assert task["range"][1] == (task["right"] + task["failed"]) / task["samples"]
    names = [row["name"] for row in task["conventions"]]
    assert names[0].startswith("published reading") and names[1].startswith("rule judge")
    assert task["conventions"][0]["of"] == task["samples"] - task["failed"]
    assert found["judge"]["model"] == "judge-1"
    assert found["judge"]["agreement"]["agreed"] == 1
    assert found["judge"]["cost"] > 0


def test_a_judge_that_would_pass_its_cap_stops_before_and_goes_on_with_more(tmp_path):
    from fathom.core.client import CapReached

    file = problems(tmp_path / "p.jsonl", 40)
    with FakeEndpoint(adds) as model, FakeEndpoint(judges) as judge:
        def run(cap):
            return evaluated(
                tmp_path / "run", endpoint=endpoint_of(model), problems=40,
                tasks=[{"task": "math500", "data": str(file)}],
                judge={"endpoint": endpoint_of(judge, price_in=1.0, price_out=1.0, cap=cap)})

        with pytest.raises(CapReached):
            run(1e-5)
        assert not judge.asked
        answered = len(model.asked)
        with pytest.raises(AuditFailed):  # the judge's unreadable reports, which are another test's matter
            run(10.0)
        assert len(judge.asked) == 40
        assert len(model.asked) == answered == 40
    assert scores(tmp_path / "run")["judge"]["cost"] > 0


@pytest.mark.skipif(not (SHARED / "omni_math_judged").exists(), reason="needs shared/data/omni_math_judged")
def test_judged_omni_math_records_are_scored_from_their_file(tmp_path):
    published = gzip.decompress((SHARED / "omni_math_judged" / "gpt4o_judged.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in published.splitlines()]
    for i in (3, 50):
        rows[i]["judge_report"] = "I cannot say."
    file = tmp_path / "judged.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AuditFailed, match=r"1\.9 % of the answers could not be judged"):
        evaluated(tmp_path / "run", stored=str(file), problems=1000, tasks=[{"task": "omni-math", "data": str(file)}])
    [task] = scores(tmp_path / "run")["tasks"]
    right = sum(row["judge_verdict"] for i, row in enumerate(rows) if i not in (3, 50))
    assert (task["samples"], task["right"], task["failed"]) == (104, right, 2)
    assert task["conventions"][0]["of"] == 102 and task["conventions"][0]["right"] == right
    assert task["labels"]["right"] == 102
    assert task["problems"] == 71  # 33 of them answered by both models
    assert {table["title"] for table in task["tables"]} >= {
        "Domain", "Difficulty tier (script)", "Difficulty tier (text)", "Domain × difficulty", "Domain tree"}


@pytest.mark.skipif(not (SHARED / "gsm8k").exists(), reason="needs shared/data/gsm8k")
def test_published_gsm8k_solutions_are_judged_as_published(tmp_path):
    with gzip.open(SHARED / "gsm8k" / "model_solutions_200.jsonl.gz", "rt") as file:
        (tmp_path / "solutions.jsonl").write_text(file.read())
    agreed = asked = 0
    for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        evaluated(tmp_path / model, problems=200, tasks=[{
            "task": str(SHARED / "gsm8k" / "test_200.jsonl"), "test": str(SHARED / "gsm8k" / "test_200.jsonl"),
            "final": "any"}],
            stored={"path": str(tmp_path / "solutions.jsonl"), "question": "question", "text": f"{model}.solution",
                    "label": f"{model}.is_correct"})
        [task] = scores(tmp_path / model)["tasks"]
        agreed, asked = agreed + task["labels"]["right"], asked + task["labels"]["of"]
        listed = (tmp_path / model / "differences.jsonl").read_text().splitlines()
        assert len(listed) == task["labels"]["of"] - task["labels"]["right"]
        assert all(json.loads(line)["reason"] for line in listed)
    assert asked == 800
    assert agreed >= 0.99 * asked


@pytest.mark.skipif(not (SHARED / "omni_math_judged").exists(), reason="needs shared/data/omni_math_judged")
def test_one_model_of_a_file_with_two(tmp_path):
    file = tmp_path / "judged.jsonl.gz"
    file.write_bytes((SHARED / "omni_math_judged" / "gpt4o_judged.jsonl.gz").read_bytes())
    evaluated(tmp_path / "run", stored={"path": str(file), "where": {"model": "internlm2-math-plus-mixtral8x22b"}},
              problems=1000, tasks=[{"task": "omni-math", "data": str(file)}])
    found = scores(tmp_path / "run")
    assert (found["tasks"][0]["samples"], found["without_answers"]) == (50, 21)
    assert "21 problems have no stored answer" in (tmp_path / "run" / "scores.txt").read_text()
    # judged anew, by the rule alone: the answers of an evaluation are stored answers too
    evaluated(tmp_path / "anew", stored=str(tmp_path / "run"), problems=1000,
              tasks=[{"task": "omni-math", "data": str(file)}])
    assert scores(tmp_path / "anew")["tasks"][0]["samples"] == 50


def test_best_of_n_by_stored_scores_and_labels(tmp_path):
    file = problems(tmp_path / "p.jsonl", 4)
    stored = tmp_path / "s.jsonl"
    stored.write_text("".join(json.dumps({
        "question": f"What is {i} + {i}?", "generations": [f"\\boxed{{{2 * i}}}", "\\boxed{-1}", "none"],
        "pred_score": [[0.9], [0.1], [0.5]] if i % 2 else [[0.1], [0.9], [0.5]], "score": [True, False, True]}) + "\n"
        for i in range(4)) + "[1]\n" + json.dumps({"question": "x"}) + "\n")
    evaluated(tmp_path / "run", stored=str(stored), k=3, problems=4, tasks=[{"task": "math500", "data": str(file)}])
    [task] = scores(tmp_path / "run")["tasks"]
    assert task["best_of"] == {"1": pytest.approx(1 / 3), "2": pytest.approx((2 / 3 + 0) / 2), "3": 0.5}
    assert task["maj_at"]["3"] == 1.0
    assert task["right_among_solved"]["2"] == 0.5
    assert (task["labels"]["right"], task["labels"]["of"]) == (8, 12)
    listed = [json.loads(line) for line in (tmp_path / "run" / "differences.jsonl").read_text().splitlines()]
    assert [(one["outcome"], one["label"]) for one in listed] == [("unread", True)] * 4


def test_results_in_the_forms_of_other_harnesses(tmp_path):
    import pyarrow.parquet

    from fathom.tasks.export import export

    file = problems(tmp_path / "p.jsonl", 6)
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "run", endpoint=endpoint_of(endpoint), k=2, problems=6, format="lm-eval",
                  tasks=[{"task": "math500", "data": str(file)}])
    [task] = scores(tmp_path / "run")["tasks"]
    place = tmp_path / "run" / "export" / "lm-eval"
    results = json.loads(next(place.glob("results_*.json")).read_text())
    assert results["results"]["math500"]["exact_match,none"] == task["accuracy"]
    samples = [json.loads(line) for line in next(place.glob("samples_math500_*.jsonl")).read_text().splitlines()]
    assert len(samples) == 6
    assert sum(sample["exact_match"] for sample in samples) / 6 == pytest.approx(task["accuracy"])
    assert all(len(sample["resps"][0]) == 2 for sample in samples)
    # what was exported is read again as stored answers
    evaluated(tmp_path / "again", stored=str(next(place.glob("samples_*"))), problems=6,
              tasks=[{"task": "math500", "data": str(file)}])
    assert scores(tmp_path / "again")["tasks"][0]["accuracy"] == task["accuracy"]
    other = export(tmp_path / "run", "lighteval")
    results = json.loads(next(other.rglob("results_*.json")).read_text())
    assert results["results"]["all"]["pass@1"] == task["accuracy"]
    assert pyarrow.parquet.read_table(next(other.rglob("details_*.parquet"))).num_rows == 6
    with pytest.raises(UsageError, match="must be one of"):
        export(tmp_path / "run", "csv")


def uneven(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "stored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_stored_counts_whatever_else_its_row_lacks(tmp_path, caplog):
    """A null among answers was asked; a null label is none; words for labels are read; two models are told."""
    file = problems(tmp_path / "p.jsonl", 4)
    stored = uneven(tmp_path, [
        {"problem": "What is 0 + 0?", "responses": ["\\boxed{0}", None], "right": ["true", 0], "model": "a"},
        {"problem": "What is 1 + 1?", "responses": ["\\boxed{2}"], "right": None, "model": "b"},
        {"problem": "What is 2 + 2?", "responses": ["\\boxed{4}"], "right": "maybe", "model": "b"},
        {"problem": "What is 9 + 9?", "responses": ["x" * (3 << 20)], "right": False, "model": "b"},
    ])
    evaluated(tmp_path / "run", stored=str(stored), problems=4, tasks=[{"task": "math500", "data": str(file)}])
    found = scores(tmp_path / "run")
    [task] = found["tasks"]
    assert (task["samples"], task["right"], task["unread"]) == (4, 3, 1)
    assert task["low"] < task["accuracy"] < task["high"]
    assert (task["labels"]["right"], task["labels"]["of"]) == (2, 2)
    assert found["without_answers"] == 1
    log = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
    assert "a label that is none (1)" in log
    assert "answers of 2 models (a, b) are scored together" in log
    assert "stored problems that no task asks 1" in log


def test_stored_files_that_fit_nothing_are_refused_before_there_is_a_run(tmp_path):
    file = problems(tmp_path / "p.jsonl", 4)
    tasks = [{"task": "math500", "data": str(file)}]
    other = uneven(tmp_path, [{"problem": "What is 7 + 70?", "said": "x"}])
    with pytest.raises(UsageError, match=r"Its rows have problem, said: name stored\.question and stored\.text"):
        evaluated(tmp_path / "run", stored=str(other), tasks=tasks)
    with pytest.raises(UsageError, match=r"stored\.label=mark: no row has a label there"):
        evaluated(tmp_path / "run", stored={"path": str(other), "text": "said", "label": "mark"}, tasks=tasks)
    with pytest.raises(UsageError, match=r"its model is b \(1\)"):
        evaluated(tmp_path / "run", stored={"path": str(uneven(tmp_path, [
            {"problem": "p", "response": "x", "model": "b"}])), "where": {"model": "a"}}, tasks=tasks)
    with pytest.raises(UsageError, match="nothing:there: no module nothing"):
        evaluated(tmp_path / "run", best_by="nothing:there", tasks=tasks,
                  stored=str(uneven(tmp_path, [{"problem": "What is 1 + 1?", "response": "x"}])))
    assert not (tmp_path / "run").exists()
    other = uneven(tmp_path, [{"problem": "What is 7 + 70?", "response": "x"}])
    with pytest.raises(UsageError, match="an answer to none of the problems"):
        evaluated(tmp_path / "run", stored=str(other), tasks=tasks)
    few = uneven(tmp_path, [{"problem": "What is 1 + 1?", "response": "x"}])
    with pytest.raises(UsageError, match="no problem has k=16 answers, at most 1; lower k"):
        evaluated(tmp_path / "other", stored=str(few), k=16, tasks=tasks)


def test_rows_that_are_no_problems_are_rejects_by_name(tmp_path):
    row = {"domain": ["Mathematics -> Algebra"], "difficulty": 2.0, "problem": "What is 2 + 2?", "answer": "4"}
    file = tmp_path / "o.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in (
        row, {**row, "problem": "q", "difficulty": None}, {**row, "problem": "r", "domain": None}, row)))
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "run", endpoint=endpoint_of(endpoint), tasks=[{"task": "omni-math", "data": str(file)}])
        assert len(endpoint.asked) == 1
    rejected = sorted(reason for _, reason in RecordStore(tmp_path / "run" / "records").rejected())
    assert rejected == ["difficulty is missing", "domain is missing", "question appeared before"]
    assert scores(tmp_path / "run").get("without_answers") is None
    text = (tmp_path / "run" / "scores.txt").read_text()
    assert "3 rows are no problems and in no score: difficulty is missing (1)" in text


def test_one_prompt_that_is_never_answered_can_fail_alone(tmp_path):
    file = problems(tmp_path / "p.jsonl", 30)

    def script(asked, number):
        question = asked.body["messages"][-1]["content"]
        if "What is 3 +" in question:
            return Status(500, {"error": {"message": "out of order"}})
        if "What is 5 +" in question:
            return Status(400, {"error": {"message": "I do not like it"}})
        return adds(asked, number)

    with FakeEndpoint(script) as endpoint, pytest.raises(AuditFailed, match=r"6\.7 %"):
        evaluated(tmp_path / "run", problems=30, tasks=[{"task": "math500", "data": str(file)}],
                  endpoint=endpoint_of(endpoint, retries=1, backoff_s=0.01, after_retries="fail"))
    [task] = scores(tmp_path / "run")["tasks"]
    assert (task["samples"], task["failed"]) == (30, 2)
    reasons = [row["samples"][0]["reason"] for row in kept(tmp_path / "run")
               if row["samples"][0]["outcome"] == "failed"]
    assert all(reason.startswith("no answer came: ") for reason in reasons)
    with FakeEndpoint(lambda asked, number: Status(500)) as endpoint, pytest.raises(FathomError, match="no answer"):
        evaluated(tmp_path / "down", problems=30, tasks=[{"task": "math500", "data": str(file)}],
                  endpoint=endpoint_of(endpoint, retries=0, after_retries="fail"))


def test_a_comparison_with_a_broken_judge_is_open(tmp_path):
    from fathom.report.compare import compare, render

    file = problems(tmp_path / "p.jsonl", 30)
    good = "".join(json.dumps({"problem": f"What is {i} + {i}?", "response": f"\\boxed{{{2 * i}}}",
                               "judge_report": REPORT.format("TRUE")}) + "\n" for i in range(30))
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "bad.jsonl").write_text(good.replace("TRUE", "perhaps"))
    for name in ("good", "bad"):
        try:
            evaluated(tmp_path / name, stored=str(tmp_path / f"{name}.jsonl"), problems=30,
                      tasks=[{"task": "math500", "data": str(file)}])
        except AuditFailed:
            assert name == "bad"
    text = render(compare(tmp_path / "bad", tmp_path / "good"), 2)
    assert "open: too much was not judged" in text
    assert "30 problems better in B, 0 worse" in text and "and 28 more (--flips)" in text


def test_a_local_test_file_of_a_declared_set_is_asked_whole(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps({"question": f"What is {i} + {i}?", "answer": f"so\\n#### {2 * i}"}) + "\n"
                            for i in range(40)))
    with FakeEndpoint(adds) as endpoint:
        evaluated(tmp_path / "whole", endpoint=endpoint_of(endpoint), tasks=[{"task": "gsm8k", "test": str(file)}])
        evaluated(tmp_path / "part", endpoint=endpoint_of(endpoint), tasks=[{"task": "gsm8k", "data": str(file)}])
    assert scores(tmp_path / "whole")["tasks"][0]["problems"] == 40
    assert scores(tmp_path / "part")["tasks"][0]["problems"] < 15
    assert "10 % of the rows are kept apart for test" in (tmp_path / "part" / "scores.txt").read_text()


def test_training_texts_that_hold_test_problems_are_listed(tmp_path):
    words = "a farmer has {} cows and buys as many again, how many legs do they have then"
    test, train = tmp_path / "test.jsonl", tmp_path / "train.jsonl"
    test.write_text("".join(json.dumps({"problem": words.format(i), "answer": str(8 * i)}) + "\n" for i in (3, 4))
                    + json.dumps({"problem": "Compute $\\frac{7}{9}$", "answer": "7/9"}) + "\n"
                    + json.dumps({"problem": "求 7 加 9 的和", "answer": "16"}) + "\n")
    train.write_text("\n".join([
        json.dumps({"messages": [{"role": "user", "content": f"Hello! {words.format(3).upper()}?"}]}),
        json.dumps({"text": "nothing of the kind, in many words that stand nowhere else in this world at all"}),
        json.dumps({"anything": {"deep": ["please compute \\dfrac{7}{9}", 5]}}),
        json.dumps({"q": "请问: 求 7 加 9 的和 是多少"}), "no JSON"]) + "\n")
    start("overlap", {"data": [str(train)], "tasks": [{"task": "math500", "data": str(test), "ask": ""}]},
          tmp_path / "run", 1, "test", console=False)
    found = json.loads((tmp_path / "run" / "overlap.json").read_text())
    told = found["tasks"]["math500"]
    assert (told["problems"], told["found"], told["found whole"]) == (4, 4, 3)
    assert found["texts with a test problem"] == 3
    hits = [record.data for record in RecordStore(tmp_path / "run" / "records").kept()]
    assert any(hit["words"] == "compute frac 7 9" and hit["share"] == 1 for hit in hits)
    [(_, reason)] = RecordStore(tmp_path / "run" / "records").rejected()
    assert reason == "not JSON"


def test_what_a_model_continues_word_for_word(small, place):
    """A model taught one line by heart is found out; at places where it cannot know it is not."""
    line = "3 + 4 = 7 and 5 + 6 = 11 and 7 + 8 = 15 and 9 + 9 = 18"
    chat = place / "chats.jsonl"
    chat.write_text((json.dumps({"text": line}) + "\n") * 1 + json.dumps({"text": line + " "}) + "\n")
    other = "9 9 9 = 3 + + 1 and 2 2 = = 7 1 1 + 8 and 0 0 6 = 5 4 + +"
    test = place / "test.jsonl"
    test.write_text("".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in (line, other)))
    taught = small.forks[0].run(
        "sft", f"init={small.root / 'base' / 'model'}", f"data=[{{data: {chat}}}]", "epochs=150", "mtp=0",
        "tokens_per_step=128", "sequence_length=128", "optim.lr=0.01", "--dir", place / "taught")
    assert taught.code == 0, taught.said
    done = small.forks[0].run(
        "leakage", f"model={place / 'taught' / 'model'}", f'tasks=[{{task: math500, data: {test}, ask: ""}}]',
        "tokens=3", "places=4", "--dir", place / "leakage")
    assert done.code == 0, done.said
    found = json.loads((place / "leakage" / "leakage.json").read_text())["tasks"]["math500"]
    assert (found["problems"], found["contaminated"]) == (2, 1)
    assert found["places"] == 8 and 4 <= found["places predicted"] < 8
