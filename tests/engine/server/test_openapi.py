"""/openapi.json is honest: a fuzzer that reads it finds no answer that it does not tell."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fake import FakeService, settings, tokenizer
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from fathom.engine.server.app import make_app
from fathom.model.tokenizer import Tokenizer

KEY = "secret"
# JSON schema cannot say how many tokens a text has, nor that two fields must agree: such requests are refused too
ACCEPTED = ["2xx", "400", "404"]


ALL_ROLES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ enable_thinking }}"


def plain() -> Tokenizer:
    """One that every role and every text is fine for, so that what is asked is answered."""
    return Tokenizer(tokenizer("v3").backend, ALL_ROLES, add_bos=True)


def loaded(coverage: bool) -> Any:
    config = schemathesis.Config.from_dict({
        "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
        "phases": {"coverage": {"enabled": coverage}}})
    return schemathesis.openapi.from_asgi(
        "/openapi.json", make_app(FakeService(plain()), settings(api_key=KEY)), config=config,
        headers={"Authorization": f"Bearer {KEY}"})


def examined(examples: int, coverage: bool) -> Any:
    schema = loaded(coverage)

    @schema.parametrize()
    @hypothesis_settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"})

    return check


test_contract = examined(20, coverage=False)
test_contract_at_length = pytest.mark.long(examined(300, coverage=True))


def test_what_is_told() -> None:
    schema = TestClient(make_app(FakeService(), settings(api_key=KEY))).get(
        "/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert set(schema["paths"]) == {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id}",
                                    "/tokenize", "/detokenize", "/health", "/metrics"}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"] and "500" in operation["responses"], path
            assert ("security" in operation) == (path != "/health")
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat) == {"200", "400", "401", "403", "404", "405", "413", "429", "500", "503"}
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    asked = schema["components"]["schemas"]["ChatRequest"]
    assert asked["additionalProperties"] is False and asked["required"] == ["messages"]
