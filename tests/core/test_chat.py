"""Messages, sampling and completions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.chat import ROLES, Completion, Image, Message, Sampling, Text, TextGenerator
from fathom.core.config import build, plain
from fathom.core.errors import FathomError, UsageError

parts = st.builds(Text, st.text()) | st.builds(Image, st.text())
contents = st.text() | st.lists(parts, max_size=3).map(tuple)


@pytest.mark.property
@given(st.sampled_from(ROLES), contents)
def test_messages_come_back_from_json(role, content):
    message = Message(role, content)
    assert Message.from_json(json.loads(json.dumps(message.to_json()))) == message


def test_the_openai_shape():
    message = Message("user", (Text("what is "), Image("a.png"), Text("this?")))
    assert message.to_json() == {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is "},
            {"type": "image_url", "image_url": {"url": "a.png"}},
            {"type": "text", "text": "this?"},
        ],
    }
    assert message.text == "what is this?"
    assert Message("user", "hi").to_json() == {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"role": "user"}, "needs the keys role and content"),
        ([], "needs the keys role and content"),
        ({"role": "human", "content": "x"}, "role='human': not a chat role; use one of system, user"),
        ({"role": ["user"], "content": "x"}, "not a chat role"),
        ({"role": "user", "content": None}, "content of type NoneType"),
        ({"role": "user", "content": [{"type": "text"}]}, "message part"),
        ({"role": "user", "content": ["x"]}, "message part 'x'"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "message part"),
        ({"role": "user", "content": 5}, "content of type int"),
    ],
)
def test_what_is_no_message_is_said(value, words):
    with pytest.raises(FathomError, match=words):
        Message.from_json(value)


def test_sampling_is_settings():
    sampling = build(Sampling, {"temperature": 0, "stop": ["\n\n"]}, "r")
    assert sampling == Sampling(temperature=0.0, stop=("\n\n",))
    assert build(Sampling, plain(sampling), "r") == sampling
    for values, words in (
        ({"max_tokens": 0}, "max_tokens=0: must be ≥ 1"),
        ({"top_p": 0}, "top_p=0: must be > 0"),
        ({"temperature": -1}, "temperature=-1: must be ≥ 0"),
        ({"max_new_tokens": 5}, "max_new_tokens: no such setting; did you mean max_tokens"),
    ):
        with pytest.raises(UsageError, match=words):
            build(Sampling, values, "r")


def test_any_object_with_generate_is_a_generator():
    class Echo:
        def generate(self, prompts, sampling, n=1):
            return [[Completion(prompt[-1].text, (1,), (0.0,), "stop")] * n for prompt in prompts]

    echo: TextGenerator = Echo()
    ((one, two),) = echo.generate([[Message("user", "hi")]], Sampling(), n=2)
    assert one == two == Completion("hi", (1,), (0.0,), "stop")
