"""New weights over HTTP: taken whole between two steps, from below the named directory, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake import settings
from fastapi.testclient import TestClient
from made_models import sharp
from test_engine_behind_it import CONFIG, PLAIN, TOKENIZER

from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.server.app import make_app
from fathom.engine.service import Service
from fathom.engine.settings import EngineSettings
from fathom.model import weights

ROUTE = "/update_weights_from_disk"


def model(seed: int, **changes):
    return sharp(CONFIG.model_copy(update=changes), seed, dtype=torch.float32)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "served").mkdir()
    service = Service(Engine(model(0), TOKENIZER, EngineSettings(cache_gb=0.01)))
    with TestClient(make_app(service, settings(updates=tmp_path / "served"))) as made:
        yield made
    service.close()


def test_new_weights_are_sampled_from(client: TestClient, tmp_path: Path) -> None:
    weights.save(tmp_path / "served" / "000007", model(3), TOKENIZER)
    answer = client.post(ROUTE, json={"model_path": str(tmp_path / "served" / "000007"), "weight_version": "7"})
    assert answer.status_code == 200 and answer.json() == {"success": True, "message": "version 7"}
    assert client.get("/health").json()["version"] == 7
    prompt = TOKENIZER.encode("hello world")
    told = client.post(PLAIN, json={"prompt": prompt, "max_tokens": 12, "seed": 7, "return_token_ids": True}).json()
    assert told["system_fingerprint"].endswith("-w7")
    fresh = Engine(model(3), TOKENIZER, EngineSettings(cache_gb=0.01))
    [[expected]] = fresh.complete([prompt], Sampling(max_tokens=12), seeds=[7])
    assert told["choices"][0]["token_ids"] == list(expected.tokens)
    # without a number they are the next ones
    assert client.post(ROUTE, json={"model_path": str(tmp_path / "served" / "000007")}).json()["message"] == "version 8"


def test_what_is_refused_leaves_the_weights(client: TestClient, tmp_path: Path) -> None:
    weights.save(tmp_path / "elsewhere", model(3), TOKENIZER)
    weights.save(tmp_path / "served" / "wider", model(3, intermediate_size=96), TOKENIZER)
    (tmp_path / "served" / "empty").mkdir()
    for path, said in ((tmp_path / "elsewhere", "no directory below"), (tmp_path / "served", "no directory below"),
                       (tmp_path / "served" / ".." / "elsewhere", "no directory below"),
                       (tmp_path / "served" / "wider", "intermediate_size"), (tmp_path / "served" / "empty", "")):
        answer = client.post(ROUTE, json={"model_path": str(path)})
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], path
    assert client.get("/health").json()["version"] == 0
    assert client.post(ROUTE, json={"model_path": "x", "weight_version": "seven"}).status_code == 400


def test_without_the_option_there_is_no_such_route(tmp_path: Path) -> None:
    service = Service(Engine(model(0), TOKENIZER, EngineSettings(cache_gb=0.01)))
    with TestClient(make_app(service, settings())) as client:
        assert client.post(ROUTE, json={"model_path": str(tmp_path)}).status_code == 404
        assert ROUTE not in client.get("/openapi.json").json()["paths"]
    service.close()
