"""What users get wrong: every cause, in ten generated variants, is an error that names path, value, limit and remedy.

A cause is a function of (rng, folder) that lays a malformed case into the folder and says how it is provoked, through a
public entry, and what the message must name. Whatever was on disk before is still there afterwards, byte for byte.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import logging
import os
import random
import re
import shutil
import string
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fathom import recipes, systems
from fathom.core import disk
from fathom.core.config import Settings, build, load_yaml, parse_overrides
from fathom.core.errors import FathomError
from fathom.core.records import Record, RecordStore
from fathom.core.run import Run
from fathom.model.config import ModelConfig
from fathom.systems.evaluate import Evaluate
from fathom.systems.grpo import Grpo
from fathom.systems.pretrain import Pretrain
from fathom.systems.sft import Sft
from fathom.tasks.examples import gather, load_source
from fathom.tasks.task import load_task

VARIANTS = 10
LONGEST = 600
# The remedy is what stands after the last semicolon, or after the last colon where there is none.
VERBS = {
    "add", "are", "ask", "change", "check", "choose", "continue", "convert", "copy", "correct", "delete", "did",
    "fetch", "free", "give", "grow", "has", "is", "keep", "leave", "let", "make", "move", "name", "pack", "put",
    "quote", "raise", "read", "remove", "restore", "round", "run", "save", "set", "shorten", "start", "take",
    "use", "wait", "write",
}


@dataclass(frozen=True)
class Case:
    """How a malformed thing is provoked, and what the error must name: path or setting, and the value."""

    provoke: Callable[[], object]
    names: tuple[str, ...]
    starts: bool = False  # a run starts before it can find out, so its own new files are no surprise


CAUSES: dict[str, Callable[[random.Random, Path], Case]] = {}


def cause(function: Callable[[random.Random, Path], Case]) -> Callable[[random.Random, Path], Case]:
    """Puts a cause into the table under its function's name."""
    CAUSES[function.__name__.replace("_", " ")] = function
    return function


def word(rng: random.Random, length: int = 9) -> str:
    """A name that nothing has: no near match either."""
    return "zq" + "".join(rng.choices("zqxjkv", k=length))


def sft(**values: Any) -> dict[str, Any]:
    """Sound settings of sft, with changes."""
    return {"init": "m", "data": ["a.jsonl"], **values}


def grpo(**values: Any) -> dict[str, Any]:
    """Sound settings of grpo, with changes."""
    return {"init": "m", "tasks": ["gym:chain_sum"], **values}


def pretrain(**values: Any) -> dict[str, Any]:
    """Sound settings of pretrain, with changes."""
    return {"tokenizer": "t", "data": ["a.jsonl"], **values}


def built(cls: type[Settings], values: dict[str, Any], *names: str) -> Case:
    """A case of `config.build`."""
    return Case(lambda: build(cls, values, "recipe.yaml: zero"), ("recipe.yaml: zero", *names))


def recipe(folder: Path, text: str, *names: str, words: tuple[str, ...] = ()) -> Case:
    """A case of `recipes.load` on a file with `text`."""
    path = folder / "r.yaml"
    path.write_text(text)
    return Case(lambda: recipes.load(str(path), words), names)


# Settings.


@cause
def unknown_setting(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return built(Sft, sft(**{name: 1}), name, "no such setting")


@cause
def unknown_nested_setting(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    part = rng.choice(["optim", "checkpoints"])
    return built(Sft, sft(**{part: {name: 1}}), f"{part}.{name}", "no such setting")


@cause
def misspelt_setting(rng: random.Random, folder: Path) -> Case:
    right = rng.choice(["tokens_per_step", "sequence_length", "checkpoints", "held_out", "recompute", "epochs"])
    at = rng.randrange(1, len(right) - 1)
    wrong = right[:at] + right[at + 1:]
    return built(Sft, sft(**{wrong: 1}), wrong, f"did you mean {right}")


@cause
def very_long_setting_name(rng: random.Random, folder: Path) -> Case:
    name = word(rng, rng.randrange(700, 9000))
    return built(Sft, sft(**{name: 1}), name[:20])


@cause
def wrong_type(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(["steps", "group", "problems", "kl"]), word(rng)
    return built(Grpo, grpo(**{name: value}), name, value)


@cause
def text_for_a_mapping(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(["optim", "sampling", "engine", "checkpoints"]), word(rng)
    return built(Grpo, grpo(**{name: value}), name, value)


@cause
def yes_for_a_number(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["steps", "group", "kl", "clip"])
    value = rng.random() < 0.5
    return built(Grpo, grpo(**{name: value}), f"{name}={str(value).lower()}")


@cause
def fraction_for_a_count(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(["steps", "group", "problems"]), rng.randrange(2, 90) + 0.5
    return built(Grpo, grpo(**{name: value}), f"{name}={value}", "whole number")


@cause
def out_of_range(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(["steps", "problems", "tokens_per_batch", "clip", "kl"]), -rng.randrange(1, 10**6)
    return built(Grpo, grpo(**{name: value}), f"{name}={value}", "must be")


@cause
def nested_out_of_range(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["lr", "eps", "clip", "weight_decay"])
    value = -round(rng.uniform(0.01, 9), 3)
    return built(Sft, sft(optim={name: value}), f"optim.{name}={value}", "must be")


@cause
def not_a_finite_number(rng: random.Random, folder: Path) -> Case:
    text = rng.choice([".inf", "-.inf", ".nan", "1e999"])
    name = rng.choice(["kl", "clip", "optim.lr", "sampling.temperature"])
    return Case(lambda: build(Grpo, {**grpo(), **parse_overrides([f"{name}={text}"])}, "command line"), (name, "="))


@cause
def reward_weight_that_is_no_number(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([float("inf"), float("nan"), word(rng), None, [1]])
    return built(Grpo, grpo(rewards={"accuracy": value}), "rewards.accuracy")


@cause
def empty_list(rng: random.Random, folder: Path) -> Case:
    if rng.random() < 0.5:
        return built(Sft, sft(data=[]), "data=[]", "at least 1")
    return built(Grpo, grpo(tasks=[]), "tasks=[]", "at least 1")


@cause
def text_for_a_list(rng: random.Random, folder: Path) -> Case:
    value = word(rng) + ".jsonl"
    return built(Sft, sft(data=value), f"data={value}", "list")


@cause
def list_of_wrong_length(rng: random.Random, folder: Path) -> Case:
    value = [0.5] * rng.choice([0, 1, 3, 4])
    return built(Sft, sft(optim={"betas": value}), "optim.betas")


@cause
def alias_and_name(rng: random.Random, folder: Path) -> Case:
    alias, name = rng.choice([("num_generations", "group"), ("max_steps", "steps"), ("epsilon", "clip")])
    return built(Grpo, grpo(**{alias: rng.randrange(2, 9), name: rng.randrange(2, 9)}), alias, name, "keep one")


@cause
def name_that_means_something_else(rng: random.Random, folder: Path) -> Case:
    cls, values = rng.choice([(Grpo, grpo), (Sft, sft), (Pretrain, pretrain)])
    name = rng.choice(sorted(cls.elsewhere))
    return built(cls, values(**{name: rng.random()}), name)


@cause
def required_and_not_given(rng: random.Random, folder: Path) -> Case:
    cls, values = rng.choice([(Grpo, grpo()), (Sft, sft()), (Pretrain, pretrain())])
    name = rng.choice(sorted(values))
    del values[name]
    return built(cls, values, name, "required")


@cause
def choice_that_does_not_exist(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice(["normalise", "weigh"]), word(rng)
    return built(Grpo, grpo(**{name: value}), f"{name}={value}", "one of")


@cause
def group_of_one(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["group", "num_generations"])
    return built(Grpo, grpo(steps=rng.randrange(1, 99), **{name: 1}), "group=1", "at least 2")


@cause
def unknown_reward(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([word(rng), "acuracy", "formatt", f"{word(rng)}:", f":{word(rng)}"])
    return built(Grpo, grpo(rewards={"accuracy": 1.0, name: 0.5}), "rewards", name)


@cause
def unknown_preset(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    value = rng.choice([name, {"preset": name}, {"preset": name, "hidden_size": 64}])
    return recipe(folder, json.dumps({"stages": {"base": {"run": "pretrain", **pretrain(model=value)}}}),
                  "base", f"model={name}", "no such preset", "tiny")


@cause
def unknown_model_setting(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return built(Pretrain, pretrain(model={"preset": "tiny", name: 5}), "model", name)


@cause
def more_experts_per_token_than_experts(rng: random.Random, folder: Path) -> Case:
    experts = rng.randrange(1, 8)
    value = experts + rng.randrange(1, 9)
    return built(Pretrain, pretrain(model={"n_routed_experts": experts, "num_experts_per_tok": value}),
                 f"num_experts_per_tok={value}", f"n_routed_experts={experts}")


@cause
def heads_that_do_not_divide(rng: random.Random, folder: Path) -> Case:
    heads, groups = rng.choice([(4, 3), (8, 3), (6, 4), (5, 2), (9, 2)])
    model = {"attention": "gqa", "num_attention_heads": heads, "num_key_value_heads": groups}
    return built(ModelConfig, model, f"num_key_value_heads={groups}", f"num_attention_heads={heads}")


@cause
def odd_rotary_width(rng: random.Random, folder: Path) -> Case:
    value = 2 * rng.randrange(2, 50) + 1
    return built(Pretrain, pretrain(model={"qk_rope_head_dim": value}), f"qk_rope_head_dim={value}", "even")


@cause
def sequences_longer_than_the_model(rng: random.Random, folder: Path) -> Case:
    value = rng.randrange(513, 10**6)
    return built(Pretrain, pretrain(sequence_length=value), f"sequence_length={value}", "512")


@cause
def settings_that_are_no_mapping(rng: random.Random, folder: Path) -> Case:
    value: Any = rng.choice([[1], word(rng), 5, None])
    return built(Sft, value, "mapping")


# The command line's words.


@cause
def words_without_equals(rng: random.Random, folder: Path) -> Case:
    value = word(rng)
    return Case(lambda: parse_overrides([value]), (value,))


@cause
def option_without_value(rng: random.Random, folder: Path) -> Case:
    value = "--" + word(rng)
    return Case(lambda: parse_overrides(rng.choice([[value], [value, "--other=1"]])), (value,))


@cause
def empty_part_of_a_name(rng: random.Random, folder: Path) -> Case:
    value = rng.choice(["{}.=1", ".{}=1", "{}..b=1", "={}"]).format(word(rng))
    return Case(lambda: parse_overrides([value]), (value,))


@cause
def setting_given_twice(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    other = rng.choice([name, f"{name}.lr"])
    return Case(lambda: parse_overrides([f"{name}=1", f"{other}=2"]), (name,))


@cause
def unclosed_bracket(rng: random.Random, folder: Path) -> Case:
    name, value = word(rng), rng.choice(["[a, b", "{a: 1", '"a', "[a, b]]", "{a: 1}}"])
    return Case(lambda: parse_overrides([f"{name}={value}"]), (name, "line 1"))


@cause
def override_of_no_stage(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return Case(lambda: recipes.load("tiny/demo", [f"{name}.steps=2"]), (name, "no such stage"))


# Recipe files.


@cause
def unknown_recipe(rng: random.Random, folder: Path) -> Case:
    name = f"tiny/{word(rng)}"
    return Case(lambda: recipes.load(name), (name, "no such recipe", "tiny/demo"))


@cause
def unknown_system(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([word(rng), "grp", "pretrian", "evalute"])
    return recipe(folder, f"stages: {{a: {{run: {name}}}}}", name, "no such system")


@cause
def unknown_key_of_a_recipe(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return recipe(folder, f"{name}: 1\nstages: {{a: {{run: sft}}}}", "r.yaml", name)


@cause
def stage_without_system(rng: random.Random, folder: Path) -> Case:
    value = rng.choice(["{data: [a]}", "[]", "5", "null", "{run: 5}", "{run: [sft]}"])
    name = word(rng)
    return recipe(folder, f"stages: {{{name}: {value}}}", "r.yaml", name, "run")


@cause
def recipe_without_stages(rng: random.Random, folder: Path) -> Case:
    return recipe(folder, rng.choice(["seed: 1", "stages: {}", "stages: [a]", "stages: 5", "", "stages: null"]),
                  "r.yaml", "stages")


@cause
def seed_that_is_none(rng: random.Random, folder: Path) -> Case:
    value = rng.choice(["-1", "1.5", "true", "abc", "[1]", "-70000"])
    where = rng.choice(["", "a"])
    text = f"seed: {value}\nstages: {{a: {{run: sft, init: m, data: [a]}}}}"
    if where:
        text = f"stages: {{a: {{run: sft, init: m, data: [a], seed: {value}}}}}"
    return recipe(folder, text, "r.yaml", where, f"seed={value}")


@cause
def definitions_that_are_no_mapping(rng: random.Random, folder: Path) -> Case:
    value = rng.choice(["[a]", "5", "text", "[[a, b]]", "true"])
    return recipe(folder, f"define: {value}\nstages: {{a: {{run: sft, init: m, data: [a]}}}}", "r.yaml", "define")


@cause
def name_that_is_not_defined(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return recipe(folder, f"stages: {{a: {{run: sft, init: m, data: [${name}]}}}}", "r.yaml", "a", f"${name}")


@cause
def directory_setting_that_is_a_list(rng: random.Random, folder: Path) -> Case:
    value = rng.choice(["[a]", "{a: b}", "5", "null"])
    return recipe(folder, f"stages: {{a: {{run: sft, init: {value}, data: [a]}}}}", "r.yaml", "a", "init")


@cause
def task_name_that_is_a_list(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([["a"], {"a": "b"}, 5, None])
    text = json.dumps({"stages": {"a": {"run": "sft", "init": "m", "data": [{"task": value, "count": 1}]}}})
    path = folder / "r.yaml"
    path.write_text(text)
    return Case(lambda: load_source(recipes.load(str(path)).stages[0].settings.data[0], 0), ("task",))


@cause
def repeated_yaml_key(rng: random.Random, folder: Path) -> Case:
    name = word(rng)
    return recipe(folder, f"seed: 1\nstages:\n  a: {{run: sft, {name}: 1, {name}: 2}}", "r.yaml", name, "line 3")


@cause
def yaml_bomb(rng: random.Random, folder: Path) -> Case:
    width, depth = rng.randrange(9, 12), rng.randrange(7, 12)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return recipe(folder, "\n".join(lines), "r.yaml", "100000")


@cause
def yaml_nested_without_end(rng: random.Random, folder: Path) -> Case:
    depth = rng.randrange(70, 3000)
    return recipe(folder, "stages: " + "[" * depth + "]" * depth, "r.yaml", "64")


@cause
def yaml_tag(rng: random.Random, folder: Path) -> Case:
    tag = rng.choice(["!!python/object/apply:os.system", "!!binary", f"!{word(rng)}"])
    return recipe(folder, f"stages: {tag} [a]", "r.yaml", "tag")


@cause
def yaml_syntax(rng: random.Random, folder: Path) -> Case:
    text = rng.choice(["a: [1, 2", "a: b: c", "a: 'x", "\ta: 1", "a: *b", "a: @b", "- a\nb: 1", "a: %x"])
    return recipe(folder, f"# {word(rng)}\n{text}\n", "r.yaml", "line")


@cause
def binary_file_for_yaml(rng: random.Random, folder: Path) -> Case:
    path = folder / "r.yaml"
    path.write_bytes(rng.choice([b"PAR1", b"\x1f\x8b\x08", b"\x89PNG", b"\x00\x00"]) + b"\xff" + rng.randbytes(300))
    return Case(lambda: recipes.load(str(path)), (str(path),))


@cause
def yaml_that_is_a_directory(rng: random.Random, folder: Path) -> Case:
    path = folder / f"{word(rng)}.yaml"
    path.mkdir()
    return Case(lambda: load_yaml(path), (str(path), "directory"))


@cause
def yaml_that_is_missing(rng: random.Random, folder: Path) -> Case:
    path = folder / f"{word(rng)}.yaml"
    return Case(lambda: load_yaml(path), (str(path), "no such file"))


@cause
def yaml_too_large(rng: random.Random, folder: Path) -> Case:
    path = folder / "r.yaml"
    path.write_text("a: " + "x" * ((1 << 20) + rng.randrange(999)))
    return Case(lambda: load_yaml(path), (str(path), "1048576"))


@cause
def yaml_that_is_a_list(rng: random.Random, folder: Path) -> Case:
    return recipe(folder, rng.choice(["- a\n- b", "5", "text", "[1]", "true"]), "r.yaml", "mapping")


@cause
def recipe_that_names_a_missing_file(rng: random.Random, folder: Path) -> Case:
    name = f"{word(rng)}{rng.choice(['.jsonl', '.jsonl.gz', '.parquet'])}"
    path = folder / "r.yaml"
    path.write_text(f"stages: {{w: {{run: tokenizer, data: [{name}]}}}}")
    return Case(lambda: recipes.run(recipes.load(str(path), (), folder / "runs")), (name, "no such file", "w"))


# Starting a system: what it names is not there.


def started(folder: Path, system: str, values: dict[str, Any], *names: str, starts: bool = False) -> Case:
    """A case of `systems.start` in a directory that does not exist yet."""
    def provoke() -> object:
        return systems.start(system, values, folder / "run", 1, "command line", console=False)

    return Case(provoke, names, starts)


@cause
def missing_data_file(rng: random.Random, folder: Path) -> Case:
    name = str(folder / f"{word(rng)}{rng.choice(['.jsonl', '.jsonl.gz', '.parquet'])}")
    entry: Any = rng.choice([name, {"data": name, "count": 5}, {"task": name}])
    return started(folder, "tokenizer", {"data": [entry]}, name, "no such file")


@cause
def missing_model_directory(rng: random.Random, folder: Path) -> Case:
    name = str(folder / word(rng))
    system, values = rng.choice([("sft", sft(init=name)), ("grpo", grpo(init=name)), ("distill", grpo(init=name)),
                                 ("evaluate", {"model": name, "tasks": ["gym:chain_sum"]})])
    return started(folder, system, values, name, "no such directory")


@cause
def missing_tokenizer_directory(rng: random.Random, folder: Path) -> Case:
    name = str(folder / word(rng))
    return started(folder, "pretrain", pretrain(tokenizer=name), "tokenizer", name, "no such directory")


@cause
def stage_directory_for_a_model(rng: random.Random, folder: Path) -> Case:
    stage = folder / word(rng)
    (stage / "model").mkdir(parents=True)
    return started(folder, "grpo", grpo(init=str(stage)), str(stage), f"did you mean {stage / 'model'}")


@cause
def unknown_gym_task(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([word(rng), "chain_sun", "basic_arithmetics", ""])
    return started(folder, "tokenizer", {"data": [{"task": f"gym:{name}", "count": 3}]}, f"gym:{name}", "no such task")


@cause
def unknown_gym_option(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([word(rng), "min_term", "seed", "size", "holdout"])
    return Case(lambda: load_task({"task": "gym:chain_sum", name: 3}), ("gym:chain_sum", name))


@cause
def gym_option_refused(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice([("min_terms", 99), ("min_digits", -3), ("max_digits", 0), ("min_terms", "x")])
    return Case(lambda: load_task({"task": "gym:chain_sum", name: value}), ("gym:chain_sum", f"{name}={value!r}"))


@cause
def share_that_is_none(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([1, 1.5, -0.1, "half", True, None, float("nan")])
    return Case(lambda: load_task({"task": "gym:chain_sum", "hold_out": value}), (f"hold_out={value!r}",))


@cause
def unknown_manner_of_working(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([word(rng), 5, True, "Steps"])
    return Case(lambda: load_task({"task": "gym:chain_sum", "think": value}), (f"think={value!r}",))


@cause
def task_without_end(rng: random.Random, folder: Path) -> Case:
    task = rng.choice(["gym:chain_sum", "gym:basic_arithmetic"])
    return started(folder, "tokenizer", {"data": [task]}, task, "count")


@cause
def count_that_is_none(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([0, -5, 1.5, "many", True, [3]])
    return started(folder, "tokenizer", {"data": [{"task": "gym:chain_sum", "count": value}]}, f"count={value!r}")


@cause
def task_of_no_known_form(rng: random.Random, folder: Path) -> Case:
    name = rng.choice([word(rng), f"{word(rng)}.csv", f"{word(rng)}.txt"])
    return started(folder, "tokenizer", {"data": [name]}, name, "no such task")


@cause
def module_that_does_not_exist(rng: random.Random, folder: Path) -> Case:
    name = f"{word(rng)}:thing"
    return Case(lambda: load_task(name), (name, "no module"))


@cause
def option_of_a_problem_file(rng: random.Random, folder: Path) -> Case:
    path = folder / "p.jsonl"
    path.write_text('{"question": "1+1", "answer": "2"}\n')
    name, value = rng.choice([("test_row", 3), (word(rng), 1), ("test_rows", 0), ("test_rows", "x"), ("test", 5),
                              ("test_share", "x"), ("test_share", 1), ("workers", 0), ("workers", "x"),
                              ("timeout_s", 0), ("timeout_s", "x")])
    return started(folder, "tokenizer", {"data": [{"data": str(path), name: value}]}, name)


# Data files.


@cause
def data_without_a_known_form(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.jsonl"
    path.write_text(rng.choice(["", "\n\n", "[1]\n", f'{{"{word(rng)}": 1}}\n', "not json\n" * 5, "null\n"]))
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "JSON object")


@cause
def data_that_is_a_directory(rng: random.Random, folder: Path) -> Case:
    path = folder / rng.choice(["d", "d.jsonl", "d.parquet"])
    path.mkdir()
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path))


@cause
def all_rows_bad(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.jsonl"
    question = {"messages": [{"role": "user", "content": "x"}]}
    row = rng.choice([{"messages": []}, question, {"prompt": "", "completion": "x"}])
    path.write_text((json.dumps(row) + "\n") * rng.randrange(1, 9))
    values = {"tokenizer": str(model_directory()), "data": [str(path)]}
    return started(folder, "pretrain", values, "0 examples", starts=True)


@cause
def gzip_cut_off(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.jsonl.gz"
    row = rng.choice([{"text": "a b c"}, {"question": "1+1", "answer": "2"}])
    whole = gzip.compress(b"".join(json.dumps(row | {"n": rng.random()}).encode() + b"\n" for _ in range(3000)))
    path.write_bytes(whole[: rng.randrange(12, len(whole) - 8)])
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "gzip", starts=True)


@cause
def gzip_that_is_none(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.jsonl.gz"
    path.write_bytes(b'{"text": "a"}\n' * rng.randrange(1, 50))
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "gzip")


@cause
def parquet_cut_off(rng: random.Random, folder: Path) -> Case:
    import pyarrow
    import pyarrow.parquet

    path = folder / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["1+1"] * 9, "answer": ["2"] * 9}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: rng.randrange(0, len(whole) - 1)])
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "Parquet")


def problems(path: Path, n: int = 3) -> Path:
    """A sound file of problems."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"question": "{i}+1", "answer": "#### {i + 1}"}}\n' for i in range(n)))
    return path


@cause
def directory_without_data(rng: random.Random, folder: Path) -> Case:
    path = folder / word(rng)
    path.mkdir()
    if rng.random() < 0.5:
        (path / "table.csv").write_text("question,answer")
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "data files")


@cause
def run_that_kept_no_records(rng: random.Random, folder: Path) -> Case:
    path = folder / word(rng)
    problems(path / "samples" / "000050.jsonl")
    (path / "manifest.json").write_text("{}")
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "kept no records")


@cause
def configuration_that_does_not_exist(rng: random.Random, folder: Path) -> Case:
    path, name = folder / "d", word(rng)
    problems(path / "main" / "train.jsonl")
    problems(path / "socratic" / "train.jsonl")
    entry: Any = rng.choice([{"data": str(path), "config": name}, {"task": str(path)}])
    return started(folder, "tokenizer", {"data": [entry]}, str(path), "main, socratic")


@cause
def split_that_does_not_exist(rng: random.Random, folder: Path) -> Case:
    path, name = folder / "d", word(rng)
    problems(path / "train.jsonl")
    problems(path / "test.jsonl")
    return started(folder, "tokenizer", {"data": [{"data": str(path), "split": name}]}, str(path), name, "train, test")


@cause
def json_array_that_is_none(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.json"
    whole = json.dumps([{"question": "1+1", "answer": "2"}] * rng.randrange(1, 9))
    path.write_text(whole[: rng.randrange(1, len(whole) - 1)])
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path), "JSON array")


@cause
def arrow_cut_off(rng: random.Random, folder: Path) -> Case:
    import pyarrow

    path = folder / "d"
    path.mkdir()
    table = pyarrow.table({"question": ["1+1"] * 9, "answer": ["2"] * 9})
    with pyarrow.OSFile(str(path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    whole = (path / "a.arrow").read_bytes()
    (path / "a.arrow").write_bytes(whole[: rng.randrange(0, len(whole) - 1)])
    (path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path / "a.arrow"), "Arrow")


@cause
def link_out_of_a_directory(rng: random.Random, folder: Path) -> Case:
    path = folder / "d"
    problems(path / "train.jsonl")
    outside = problems(folder / f"{word(rng)}.jsonl")
    (path / "test.jsonl").symlink_to(outside)
    return started(folder, "tokenizer", {"data": [str(path)]}, str(path / "test.jsonl"), str(outside))


@cause
def hub_name_that_is_none(rng: random.Random, folder: Path) -> Case:
    name = f"hub:{rng.choice([word(rng), 'a/b/c', '../..', '', 'a b/c'])}"
    return started(folder, "tokenizer", {"data": [name]}, name, "hub:OWNER/NAME")


@cause
def file_of_another_data_set(rng: random.Random, folder: Path) -> Case:
    path = problems(folder / "d.jsonl", rng.randrange(1, 9))
    return started(folder, "tokenizer", {"data": [{"task": "math", "data": str(path)}]}, str(path), "gsm8k")


@cause
def option_of_a_file_of_chats(rng: random.Random, folder: Path) -> Case:
    path = folder / "d.jsonl"
    path.write_text('{"text": "a"}\n')
    name, value = rng.choice([("test", "x.jsonl"), ("test_rows", 3), (word(rng), 1), ("workers", 2)])
    if name == "test":
        problems(folder / "x.jsonl")
    return started(folder, "tokenizer", {"data": [{"data": str(path), name: value}]}, str(path), name)


# Model directories, tokenizers, checkpoints.


SCRATCH = tempfile.TemporaryDirectory(prefix="malformed-")  # what many cases copy; removed when Python ends


def scratch() -> Path:
    """The directory of what many cases copy."""
    return Path(SCRATCH.name)


SHAPE = dict(vocab_size=300, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, kv_lora_rank=4,
             qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4, intermediate_size=8, n_routed_experts=2,
             num_experts_per_tok=1, moe_intermediate_size=4, max_position_embeddings=64)


@functools.cache
def model_directory() -> Path:
    """A sound model directory, not sealed, so that a changed file is read and not only missed by its checksum."""
    from fathom.model import weights
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer

    path = scratch() / "model"
    weights.save(path, Transformer(ModelConfig(**SHAPE)).initialise(1), Tokenizer.train(["one two three"] * 3, 280))
    for name in (disk.COMPLETE, disk.CHECKSUMS):
        (path / name).unlink()
    return path


@functools.cache
def checkpoint_directory() -> Path:
    """A sealed checkpoint."""
    import torch

    from fathom.train import checkpoint

    state = {"mark": None, "best": None, "tokens": 5, "threads": 1, "tracked": {}}
    return checkpoint.save(scratch() / "checkpoints", 7, {"w": torch.ones(64)}, {"step/w": torch.ones(1)}, state)


def copy(source: Path, folder: Path) -> Path:
    """A copy that a case may spoil."""
    return Path(shutil.copytree(source, folder / source.name))


def loaded(path: Path, *names: str) -> Case:
    """A case of `weights.load`."""
    def provoke() -> object:
        from fathom.model import weights

        return weights.load(path)

    return Case(provoke, (str(path), *names))


def retensored(rng: random.Random, folder: Path, change: Callable[[dict[str, Any], str], None], *names: str) -> Case:
    """A model directory in which `change` was applied to the tensors and the name of one of them."""
    from safetensors.torch import load_file, save_file

    path = copy(model_directory(), folder)
    tensors = load_file(path / "model.safetensors")
    name = rng.choice(sorted(tensors))
    change(tensors, name)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return loaded(path, *(text.format(name=name) for text in names))


@cause
def tensor_missing(rng: random.Random, folder: Path) -> Case:
    return retensored(rng, folder, lambda tensors, name: tensors.pop(name), "{name}: missing")


@cause
def tensor_too_many(rng: random.Random, folder: Path) -> Case:
    def change(tensors: dict[str, Any], name: str) -> None:
        tensors[f"{name}.more"] = tensors[name].clone()

    return retensored(rng, folder, change, "{name}.more: not part")


@cause
def tensor_of_wrong_shape(rng: random.Random, folder: Path) -> Case:
    def change(tensors: dict[str, Any], name: str) -> None:
        tensors[name] = tensors[name][..., :-1].contiguous()

    return retensored(rng, folder, change, "{name}: shape")


@cause
def tensor_of_whole_numbers(rng: random.Random, folder: Path) -> Case:
    import torch

    kind = rng.choice([torch.int8, torch.int32, torch.uint8, torch.bool])

    def change(tensors: dict[str, Any], name: str) -> None:
        tensors.update({key: value.to(kind) for key, value in tensors.items()})

    return retensored(rng, folder, change, str(kind))


@cause
def weights_cut_off(rng: random.Random, folder: Path) -> Case:
    path = copy(model_directory(), folder)
    file = path / "model.safetensors"
    os.truncate(file, rng.randrange(0, file.stat().st_size))
    return loaded(path, "model.safetensors", "safetensors")


@cause
def model_file_missing(rng: random.Random, folder: Path) -> Case:
    path = copy(model_directory(), folder)
    name = rng.choice(["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
    (path / name).unlink()
    return loaded(path, name, "no such file")


@cause
def model_file_changed_after_sealing(rng: random.Random, folder: Path) -> Case:
    with disk.commit(folder / "m") as made:
        for file in model_directory().iterdir():
            made.write(file.name, file.read_bytes())
    name = rng.choice(["model.safetensors", "config.json", "tokenizer.json", "README.md"])
    flip(rng, folder / "m" / name)
    return loaded(folder / "m", name, "changed")


def reconfigured(folder: Path, name: str, value: Any, *names: str) -> Case:
    """A model directory whose config.json says something else."""
    path = copy(model_directory(), folder)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, name: value}))
    return loaded(path, "config.json", name, *names)


@cause
def unknown_model_type(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([word(rng), "mixtral", None, 5, ["llama"]])
    return reconfigured(folder, "model_type", value, repr(value))


@cause
def config_that_is_not_computed(rng: random.Random, folder: Path) -> Case:
    name, value = rng.choice([("rope_scaling", {"type": "yarn"}), ("hidden_act", "gelu"), ("n_group", 4),
                              ("scoring_func", "softmax"), ("quantization_config", {"bits": 4})])
    return reconfigured(folder, name, value, repr(value)[:20])


@cause
def config_value_of_wrong_type(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["hidden_size", "vocab_size", "num_hidden_layers", "rms_norm_eps"])
    value = rng.choice([word(rng), -3, [1], {}, 0])
    return reconfigured(folder, name, value)


@cause
def json_that_is_none(rng: random.Random, folder: Path) -> Case:
    path = copy(model_directory(), folder)
    name = rng.choice(["config.json", "tokenizer.json", "tokenizer_config.json"])
    (path / name).write_bytes(rng.choice([b"", b"{", b"not json", b"[1]", b"\xff\xfe", b"5", b"{}x"]))
    return loaded(path, name)


@cause
def tokenizer_larger_than_the_model(rng: random.Random, folder: Path) -> Case:
    from fathom.model.tokenizer import Tokenizer

    path = copy(model_directory(), folder)
    text = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(400)]
    for name, data in Tokenizer.train(text, 400).files().items():
        (path / name).write_bytes(data)
    return loaded(path, "400", "300")


@cause
def broken_chat_template(rng: random.Random, folder: Path) -> Case:
    path = copy(model_directory(), folder)
    text = rng.choice([b"{% for m in messages %}", b"{{ bos_token", b"{% endfor %}", b"{{ 1 + }}", b"\xff\xfe{{ x }}"])
    (path / "chat_template.jinja").write_bytes(text)
    return loaded(path, "template")


@cause
def control_token_missing(rng: random.Random, folder: Path) -> Case:
    path = copy(model_directory(), folder)
    name, value = rng.choice(["bos_token", "eos_token"]), rng.choice([word(rng), 5, {"x": 1}, ["a"]])
    if name == "eos_token" and rng.random() < 0.3:  # a vocabulary may begin with nothing, not end with nothing
        value = None
    raw = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**raw, name: value}))
    return loaded(path)


@cause
def template_that_fails_on_a_chat(rng: random.Random, folder: Path) -> Case:
    from fathom.core.chat import Message
    from fathom.model.tokenizer import Tokenizer

    text = rng.choice(["{{ 1 / 0 }}", "{{ messages[9].content }}", "{{ raise_exception('x') }}", "{{ bos_token + 5 }}",
                       "{{ bos_token }}"])
    tokenizer = Tokenizer(Tokenizer.load(model_directory()).backend, text)
    return Case(lambda: tokenizer.prompt([Message("user", "hi")]), ("chat template",))


def flip(rng: random.Random, path: Path) -> None:
    """One bit of a file turned round."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def resumed(path: Path, *names: str) -> Case:
    """A case of `checkpoint.load`."""
    def provoke() -> object:
        from fathom.train import checkpoint

        return checkpoint.load(path)

    return Case(provoke, (str(path), *names))


CHECKPOINT_FILES = ("weights.safetensors", "optimiser.safetensors", "state.json")


@cause
def checkpoint_bit_flipped(rng: random.Random, folder: Path) -> Case:
    path = copy(checkpoint_directory(), folder)
    name = rng.choice([*CHECKPOINT_FILES, disk.CHECKSUMS])
    flip(rng, path / name)
    return resumed(path, name)


@cause
def checkpoint_cut_off(rng: random.Random, folder: Path) -> Case:
    path = copy(checkpoint_directory(), folder)
    name = rng.choice(CHECKPOINT_FILES)
    os.truncate(path / name, rng.randrange(0, (path / name).stat().st_size))
    return resumed(path, name)


@cause
def checkpoint_file_missing(rng: random.Random, folder: Path) -> Case:
    path = copy(checkpoint_directory(), folder)
    name = rng.choice([*CHECKPOINT_FILES, disk.COMPLETE])
    (path / name).unlink()
    return resumed(path, name)


def resealed(folder: Path, change: dict[str, bytes | None]) -> Path:
    """A sealed checkpoint with other files."""
    files = {name: (checkpoint_directory() / name).read_bytes() for name in CHECKPOINT_FILES} | change
    with disk.commit(folder / "000007") as made:
        for name, data in files.items():
            if data is not None:
                made.write(name, data)
    return folder / "000007"


@cause
def checkpoint_of_another_format(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([0, 2, 99, "1", None, word(rng)])
    path = resealed(folder, {"state.json": json.dumps({"format": value, "step": 7}).encode()})
    return resumed(path, "format", repr(value))


@cause
def checkpoint_sealed_without_a_file(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(CHECKPOINT_FILES)
    return resumed(resealed(folder, {name: None}), name)


@cause
def checkpoint_of_other_files(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(CHECKPOINT_FILES)
    return resumed(resealed(folder, {name: rng.randbytes(40)}))


@cause
def checkpoint_of_another_model(rng: random.Random, folder: Path) -> Case:
    import torch

    from fathom.train import checkpoint

    ours = {"a": torch.ones(rng.randrange(2, 9)), "b": torch.ones(3, rng.randrange(2, 9))}
    name = rng.choice("ab")
    found = {key: value.clone() for key, value in ours.items()}
    match rng.randrange(3):
        case 0:
            del found[name]
        case 1:
            found[name] = torch.ones(11, 2)
        case 2:
            name = word(rng)
            found[name] = torch.ones(1)
    return Case(lambda: checkpoint.check_fit(folder, found, ours), (str(folder), name))


@cause
def checkpoint_without_its_state(rng: random.Random, folder: Path) -> Case:
    from fathom.train import checkpoint

    state = {name: 1 for name in checkpoint.STATE} | {"tracked": {"loader": {}}}
    name = rng.choice([*state, "loader"])
    if name == "loader":
        state["tracked"] = {}
    else:
        del state[name]
    return Case(lambda: checkpoint.check_state(folder, state, ["loader"]), (str(folder), name))


# Run directories and record stores.


class Little(Settings):
    """Settings of a run that does nothing."""

    steps: int = 3
    name: str = "x"


@functools.cache
def run_directory() -> Path:
    """A run that was left before its end."""
    with Run.open(scratch() / "run", "sft", Little(), 1, console=False) as run:
        run.metrics(1, loss=1.0)
    return run.dir


def opened(path: Path, *names: str, **asked: Any) -> Case:
    """A case of `Run.open`."""
    values: dict[str, Any] = {"system": "sft", "settings": Little(), "seed": 1, "console": False, **asked}
    return Case(lambda: Run.open(path, **values), (str(path), *names))


@cause
def directory_of_other_files(rng: random.Random, folder: Path) -> Case:
    path = folder / "run"
    path.mkdir()
    name = rng.choice([f"{word(rng)}.txt", "notes", ".git"])
    (path / name).write_text("mine")
    return opened(path, name)


@cause
def run_of_other_settings(rng: random.Random, folder: Path) -> Case:
    value = rng.randrange(4, 99)
    path = copy(run_directory(), folder)
    asked, text = rng.choice([({"settings": Little(steps=value)}, f"3 → {value}"), ({"seed": value}, f"1 → {value}"),
                              ({"inputs": {"a": "b"}}, "inputs.a"), ({"system": "grpo"}, "sft → grpo")])
    return opened(path, text, "--fresh", **asked)


def remanifested(folder: Path, change: dict[str, Any], *names: str) -> Case:
    """A run whose manifest says something else."""
    path = copy(run_directory(), folder)
    found = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**found, **change}))
    return opened(path, "manifest.json", *names)


@cause
def manifest_of_another_version(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([0, 2, 17, "1", word(rng), None])
    return remanifested(folder, {"format": value}, "format", repr(value))


@cause
def manifest_of_wrong_types(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(["settings", "seed", "attempts", "status", "versions", "fingerprint", "summary"])
    value: Any = rng.choice([None, 1.5, word(rng)]) if name != "fingerprint" else None
    return remanifested(folder, {name: value}, name)


@cause
def manifest_that_is_no_json(rng: random.Random, folder: Path) -> Case:
    path = copy(run_directory(), folder)
    whole = (path / "manifest.json").read_bytes()
    part = whole[: rng.randrange(1, len(whole) - 3)]
    (path / "manifest.json").write_bytes(rng.choice([b"", part, b"\xff", b"[]", b"5"]))
    return opened(path, "manifest.json")


@cause
def run_directory_that_is_a_file(rng: random.Random, folder: Path) -> Case:
    path = folder / word(rng)
    path.write_bytes(rng.randbytes(9))
    return opened(path)


@cause
def time_limit_of_nothing(rng: random.Random, folder: Path) -> Case:
    value = rng.choice([0, -1, -2.5, float("nan")])
    return Case(lambda: Run.open(folder / "run", "sft", Little(), 1, time_limit=value), (f"time_limit={value}",))


@functools.cache
def store_directory() -> Path:
    """A store of two commits."""
    store = RecordStore(scratch() / "records", commit_every=3)
    with store:
        for record in store.todo(Record(f"i{n}", {"n": n}, "made") for n in range(6)):
            if record.data["n"] % 2:
                store.reject(record, "odd")
            else:
                store.done(record, [record.child(0, {"n": 1})])
    return store.directory


def read(path: Path, *names: str) -> Case:
    """A case of reading a whole store."""
    def provoke() -> object:
        store = RecordStore(path)
        return store.ledger(), list(store.kept()), list(store.rejected())

    return Case(provoke, (str(path), *names))


@cause
def record_file_flipped(rng: random.Random, folder: Path) -> Case:
    path = copy(store_directory(), folder)
    name = rng.choice(["kept.parquet", "rejected.parquet", "inputs.json", "counts.json"])
    flip(rng, path / "000001" / name)
    return read(path, name)


@cause
def record_file_cut_off(rng: random.Random, folder: Path) -> Case:
    path = copy(store_directory(), folder)
    file = path / "000002" / rng.choice(["kept.parquet", "rejected.parquet", "inputs.json", "counts.json"])
    os.truncate(file, rng.randrange(0, file.stat().st_size))
    return read(path, file.name)


@cause
def record_file_missing(rng: random.Random, folder: Path) -> Case:
    path = copy(store_directory(), folder)
    file = path / rng.choice(["000001", "000002"]) / rng.choice(["kept.parquet", "inputs.json", "counts.json"])
    file.unlink()
    return read(path, file.name)


@cause
def commit_missing(rng: random.Random, folder: Path) -> Case:
    path = copy(store_directory(), folder)
    if rng.random() < 0.5:
        shutil.rmtree(path / "000001")
    else:
        (path / "000001" / disk.COMPLETE).unlink()
    return read(path, "000001")


@cause
def commit_that_does_not_balance(rng: random.Random, folder: Path) -> Case:
    path = copy(store_directory(), folder)
    seals = (disk.COMPLETE, disk.CHECKSUMS)
    files = {file.name: file.read_bytes() for file in (path / "000002").iterdir() if file.name not in seals}
    counts = json.loads(files["counts.json"])
    name = rng.choice(["inputs", "done", "outputs", "format"])
    files["counts.json"] = json.dumps({**counts, name: counts[name] + rng.randrange(1, 9)}).encode()
    shutil.rmtree(path / "000002")
    with disk.commit(path / "000002") as made:
        for name, data in files.items():
            made.write(name, data)
    return read(path, "000002")


# The checks.


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def remedy(message: str) -> str:
    """What the message says to do."""
    return message.rpartition("; " if "; " in message else ": ")[2]


def failings(message: str, names: tuple[str, ...]) -> list[str]:
    """What the message lacks."""
    words = re.findall(r"[\w.:/…-]+", remedy(message).lower())
    found = [f"does not name {name!r}" for name in names if name not in message]
    if len(message) > LONGEST:
        found.append(f"{len(message)} characters")
    if len(words) < 3 or not VERBS & set(words):
        found.append(f"no remedy in {remedy(message)!r}")
    return found


def message_of(case: Case) -> str:
    """The words of the error that the case provokes."""
    with pytest.raises(FathomError) as caught:
        case.provoke()
    return str(caught.value)


@pytest.mark.property
@pytest.mark.parametrize("name", CAUSES)
def test_error_helps_and_nothing_is_written_over(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in range(VARIANTS):
        folder = tmp_path / str(variant)
        folder.mkdir()
        monkeypatch.chdir(folder)
        case = CAUSES[name](random.Random(f"{name} {variant}"), folder)
        before = tree(folder)
        message = message_of(case)
        assert failings(message, case.names) == [], message
        after = tree(folder)
        assert {path: after.get(path) for path in before} == before
        new = set(after) - set(before)
        assert case.starts or not new, f"written although nothing started: {new}"


def test_there_are_enough_causes() -> None:
    assert len(CAUSES) >= 30


@pytest.mark.parametrize(
    ("message", "lacking"),
    [
        ("r.yaml: lr=x: must be a number; write lr: 0.1", 0),
        ("r.yaml: lr=x: must be a number", 1),
        ("r.yaml: x", 2),
        ("r.yaml: lr=x: must be a number; " + "write it " * 99, 1),
    ],
)
def test_the_check_finds_what_is_lacking(message: str, lacking: int) -> None:
    assert len(failings(message, ("lr=x",))) == lacking


def bad_rows(rng: random.Random) -> list[tuple[bytes, str]]:
    """Lines that are no chat, each with the reason that it is to be rejected for."""
    return [
        (b"not json at all", "not JSON"),
        (b'{"messages": ', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"5", "not a JSON object"),
        (b"\xff\xfe\xfd", "not UTF-8"),
        (b'{"messages": []}', "messages is not a list of turns"),
        (b'{"messages": "hello"}', "messages is not a list of turns"),
        (b'{"messages": [5]}', "a message is malformed"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "a message has an unknown role"),
        (b'{"messages": [{"role": ["user"], "content": "x"}]}', "a message is malformed"),
        (b'{"messages": [{"role": "assistant", "content": null}]}', "a message is malformed"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no assistant turn"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "a message is not UTF-8"),
        (b'{"text": ""}', "text is empty"),
        (b'{"text": 5}', "text is not text"),
        (b'{"text": "\\udfff"}', "text is not UTF-8"),
        (b'{"prompt": "a", "completion": " "}', "completion is empty"),
        (b'{"prompt": null, "completion": "a"}', "text is missing"),  # null is as good as absent
        (b'{"prompt": "a"}', "text is missing"),
        (b'{"' + word(rng).encode() + b'": 1}', "text is missing"),
        (b'{"text": "' + b"x" * (1 << 20) + b'"}', "line is longer than 1 MiB"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
    ]


@pytest.mark.property
@pytest.mark.parametrize("variant", range(VARIANTS))
def test_bad_rows_are_named_rejects_and_the_ledger_balances(variant: int, tmp_path: Path) -> None:
    rng = random.Random(variant)
    lines = [(json.dumps({"text": f"row {n} {rng.random()}"}).encode(), "") for n in range(20)]
    lines += rng.sample(bad_rows(rng), 14)
    first, rest = lines[0], lines[1:]
    rng.shuffle(rest)
    path = tmp_path / ("d.jsonl.gz" if variant % 2 else "d.jsonl")
    text = b"\n".join(line for line, _ in [first, *rest])
    path.write_bytes(gzip.compress(text) if variant % 2 else text)
    store = RecordStore(tmp_path / "records")
    ledger = gather(store, [str(path)], lambda _: 0, lambda example: {"example": str(example)},
                    logging.getLogger("x"), lambda: None)
    expected: dict[str, int] = {}
    for _, reason in lines:
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
    assert (ledger.inputs, ledger.done, dict(ledger.rejected)) == (34, 20, expected)
    assert {reason for _, reason in store.rejected()} == set(expected)


def test_a_checkpoint_without_its_last_file_gives_way_to_an_older_one(tmp_path: Path) -> None:
    import torch

    from fathom.train import checkpoint

    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"w": torch.ones(1)}, {}, {})
    (tmp_path / "000010" / disk.COMPLETE).unlink()
    assert checkpoint.steps(tmp_path) == [5]
    assert checkpoint.incomplete(tmp_path) == [tmp_path / "000010"]


def test_evaluation_settings_name_the_nearest() -> None:
    with pytest.raises(FathomError, match="did you mean problems"):
        build(Evaluate, {"model": "m", "tasks": ["gym:chain_sum"], "problms": 3}, "x")
