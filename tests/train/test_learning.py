"""The learner: stopped and continued equals uninterrupted to the bit; what is not finite never reaches the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import GQA_TIED, MLA_MOE, sharp
from made_steps import documents
from safetensors.torch import load_file

from fathom.core import disk
from fathom.core.config import Settings
from fathom.core.errors import FathomError, Stopped
from fathom.core.run import Run
from fathom.model.config import ModelConfig
from fathom.model.transformer import Transformer
from fathom.train import checkpoint
from fathom.train.batch import Batch, pack, token_mean
from fathom.train.learner import Learner
from fathom.train.loader import Examples, Loader
from fathom.train.objective import Loss, next_token
from fathom.train.schedule import AdamW, Checkpoints


class Made(Settings):
    """Settings of a made run."""


STEPS = 9
OPTIM = AdamW(lr=3e-3, warmup=2, schedule="cosine", bias_speed=0.01)


class Broken(Exception):
    """What ends a run without warning."""


def train(
    directory: Path, config: ModelConfig = MLA_MOE, dtype: torch.dtype = torch.float32,
    checkpoints: Checkpoints | None = None, before: Callable[[int, Learner], None] = lambda step, learner: None,
    until: int = STEPS, seed: int = 0,
) -> Learner:
    """A whole little training loop, as the systems write it; `before` is called in each step before its update."""
    every = Examples.gather((e.tokens, e.trained) for e in documents(config, 9, 14, 5, 12, 7, 20, 6, seed=seed))
    with Run.open(directory, "made", Made(), seed=7, console=False) as run:
        model = sharp(config, dtype=dtype)
        loader = Loader(every, lambda epoch: run.rng("order", epoch))
        learner = Learner(model, OPTIM, run, checkpoints or Checkpoints(every=3, keep=2), loader=loader)
        for step in learner.steps(until):
            examples = loader.take(24)
            for batch in pack(examples, token_mean, 16):
                learner.backward(next_token(model, batch, 0.3, 0.01), batch)
            before(step, learner)
            seen = learner.count_tokens(examples)
            run.metrics(step, **learner.step(), tokens=seen, expert_load=learner.expert_load())
    return learner


def fingerprint(learner: Learner) -> str:
    """One hash over weights, buffers, optimiser, loader and metrics."""
    digest = hashlib.sha256()
    for tensors in (learner.model.state_dict(), learner.optimiser.state()):
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    state = {name: thing.state() for name, thing in learner.tracked.items()}
    digest.update(json.dumps([state, learner.tokens, learner.done, learner.best]).encode())
    digest.update((learner.run.dir / "metrics.jsonl").read_bytes())
    return digest.hexdigest()


def ends_at(step: int) -> Callable[[int, Learner], None]:
    def before(now: int, _learner: Learner) -> None:
        if now == step:
            raise Broken

    return before


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "gqa tied"])
def test_resumed_is_uninterrupted_to_the_bit(config: ModelConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    """Broken off in step 5, two steps past the checkpoint, and again before the first checkpoint."""
    whole = train(tmp_path / "whole", config, dtype)
    for stop in (2, 5, 7):
        with pytest.raises(Broken):
            train(tmp_path / "broken", config, dtype, before=ends_at(stop))
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    resumed = train(tmp_path / "broken", config, dtype)
    assert fingerprint(resumed) == fingerprint(whole)
    metrics = [json.loads(line) for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, STEPS + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"]  # it learns
    # the checkpoints agree file by file, by their checksums
    assert disk.digest(tmp_path / "broken/checkpoints/000009") == disk.digest(tmp_path / "whole/checkpoints/000009")
    assert fingerprint(train(tmp_path / "other", config, dtype, seed=1)) != fingerprint(whole)


@pytest.mark.equivalence
def test_a_finished_loop_runs_no_step_again(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    again = train(tmp_path / "run", before=ends_at(1))
    assert again.done == STEPS
    assert fingerprint(again) == fingerprint(first)


def test_biases_move_once_per_step_and_stay_fp32(tmp_path: Path) -> None:
    learner = train(tmp_path / "run", dtype=torch.bfloat16)
    start = sharp(MLA_MOE, dtype=torch.bfloat16).routers()
    for layer, moe in learner.model.routers().items():
        moved = (moe.gate.e_score_correction_bias - start[layer].gate.e_score_correction_bias) / OPTIM.bias_speed
        assert moe.gate.e_score_correction_bias.dtype == torch.float32
        assert float(moved.abs().max()) <= STEPS + 1e-3  # FP32 sums of steps of 0.01
        assert torch.allclose(moved, moved.round(), atol=1e-3)
        assert moved.abs().sum() > 0
    load = learner.expert_load()
    assert len(load) == 3
    assert all(sum(row) == sum(load[0]) for row in load)


def spoilt(loss: Loss) -> Loss:
    return dataclasses.replace(loss, total=loss.total * float("nan"))


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}
    given: list[Batch] = []

    def before(step: int, learner: Learner) -> None:
        if step == 5:
            kept.update({n: t.clone() for n, t in learner.model.state_dict().items()})
            given.extend(pack(documents(MLA_MOE, 9, 4), token_mean, 100))
            try:
                learner.backward(spoilt(next_token(learner.model, given[0])), given[0])
            finally:
                assert all(torch.equal(t, kept[n]) for n, t in learner.model.state_dict().items())

    with pytest.raises(FathomError, match=r"step 5: loss=nan is not finite.*nonfinite-000005"):
        train(tmp_path / "run", before=before)
    stored = load_file(tmp_path / "run/nonfinite-000005.safetensors")
    assert torch.equal(stored["0/tokens"], given[0].tokens)
    assert torch.equal(stored["0/weight"], given[0].weight)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [3]
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "failed"
    assert fingerprint(train(tmp_path / "run")) == fingerprint(train(tmp_path / "whole"))  # and it can go on


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(value: float, tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def before(step: int, learner: Learner) -> None:
        if step == 2:
            learner.model.norm.weight.grad[3] = value
            states.append({n: t.clone() for n, t in learner.model.state_dict().items()})
            states.append(learner.model.state_dict())

    with pytest.raises(FathomError, match=r"step 2: gradient norm=(nan|inf) is not finite.*nonfinite-000002"):
        train(tmp_path / "run", before=before)
    assert all(torch.equal(states[0][n], t) for n, t in states[1].items())
    stored = load_file(tmp_path / "run/nonfinite-000002.safetensors")
    assert {name.split("/")[0] for name in stored} == {"0", "1"}  # every micro-batch of the step


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = {1: 5.0, 2: 4.0, 3: 4.5, 4: 3.0, 5: 3.1, 6: 3.2, 7: 3.3, 8: 3.4, 9: 3.5}

    def before(step: int, learner: Learner) -> None:
        learner.held_out(losses[step])

    def kept(name: str, checkpoints: Checkpoints) -> list[int]:
        train(tmp_path / name, checkpoints=checkpoints, before=before)
        return checkpoint.steps(tmp_path / name / "checkpoints")

    assert kept("two and best", Checkpoints(every=2, keep=2)) == [4, 8, 9]
    assert kept("one and best", Checkpoints(every=100, keep=1)) == [4, 9]
    assert kept("no best", Checkpoints(every=2, keep=3, best=False)) == [6, 8, 9]
    resumed = train(tmp_path / "two and best", checkpoints=Checkpoints(every=2, keep=2), before=before)
    assert resumed.best == {"loss": 3.0, "step": 4}


@pytest.mark.equivalence
def test_a_stop_saves_and_the_same_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole")
    asked = {"now": False}
    monkeypatch.setattr(Run, "stop_requested", property(lambda _: "SIGTERM" if asked["now"] else None))
    for stop in (4, 5):
        with pytest.raises(Stopped, match=rf"stopped after step {stop} of 9 \(SIGTERM\)") as error:
            train(tmp_path / "run", before=lambda step, _, at=stop: asked.update(now=step == at))
        assert error.value.exit_code == 75
        assert checkpoint.steps(tmp_path / "run/checkpoints")[-1] == stop
        assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"
    asked["now"] = False
    assert fingerprint(train(tmp_path / "run")) == fingerprint(whole)


def test_a_stop_in_the_last_step_is_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "stop_requested", property(lambda _: "SIGTERM"))
    assert train(tmp_path / "run", until=1).done == 1


def test_another_thread_count_is_named(tmp_path: Path) -> None:
    train(tmp_path / "run", until=3)
    torch.set_num_threads(2)
    try:
        train(tmp_path / "run", until=6)
    finally:
        torch.set_num_threads(1)
    assert "made with 1 threads, now 2" in (tmp_path / "run/logs/attempt-2.log").read_text()


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", until=3)
    folder = tmp_path / "run/checkpoints/000003"
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FathomError, match=r"weights.safetensors"):
        train(tmp_path / "run", until=6)


def test_a_checkpoint_holds_tied_weights_once_loaded_twice(tmp_path: Path) -> None:
    model: Transformer = sharp(GQA_TIED, dtype=torch.float32)
    folder = checkpoint.save(tmp_path, 1, model.state_dict(), {}, {})
    weights, _, state = checkpoint.load(folder)
    assert state["step"] == 1
    other = sharp(GQA_TIED, seed=5, dtype=torch.float32)
    other.load_state_dict(weights)
    assert torch.equal(other.lm_head.weight, model.embed_tokens.weight)
    assert other.lm_head.weight is other.embed_tokens.weight
