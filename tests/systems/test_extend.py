"""The long-context stage: what it refuses, what its proof says of good and of broken models, a tiny one end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import SUMS

from fathom.core.config import build
from fathom.core.errors import UsageError
from fathom.core.run import read_manifest
from fathom.model import weights
from fathom.model.config import ModelConfig, RopeScaling
from fathom.report import write_report
from fathom.report.page import page
from fathom.report.read import read_run
from fathom.systems.extend import Extend, Proof, Scaling, _held_out, _windows, needle_faults, stretched
from fathom.train.loader import Examples
from fathom.train.positions import Curve, bend, edges, worsened

GIVEN: dict[str, Any] = {"init": "nowhere", "data": ["texts.jsonl"]}


def settings(**changes: Any) -> Extend:
    return build(Extend, GIVEN | changes, "test")


# Settings.


@pytest.mark.parametrize(("changes", "said"), [
    ({"phases": [{"length": 64, "steps": 2, "tokens": 9}]}, "steps=2 and tokens=9"),
    ({"phases": [{"length": 64}, {"length": 32}]}, "length=32 after 64: sequences grow"),
    ({"phases": [{"length": 4096}], "tokens_per_step": 1024}, "tokens_per_step=1024: less than one sequence of 4096"),
    ({"phases": []}, "phases"),
    ({"scaling": {"beta_fast": 1, "beta_slow": 2}}, "beta_slow=2.0: must be less than beta_fast=1.0"),
    ({"scaling": {"factor": 1}}, "factor"),
    ({"proof": {"texts": 1}}, "texts"),
    ({"proof": {"depths": [0.5, 2]}}, "depths: 2.0: a share of the text"),
    ({"rope_scaling": {"factor": 8}}, "it is called scaling here"),
    ({"sequence_length": 2048}, "every phase has its own"),
    ({"phasess": []}, "phases"),
])
def test_wrong_settings_are_refused_with_a_remedy(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        settings(**changes)
    assert said in str(refused.value)


def test_the_plan_counts_steps_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    plan = settings(init=str(tmp_path)).plan()
    assert plan["phase 1"] == "1,000 steps of 65,536 tokens, sequences of 32,768"
    assert plan["phase 2"] == "1,000 steps of 65,536 tokens, sequences of 131,072"
    assert plan["scaling"] == "yarn, factor 32"
    assert plan["steps"] == 2000
    assert plan["tokens"] == 2000 * 65_536
    assert settings().plan()["phases"].startswith("8 and 32 times the model's length")
    phases = [{"length": 512, "steps": 3}, {"length": 2048, "tokens": 5000}]
    plan = settings(phases=phases, tokens_per_step=2048, scaling={"original": 256}).plan()
    assert plan["steps"] == 6
    assert plan["scaling"] == "yarn, factor 8"


def test_a_dry_run_loads_no_torch(tmp_path: Path) -> None:
    code = ("import sys; from fathom.cli import app; "
            "app(['extend', 'init=x', 'data=[a.jsonl]', '--dry-run'], standalone_mode=False); "
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "steps: 2,000" in done.stdout


# The new config.


def test_a_model_is_stretched_as_v3_is() -> None:
    latent = ModelConfig(attention="mla", max_position_embeddings=4096)
    original, config = stretched(latent, Scaling(factor=40), 131_072)
    assert original == 4096
    assert config.max_position_embeddings == 163_840
    rope = config.rope_scaling
    assert rope == RopeScaling(factor=40, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)
    assert rope.rotary_factor == 1.0
    assert config.softmax_scale == pytest.approx(latent.softmax_scale * (0.1 * np.log(40) + 1) ** 2)
    _, grouped = stretched(ModelConfig(attention="gqa", max_position_embeddings=256), Scaling(), 2048)
    assert grouped.rope_scaling == RopeScaling(factor=8, original_max_position_embeddings=256)
    assert grouped.rope_scaling.rotary_factor == pytest.approx(0.1 * np.log(8) + 1)
    for scale in (0.0, 0.5, 2.0):  # the setting does what it says in either kind of attention
        m = 0.1 * scale * np.log(8) + 1
        _, one = stretched(ModelConfig(attention="gqa", max_position_embeddings=256), Scaling(mscale=scale), 2048)
        assert (one.rope_scaling.rotary_factor, one.softmax_scale) == (pytest.approx(m), pytest.approx(32**-0.5))
        _, one = stretched(ModelConfig(max_position_embeddings=256), Scaling(mscale=scale), 2048)
        assert (one.rope_scaling.rotary_factor, one.softmax_scale) == (1.0, pytest.approx(48**-0.5 * m**2))
    _, plain = stretched(ModelConfig(max_position_embeddings=256), None, 2048)
    assert (plain.rope_scaling, plain.max_position_embeddings) == (None, 2048)


def test_what_cannot_be_stretched_is_refused() -> None:
    short = ModelConfig(max_position_embeddings=256)
    with pytest.raises(UsageError, match="longest has 256 tokens and the model reads 256 already"):
        stretched(short, Scaling(), 256)
    with pytest.raises(UsageError, match=r"factor=4: reaches 1024 positions from 256, and .* set it to 8 or more"):
        stretched(short, Scaling(factor=4), 2048)
    _, once = stretched(short, Scaling(), 1024)
    for scaling in (Scaling(), Scaling(factor=16), Scaling(original=256), None):
        with pytest.raises(UsageError, match=r"stretched already \(yarn, factor 4 from 256\).*scaling.original=256"):
            stretched(once, scaling, 4096)
    original, twice = stretched(once, Scaling(original=256, factor=16), 4096)
    assert (original, twice.rope_scaling.factor, twice.max_position_embeddings) == (256, 16, 4096)


# What the proof says.


def curve(*means: float, noise: float = 0.02, texts: int = 16, seed: int = 0) -> Curve:
    """A curve from 256 to 2,048 positions whose buckets have these means over the texts."""
    bounds = edges(256, 2048)
    assert len(means) == len(bounds) - 1 == 10
    around = np.random.default_rng(seed).normal(0, noise, (texts, 10))
    return Curve(bounds, np.asarray(means) + around - around.mean(0))


FALLING = (3.0, 2.6, 2.4, 2.2, 2.1, 2.0, 1.95, 1.9, 1.9, 1.9)


def test_buckets_meet_at_the_old_length() -> None:
    assert edges(256, 2048) == (0, 32, 64, 128, 256, 362, 512, 724, 1024, 1448, 2048)
    assert edges(256, 300) == (0, 32, 64, 128, 256, 300)
    assert edges(1, 4) == (0, 1, 2, 3, 4)
    flat = curve(*FALLING, noise=0.0)
    assert flat.within(256) == pytest.approx((3.0 * 32 + 2.6 * 32 + 2.4 * 64 + 2.2 * 128) / 256)
    assert Curve.from_json(json.loads(json.dumps(flat.to_json()))).mean == flat.mean


def test_a_falling_curve_passes_and_a_bent_one_is_named() -> None:
    assert bend(curve(*FALLING), 256, 0.05) is None
    bent = bend(curve(*FALLING[:-1], 2.3), 256, 0.05)
    assert bent is not None
    assert "2.300 nats at positions 1,448–2,047, 1.900 at 724–1,023" in bent or "1.900 at 1,024–1,447" in bent
    assert bend(curve(*FALLING[:5], 2.9, *FALLING[6:]), 256, 0.05), "a hump in the middle is a bend too"
    assert bend(curve(*FALLING[:4], 3.5, 3.6, 3.7, 3.8, 3.9, 4.0), 256, 0.05), "so is a jump at the old length"


def test_the_bend_must_exceed_margin_and_doubt() -> None:
    slight = (*FALLING[:-1], 1.94)
    assert bend(curve(*slight, noise=0.001), 256, 0.05) is None
    assert bend(curve(*slight, noise=0.001), 256, 0.03) is not None
    assert bend(curve(*slight, noise=0.2), 256, 0.03) is None, "within two standard errors"
    apart = curve(*FALLING[:-1], 2.3)
    apart = Curve(apart.edges, apart.loss_NB + 3.0 * np.arange(len(apart.loss_NB))[:, None])
    assert bend(apart, 256, 0.05) is not None, "how much texts differ from one another hides no bend"
    steep = (2.0, 2.6, 2.4, 2.2, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9)
    assert bend(curve(*steep), 256, 0.0) is None, "what rises below the old length is the data's, not the stretching's"


def test_noise_alone_is_seldom_called_a_bend() -> None:
    drawn = [Curve(edges(256, 2048), np.random.default_rng(i).normal(2, 0.1, (16, 10))) for i in range(200)]
    assert sum(bend(c, 256, 0.05) is not None for c in drawn) <= 10
    assert sum(bend(Curve(c.edges, c.loss_NB + np.eye(10)[9] * 0.25), 256, 0.05) is not None for c in drawn) >= 190


def test_short_texts_must_not_get_worse() -> None:
    before = curve(*FALLING)
    assert worsened(before, before, 256, 0.0) is None
    worse = Curve(before.edges, before.loss_NB + 0.1)
    said = worsened(before, worse, 256, 0.05)
    assert said is not None and "+0.100 nats at positions below 256" in said
    assert worsened(before, worse, 256, 0.2) is None
    assert worsened(worse, before, 256, 0.0) is None


def grid(*rows: list[int], samples: int = 4) -> dict[str, Any]:
    return {"lengths": [256, 2048], "depths": [0.0, 1.0], "samples": samples, "right": list(rows)}


def test_needles_that_are_not_found_are_named_by_cell() -> None:
    good = grid([4, 4], [4, 4])
    assert needle_faults(good, good, Proof()) == []
    [mean, cell] = needle_faults(grid([4, 1], [4, 4]), good, Proof())
    assert mean.startswith("62 % of the needles found at 2,048 tokens, fewer than proof.needle_mean=0.9")
    short = {"lengths": [256, 512, 1024, 2048], "depths": [0.0, 1.0], "samples": 4, "right": [[4, 4, 4, 3]] * 2}
    assert len(needle_faults(short, short, Proof())) == 1, "what is found at short lengths makes up for nothing"
    assert cell.startswith("25 % at 2,048 tokens, depth 0 %, fewer than proof.needle_worst=0.5")
    assert needle_faults(grid([0, 0], [0, 0]), good, Proof(needle_mean=0, needle_worst=0)) == []
    unable = needle_faults(grid([0, 0], [0, 0]), grid([0, 0], [1, 0]), Proof())
    assert "as it came found 12 % at 256 tokens" in unable[-1]
    assert "proof.needle_mean=0" in unable[-1]


# Texts.


def made(*lengths: int) -> Examples:
    return Examples.gather((np.arange(n) + 1000 * i, np.arange(n) > 0) for i, n in enumerate(lengths))


@pytest.mark.parametrize("masked", [True, False])
def test_every_token_is_predicted_once(masked: bool) -> None:
    source = made(100, 7, 64, 65, 1)
    pieces = _windows(source, 32, masked)
    assert max(len(pieces[i].tokens) for i in range(len(pieces))) == 33
    predicted = [int(t) for i in range(len(pieces)) for t in pieces[i].tokens[1:]]
    ends = np.cumsum([100, 7, 64, 65, 1])[:-1]
    expected = np.delete(source.tokens, [0, *ends]) if masked else source.tokens[1:]
    assert predicted == expected.tolist()


def test_long_texts_are_kept_apart_or_their_want_is_told() -> None:
    rng = np.random.default_rng
    every = made(*[50] * 10, *[300] * 10)
    train, apart = _held_out(every, 256, settings(proof={"texts": 4}), rng(0))
    assert (len(train), len(apart)) == (16, 4)
    assert all(len(apart[i].tokens) == 257 for i in range(4))
    assert not set(train.tokens.tolist()) & set(apart.tokens.tolist())
    with pytest.raises(UsageError, match=r"10 texts have more than 256 tokens.*mask_documents=false"):
        _held_out(every, 256, settings(proof={"texts": 11}), rng(0))
    train, apart = _held_out(every, 256, settings(proof={"texts": 11}, mask_documents=False), rng(0))
    assert len(apart) == 11
    assert not set(train.tokens.tolist()) & set(apart.tokens.tolist())
    with pytest.raises(UsageError, match=r"all texts together have 3,500 tokens.*ask for fewer"):
        _held_out(every, 256, settings(proof={"texts": 14}, mask_documents=False), rng(0))


# End to end.


def test_a_tiny_model_is_extended_with_its_proof(small, twins) -> None:
    twins.of("extend")
    directory = twins.directory(small.settings("extend"))
    config = weights.read_config(directory / "model")
    assert config.max_position_embeddings == 256
    assert config.rope_scaling == RopeScaling(
        factor=2, original_max_position_embeddings=128, mscale=1.0, mscale_all_dim=1.0)
    model, tokenizer = weights.load(directory / "model")
    measured = {path.stem: json.loads(path.read_text()) for path in sorted((directory / "proof").iterdir())}
    assert list(measured) == ["0-before", "1-stretched", "2-phase-1", "3-phase-2"]
    assert [found["step"] for found in measured.values()] == [0, 0, 5, 10]
    losses = [found["curve"]["loss"] for found in measured.values()]
    assert losses[0] != losses[1] and losses[3] < losses[1], "stretching changes positions, training lowers the loss"
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["length"] for row in rows if row["step"]] == [160] * 5 + [256] * 5
    assert [row["lr"] for row in rows if row["step"]] == [0.001] * 5 + [0.0005] * 5
    assert [row["measured"] for row in rows if "measured" in row] == list(measured)
    assert rows[-1]["loss_beyond"] == pytest.approx(read_manifest(directory)["summary"]["loss_beyond"])

    from fathom.train.batch import Example
    from fathom.train.positions import loss_by_position

    tokens = np.asarray(tokenizer.encode("12 + 34 = 46. " * 60)[:257], dtype=np.int32)
    found = loss_by_position(model, [Example(tokens, np.ones(257, dtype=bool))] * 2, edges(128, 256))
    assert found.loss_NB[0].tolist() == found.loss_NB[1].tolist()


def test_the_report_shows_both_pictures(small, twins) -> None:
    twins.of("extend")
    directory = twins.directory(small.settings("extend"))
    [proof] = page(read_run(directory))["proofs"]
    assert [series["label"] for series in proof["chart"]["series"]] == [
        "as it came", "stretched, untrained", "after phase 1", "after phase 2"]
    assert len(proof["grids"]) == 4
    assert proof["grids"][0]["lengths"] == [128, 160]
    text = write_report(directory).read_text(encoding="utf-8")
    assert '"Loss by position"' in text and "needleCard" in text


def test_what_does_not_hold_is_not_called_done(small, place) -> None:
    """Exit code 3 each time, no model, the last checkpoint kept, and the cell and the remedy named."""
    path = small.settings("extend", proof={
        "texts": 4, "margin": 9, "lengths": [128, 256], "depths": [1], "samples": 1, "others": 0})
    for _ in range(2):
        said = small.forks[0].run("extend", path, "--dir", place / "run")
        assert said.code == 3, said.said
        plain = " ".join(said.said.split())
        assert "not extended to 256 tokens" in plain
        assert "0 % at 128 tokens, depth 100 %" in plain
        assert "Train longer (phases.tokens)" in plain
        assert "as it came found 0 % at 128 tokens" in plain
    assert read_manifest(place / "run")["status"] == "failed"
    assert not (place / "run" / "model").exists()
    assert (place / "run" / "checkpoints" / "000010" / "COMPLETE").exists()


def test_without_scaling_the_frequencies_stay(small, place) -> None:
    path = small.settings("extend", scaling=None, data=[{**SUMS, "think": "steps", "count": 80}])
    done = small.forks[0].run("extend", path, "--dir", place / "run")
    assert done.code == 0, done.said
    config = weights.read_config(place / "run" / "model")
    assert (config.rope_scaling, config.max_position_embeddings) == (None, 256)
    assert [p.stem for p in sorted((place / "run" / "proof").iterdir())] == ["0-before", "2-phase-1", "3-phase-2"]


def test_short_texts_alone_are_refused_by_name(small, place) -> None:
    said = small.forks[0].run("extend", small.settings("extend", mask_documents=True), "--dir", place / "run")
    assert said.code == 2
    assert "0 texts have more than 256 tokens" in " ".join(said.said.split())
