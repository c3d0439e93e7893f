"""`serve` before and after it serves."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fake import FakeService, settings

from fathom.core.errors import UsageError
from fathom.engine.server import run
from fathom.engine.settings import EngineSettings
from fathom.model.pretrained import called


@pytest.mark.parametrize(("path", "name"), [
    ("runs/r1/final/model", "final"), ("SmolLM2", "SmolLM2"), ("a/b/x.gguf", "x.gguf"), ("smollm2", "smollm2")])
def test_a_model_has_a_name(path: str, name: str) -> None:
    assert called(Path(path)) == name


def test_the_port_is_asked_for_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "serve_on", lambda *args: pytest.fail("loaded"))
    with run.listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen there"):
        run.serve(Path("nowhere"), EngineSettings(), port=taken.getsockname()[1])
    with pytest.raises(UsageError, match=r"host=no\.such\.host"):
        run.serve(Path("nowhere"), EngineSettings(), host="no.such.host.invalid")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"fastapi, uvicorn, prometheus_client not installed; pip install .*\[serve\]"):
        run.serve(Path("nowhere"), EngineSettings())


@pytest.mark.parametrize(("host", "key", "warned"), [
    ("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("127.0.0.1", None, False), ("localhost", None, False)])
def test_a_port_open_to_others_without_a_key(
    host: str, key: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Enough(Exception):
        pass

    def say(line: str) -> None:
        raise Enough

    made: list[FakeService] = []

    def make() -> FakeService:
        made.append(FakeService())
        return made[0]

    with run.listen(host, 0) as listener, pytest.raises(Enough), caplog.at_level(logging.WARNING):
        run.serve_on(listener, make, settings(host=host, api_key=key), say)
    assert any("whoever reaches" in record.getMessage() for record in caplog.records) == warned
    assert made[0].closed


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(run, "serve_on", lambda listener, make, cfg, say: seen.append(cfg.api_key))
    for environment, given, expected in ((None, None, None), ("e", None, "e"), ("e", "g", "g"), ("", None, None)):
        monkeypatch.delenv(run.KEY, raising=False)
        if environment is not None:
            monkeypatch.setenv(run.KEY, environment)
        run.serve(Path("nowhere"), EngineSettings(), port=0, api_key=given)
        assert seen.pop() == expected
    assert "secret" not in repr(settings(api_key="secret"))
