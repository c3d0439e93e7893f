"""Settings: names, values, YAML and overrides; every error says path, value, what is allowed, what to write."""

import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from fathom.core.config import (
    Settings,
    build,
    canonical,
    describe,
    differences,
    fingerprint,
    load_yaml,
    merge,
    parse_overrides,
    plain,
)
from fathom.core.errors import FathomError, UsageError


class Level(StrEnum):
    TOKEN = "token"
    SEQUENCE = "sequence"


class Optim(Settings):
    """An optimiser."""

    aliases: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = (0.9, 0.95)


class Dense(Settings):
    kind: Literal["dense"] = "dense"
    width: int = Field(8, ge=1)
    aliases: ClassVar[Mapping[str, str]] = {"hidden_size": "width"}


class Routed(Settings):
    kind: Literal["routed"] = "routed"
    experts: int


class Stage(Settings):
    aliases: ClassVar[Mapping[str, str]] = {"learning_rate": "optim.lr", "num_generations": "group"}
    elsewhere: ClassVar[Mapping[str, str]] = {"beta": "elsewhere the weight of the KL term; here it is called kl"}

    steps: int = Field(description="optimiser steps")
    optim: Optim = Optim()
    group: int = 4
    layer: Annotated[Dense | Routed, Field(discriminator="kind")] = Dense()
    model: Dense | str = "tiny"
    layers: dict[str, Annotated[Dense | Routed, Field(discriminator="kind")]] = Field(default_factory=dict)
    stages: tuple[Dense, ...] = ()
    tail: Annotated[Dense | Routed, Field(discriminator="kind")] | None = None
    limit: int | None = None
    threads: int | Literal["auto"] = "auto"
    stop: tuple[str, ...] = ()
    name: str = "x"
    share: float = Field(0.5, ge=0, le=1)
    level: Level = Level.TOKEN
    mask: bool = True

    @model_validator(mode="after")
    def _group(self) -> "Stage":
        if self.group == 1:
            raise ValueError("group=1: an advantage needs at least 2 samples; set group ≥ 2")
        return self


def refusal(values: dict[str, Any], cls: type[Settings] = Stage) -> str:
    with pytest.raises(UsageError) as caught:
        build(cls, {"steps": 1, **values} if cls is Stage else values, "r.yaml: zero")
    text = str(caught.value)
    assert text.startswith("r.yaml: zero: ")
    return text.removeprefix("r.yaml: zero: ")


def test_build_reads_every_kind_of_value():
    stage = build(
        Stage,
        {
            "steps": 2e6,
            "optim": {"lr": 1, "betas": [0.8, 0.9]},
            "layer": {"kind": "routed", "experts": 3},
            "model": {"width": 5},
            "layers": {"a": {"kind": "dense"}},
            "stages": [{"width": 2}],
            "limit": None,
            "threads": 3,
            "stop": ["a", "b"],
            "level": "sequence",
        },
        "r.yaml",
    )
    assert stage.steps == 2_000_000 and type(stage.steps) is int
    assert stage.optim == Optim(lr=1.0, betas=(0.8, 0.9))
    assert stage.layer == Routed(experts=3) and stage.model == Dense(width=5)
    assert stage.layers == {"a": Dense()} and stage.stages == (Dense(width=2),)
    assert (stage.threads, stage.stop, stage.level) == (3, ("a", "b"), Level.SEQUENCE)
    assert build(Stage, plain(stage), "again") == stage


def test_settings_are_facts():
    with pytest.raises(ValidationError, match="frozen"):
        Optim().lr = 2.0
    with pytest.raises(ValidationError, match="not permitted"):
        Optim(rate=1)


def test_aliases_hold_at_every_depth_and_leave_the_given_values_alone():
    values = {
        "steps": 1,
        "num_generations": 8,
        "optim": {"betas": [0.1, 0.2]},
        "learning_rate": 0.5,
        "layer": {"kind": "dense", "hidden_size": 7},
        "layers": {"a": {"kind": "dense", "hidden_size": 6}},
        "stages": [{"hidden_size": 9}],
        "model": {"hidden_size": 10},
    }
    before = canonical(values)
    stage = build(Stage, values, "r")
    assert (stage.group, stage.optim) == (8, Optim(lr=0.5, betas=(0.1, 0.2)))
    assert stage.layer == Dense(width=7) and stage.layers["a"] == Dense(width=6)
    assert stage.stages == (Dense(width=9),) and stage.model == Dense(width=10)
    assert canonical(values) == before


def test_a_field_s_own_default_fills_what_is_not_given():
    class Outer(Settings):
        optim: Optim = Optim(lr=0.25)
        layer: Annotated[Dense | Routed, Field(discriminator="kind")] = Routed(experts=9)
        stage: Stage = Stage(steps=5, optim=Optim(lr=0.5))

    assert build(Outer, {"optim": {"betas": [0.1, 0.2]}}, "r").optim == Optim(lr=0.25, betas=(0.1, 0.2))
    assert build(Outer, {"layer": {}}, "r").layer == Routed(experts=9)
    assert build(Outer, {"layer": {"experts": 3}}, "r").layer == Routed(experts=3)
    assert build(Outer, {"layer": {"kind": "dense"}}, "r").layer == Dense()
    stage = build(Outer, {"stage": {"optim": {"betas": [0.1, 0.2]}}}, "r").stage
    assert stage == Stage(steps=5, optim=Optim(lr=0.5, betas=(0.1, 0.2)))
    assert build(Outer, {"stage": {"learning_rate": 1}}, "r").stage == Stage(steps=5, optim=Optim(lr=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"opitm": 1}, "opitm: no such setting; did you mean optim?"),
        ({"optim": {"lrr": 1}}, "optim.lrr: no such setting; did you mean optim.lr?"),
        ({"lr": 1}, "lr: no such setting; did you mean optim.lr?"),
        ({"learning_rat": 1}, "learning_rat: no such setting; did you mean optim.lr?"),
        ({"layers": {"a": {"kind": "routed", "expert": 1}}}, "layers.a.expert: no such setting; did you mean"),
        ({"stages": [{"widht": 1}]}, "stages.0.widht: no such setting; did you mean stages.0.width?"),
        ({"zzzzzz": 1}, "zzzzzz: no such setting; there are steps, optim, group, layer"),
        ({"beta": 0.1}, "beta: elsewhere the weight of the KL term; here it is called kl"),
        (
            {"learning_rate": 1, "optim": {"lr": 1}},
            "learning_rate and optim.lr name the same setting; keep one of them",
        ),
        ({"group": 2, "num_generations": 2}, "num_generations and group name the same setting; keep one of them"),
        ({"learning_rate": 1, "optim": 3}, "learning_rate: stands for optim.lr, but optim is 3; keep one"),
    ],
)
def test_names_that_do_not_fit(values, message):
    assert message in refusal(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lr": -1}}, "optim.lr=-1: must be > 0; set optim.lr > 0"),
        ({"optim": {"lr": float("nan")}}, "optim.lr=NaN: must be a finite number"),
        ({"learning_rate": 0}, "optim.lr=0: must be > 0; set optim.lr > 0"),
        ({"share": 1.5}, "share=1.5: must be ≤ 1; set share ≤ 1"),
        ({"layer": {"kind": "dense", "width": 0}}, "layer.width=0: must be ≥ 1; set layer.width ≥ 1"),
        ({"layer": {"kind": "dens"}}, "layer.kind=dens: must be one of dense, routed; did you mean dense?"),
        ({"tail": {}}, "tail: kind is required and not given; write tail.kind: with one of dense, routed"),
        ({"layers": {"a": {}}}, "layers.a: kind is required and not given; write layers.a.kind: with"),
        ({"layer": {"kind": "routed"}}, "layer.experts: required and not given"),
        ({"group": "many"}, "group=many: must be a whole number; write group: 4, the default"),
        ({"group": 1.5}, "group=1.5: must be a whole number"),
        ({"group": True}, "group=true: must be a whole number"),
        ({"group": 1}, "group=1: an advantage needs at least 2 samples; set group ≥ 2"),
        ({"threads": "all"}, "threads=all: must be a whole number or auto; write threads: auto, the default"),
        ({"level": "tokn"}, "level=tokn: must be one of token, sequence; did you mean token?"),
        ({"name": 7}, 'name=7: must be text; write name: "7" with quotes'),
        ({"stop": "abc"}, "stop=abc: must be a list of text"),
        ({"stop": ["a", 1]}, "stop.1=1: must be text"),
        ({"optim": None}, "optim=null: must be a mapping of settings"),
        ({"optim": [1]}, "optim=[1]: must be a mapping of settings"),
        ({"optim": {"betas": [1.0]}}, "optim.betas"),
        ({"model": {"width": 0}}, "model.width=0: must be ≥ 1"),
        ({"model": 5}, "model=5: must be a mapping of settings or text"),
    ],
)
def test_values_that_do_not_fit(values, message):
    text = refusal(values)
    assert text.startswith(message), text
    assert "pydantic" not in text and "Input should" not in text and "\n" not in text


def test_a_missing_setting_is_described():
    with pytest.raises(UsageError, match=r"^r: steps: required and not given \(optimiser steps\); write steps: with a"):
        build(Stage, {}, "r")


def test_all_problems_are_named_at_once():
    text = refusal({"optim": {"lr": -1}, "grup": 3, "name": 7})
    assert text.startswith("3 settings to correct\n") and text.count("\n") == 3
    assert "grup: no such setting; did you mean group?" in text


@pytest.mark.parametrize("values", [None, [1], "x", 3])
def test_build_of_no_mapping(values):
    with pytest.raises(UsageError, match="must be a mapping of settings"):
        build(Stage, values, "r")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*Stage.model_fields, *Stage.aliases, "beta", "kind", "width", "lr"]) | st.text(max_size=5)


@pytest.mark.property
@given(st.dictionaries(names, json_values | st.dictionaries(names, json_values, max_size=2), max_size=4))
def test_build_gives_settings_or_a_usage_error(values):
    try:
        stage = build(Stage, values, "r")
    except UsageError as error:
        assert str(error).startswith("r: ")
    else:
        assert build(Stage, plain(stage), "r") == stage


def write(tmp_path, text: str | bytes):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_reads_what_people_mean(tmp_path):
    text = """
tokens: 2e6
lr: 2e-4
dot: 1.5
thousand: 1_000
hex: 0x10
country: no
time: 12:30
day: 2024-01-01
octal: 010
quoted: "1e6"
yes: true
nothing:
list: [a, 1, ~]
1: one
base: &base {x: 1, y: 2}
copy: {<<: *base, y: 3}
"""
    assert load_yaml(write(tmp_path, text)) == {
        "tokens": 2e6, "lr": 2e-4, "dot": 1.5, "thousand": 1000, "hex": 16, "country": "no", "time": "12:30",
        "day": "2024-01-01", "octal": 10, "quoted": "1e6", "yes": True, "nothing": None, "list": ["a", 1, None],
        "1": "one", "base": {"x": 1, "y": 2}, "copy": {"x": 1, "y": 3},
    }  # fmt: skip
    assert load_yaml(write(tmp_path, "")) == {}
    assert load_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1")) == {"a": 1}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3, column 1 the key 'a' occurs twice"),
        ("a: {b: 1, 'b': 2}", r"the key 'b' occurs twice"),
        ("[1]", r"holds a list; must be a mapping"),
        ("just text", r"holds text; must be a mapping"),
        ("a: [", r"line 1"),
        ("a: 1\n b: 2", r"line 2"),
        ("a: !!python/object/apply:os.system [x]", r"line 1, column 4"),
        ("a: !!binary eA==", r"line 1, column 4"),
        ("a: &x [*x]", r"contains itself"),
        (BOMB, r"more than 100000 values once anchors expand"),
        ("[" * 100_000, r"nested past 64 levels"),
        ("a: 1\n---\nb: 2", r"another document"),
        ("? [1]\n: 2", r"a key that is not text"),
        ("a: " + "9" * 5000, r"not a whole number of readable size"),
        ("a: !!seq {b: 1}", r"line 1, column 4 the tag"),
        ("a: !mine 1", r"line 1, column 4 the tag !mine; write the plain value"),
        ("a: *x", r"the alias \*x has no anchor"),
        ("<<: 3", r"<< merges mappings only"),
        (b"a: \xff", r"byte 3 is not UTF-8"),
        (b"a: \x00", r"zero bytes"),
        ("a: \x07", r"not YAML"),
        ("# " + "x" * (1 << 20), r"larger than 1048576 bytes"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, words):
    path = write(tmp_path, text)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=words) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}:")
    assert path.read_bytes() == before


def test_files_that_are_none(tmp_path):
    write(tmp_path, "a: 1")
    with pytest.raises(UsageError, match="is a directory; name the file inside it"):
        load_yaml(tmp_path)
    with pytest.raises(UsageError, match=r"no such file; did you mean .*r\.yaml\?"):
        load_yaml(tmp_path / "r.yml")
    with pytest.raises(UsageError, match="not a regular file"):
        load_yaml("/dev/zero")
    with pytest.raises(UsageError, match="null byte"):
        load_yaml("a\0b")
    with pytest.raises(UsageError, match="cannot be read"):
        load_yaml(tmp_path / "r.yaml" / "below")


@pytest.mark.property
@given(st.binary(max_size=200) | st.text(alphabet="a:-[]{}&*!|>'\"\n #,?%@", max_size=60).map(str.encode))
def test_yaml_of_anything_is_a_mapping_or_a_usage_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with suppress(UsageError):
        assert isinstance(load_yaml(path), dict)


def test_overrides():
    arguments = ["a.b=1", "--c.d-e=1e6", "--f", "-2e-4", "g=[x, 2e6, {a: no}]", "h=gym:a", "i=#5", "j='1'", "k=*", "l="]
    assert parse_overrides(arguments) == {
        "a": {"b": 1}, "c": {"d_e": 1e6}, "f": -2e-4, "g": ["x", 2e6, {"a": "no"}], "h": "gym:a", "i": "#5", "j": "1",
        "k": "*", "l": None,
    }  # fmt: skip
    assert parse_overrides(["a=b=c", "m={x: 1}", "t=true"]) == {"a": "b=c", "m": {"x": 1}, "t": True}
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "not a setting; write name=value"),
        (["--a"], "no value follows"),
        (["--a", "--b"], "no value follows"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1", "a.b=2"], "a was given a value before"),
        (["a.b=1", "a=2"], "a is given twice"),
        (["=1"], "empty part"),
        (["a..b=1"], "empty part"),
        (["a=[1"], "a: line 1"),
        (["a='x"], "a: line 1"),
        (["a=[!!python/name:os.system]"], "a: line 1"),
        (["a=[*x]"], "a: line 1"),
        (["a=" + "9" * 5000], "readable size"),
        ([".".join("a" * 70) + "=1"], "dots deep"),
    ],
)
def test_overrides_that_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        parse_overrides(arguments)


def test_merge_lays_on_top_without_touching():
    base = {"a": {"b": 1, "c": [1]}, "d": 1}
    over = {"a": {"b": 2, "e": {"f": 1}}, "d": {"g": 1}}
    merged = merge(base, over)
    assert merged == {"a": {"b": 2, "c": [1], "e": {"f": 1}}, "d": {"g": 1}}
    merged["a"]["e"]["f"] = 5
    assert base == {"a": {"b": 1, "c": [1]}, "d": 1} and over["a"]["e"] == {"f": 1}


def test_fingerprint_is_of_the_content():
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint(Optim()) == fingerprint(plain(Optim())) != fingerprint(Optim(lr=2e-3))
    # Pinned: a changed fingerprint would orphan every run on disk.
    assert fingerprint({"lr": 0.001, "name": "é"}) == "51cca374eecbfc4c"
    for value in ({"a": float("nan")}, {"a": {1}}, "\ud800"):
        with pytest.raises(FathomError, match="cannot be written as JSON"):
            fingerprint(value)


def test_differences():
    old, new = {"lr": 0.001, "o": {"x": 1, "y": 2}, "s": [1]}, {"lr": 0.002, "o": {"x": 1}, "s": [1], "z": True}
    assert differences(old, new) == ["lr: 0.001 → 0.002", "o.y: 2 → not set", "z: not set → true"]
    assert differences(Optim(), Optim(lr=1)) == ["lr: 0.001 → 1.0"]
    assert differences(old, old) == []


def test_describe_is_the_help():
    class Outer(Settings):
        optim: Optim = Optim(lr=0.25)
        steps: int = Field(description="how many")
        level: Level = Level.TOKEN
        stop: tuple[str, ...] = ("a",)

    rows = describe(Outer)
    assert rows == [
        ("optim.lr", "number", "0.25", "peak learning rate"),
        ("optim.betas", "[number, number]", "[0.9, 0.95]", ""),
        ("steps", "integer", "required", "how many"),
        ("level", "token|sequence", "token", ""),
        ("stop", "[text, …]", '["a"]', ""),
    ]
    assert ("layer.experts", "integer", "required", "") in describe(Stage)


def test_importing_settings_is_quick():
    code = "import fathom.core.config, sys; print([m for m in ('pyarrow','numpy','yaml','torch') if m in sys.modules])"
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert done.stdout == "[]\n"
    assert min(seconds) < 1.0, "several times the 0.1 s that it takes on an idle machine"
