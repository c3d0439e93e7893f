"""Model files made to hurt: each is refused by name, in little time and memory, before anything is allocated.

All cases run in one fresh process that measures itself; the tests read its answers.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MEGABYTE = 1 << 20
GROWTH = 64 * MEGABYTE  # of the process's largest resident size, over one case
SECONDS = 2.0

Make = Callable[[Path], None]  # spoils a sound directory
CASES: dict[str, tuple[Make, tuple[str, ...]]] = {}  # name → how it is made, and what the message must name
FILE, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
NORM, EXPERT = "model.norm.weight", "model.layers.1.mlp.experts.0.up_proj.weight"


def case(name: str, *named: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        assert name not in CASES
        CASES[name] = make, named
        return make
    return add


def raw(name: str, content: bytes, *named: str) -> None:
    """A case whose weights are these bytes."""
    case(name, FILE, *named)(lambda path: _write(path / FILE, content))


def _write(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def file_of(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(name: str, *named: str, data: bytes = b"\0" * 8, **change: Any) -> None:
    """A case of a file with one tensor whose entry is spoilt."""
    raw(name, file_of(json.dumps({NORM: entry(**change)}), data), NORM, *named)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = (path / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8: 8 + length]), content[8 + length:]


def respoilt(name: str, change: Callable[[dict[str, Any]], object], *named: str) -> None:
    """A case whose header is the sound one, changed."""
    def make(path: Path) -> None:
        header, data = header_of(path)
        change(header)
        _write(path / FILE, file_of(json.dumps(header), data))
    case(name, FILE, *named)(make)


def rebuilt(name: str, change: Callable[[dict[str, Any]], object], *named: str) -> None:
    """A case of a file that is well formed, with other tensors."""
    def make(path: Path) -> None:
        from safetensors.torch import load_file, save_file
        tensors = load_file(path / FILE)
        change(tensors)
        save_file(tensors, path / FILE)
    case(name, FILE, *named)(make)


def configured(name: str, *named: str, **fields: Any) -> None:
    """A case whose config.json says something else."""
    def make(path: Path) -> None:
        given = json.loads((path / CONFIG).read_text()) | fields
        _write(path / CONFIG, json.dumps(given))
    case(name, "config.json", *named)(make)


def sharded(name: str, change: Callable[[dict[str, str], Path], object], *named: str) -> None:
    """A case of shards whose index is changed."""
    def make(path: Path) -> None:
        from safetensors.torch import load_file, save_file
        tensors = load_file(path / FILE)
        (path / FILE).unlink()
        half = len(tensors) // 2
        listed: dict[str, str] = {}
        for number, keys in ((1, list(tensors)[:half]), (2, list(tensors)[half:])):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({key: tensors[key] for key in keys}, path / file)
            listed |= dict.fromkeys(keys, file)
        change(listed, path)
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    case(name, *named)(make)


def pointed(name: str, target: str) -> None:
    sharded(name, lambda listed, path: listed.update({NORM: target}), INDEX, NORM, "plain name")


# what is no safetensors file at all
raw("pickle", b"\x80\x04\x95" + b"cos\nsystem\n(S'echo no'\ntR." * 3, "header would be")
raw("zip archive", b"PK\x03\x04" + bytes(100), "header would be")
raw("gzip", b"\x1f\x8b\x08\0" + bytes(60), "not a whole safetensors file")
raw("nothing", b"", "0 bytes")
raw("seven bytes", b"\x01\0\0\0\0\0\0", "7 bytes")
raw("length of 2^63", file_of("{}", length=1 << 63), str(1 << 63))
raw("length of 2^64 - 1", file_of("{}", length=(1 << 64) - 1), str((1 << 64) - 1))
raw("length past the end", file_of("{}", length=1000), "1000 bytes")
raw("header that is no JSON", file_of("{not json}"), "is not JSON")
raw("header that is a list", file_of("[1, 2]"), "brace")
raw("header that is no UTF-8", file_of(b"{\"\xff\xfe\": 1}"), "UTF-8")
raw("header of nested lists", file_of('{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "is not JSON")
raw("header of nested objects", file_of('{"a":' * 100_000 + "1" + "}" * 100_000), "is not JSON")
raw("header with a number of a million digits", file_of('{"a":' + "9" * 1_000_000 + "}"), "is not JSON")
raw("the same tensor twice", file_of(f'{{"{NORM}": {json.dumps(entry())}, "{NORM}": {json.dumps(entry())}}}', bytes(8)),
    NORM, "twice")
raw("the same key twice in an entry", file_of(
    f'{{"{NORM}": {{"dtype": "F32", "dtype": "I8", "shape": [2], "data_offsets": [0, 8]}}}}', bytes(8)),
    "dtype", "twice")
raw("NaN", file_of(f'{{"{NORM}": {{"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}}}', bytes(8)), "NaN")
raw("infinity", file_of(f'{{"{NORM}": {{"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}}}', bytes(8)),
    "Infinity")
raw("metadata that is no text", file_of(json.dumps({"__metadata__": {"a": {"b": 1}}, NORM: entry()}), bytes(8)),
    "__metadata__")
raw("metadata that is a list", file_of(json.dumps({"__metadata__": [1], NORM: entry()}), bytes(8)), "__metadata__")


@case("header of 200 MB of spaces", FILE, "header would be")
def spaces(path: Path) -> None:
    (path / FILE).unlink()
    with (path / FILE).open("wb") as file:
        file.write((200 * MEGABYTE).to_bytes(8, "little"))
        file.truncate(200 * MEGABYTE + 8)


@case("a directory of the name", FILE, "regular file")
def directory(path: Path) -> None:
    (path / FILE).unlink()
    (path / FILE).mkdir()


@case("a named pipe", FILE, "regular file")
def pipe(path: Path) -> None:
    (path / FILE).unlink()
    os.mkfifo(path / FILE)


@case("a device without end", FILE, "regular file")
def device(path: Path) -> None:
    (path / FILE).unlink()
    (path / FILE).symlink_to("/dev/zero")


@case("a link to a file of passwords", FILE, "safetensors")
def passwords(path: Path) -> None:
    (path / FILE).unlink()
    (path / FILE).symlink_to("/etc/passwd")


@case("a link to nothing", FILE, "no such file")
def dangling(path: Path) -> None:
    (path / FILE).unlink()
    (path / FILE).symlink_to(path / "gone")


# entries
one("dtype that is none", "'F128'", dtype="F128")
one("dtype that is a list", "dtype", dtype=["F32"])
one("shape with a negative", "shape=[-2]", shape=[-2])
one("shape with a fraction", "shape=[2.0]", shape=[2.0])
one("shape with true", "shape=[True]", shape=[True])
one("shape that is text", "shape='2'", shape="2")
one("shape of 2^63", str(1 << 63), shape=[1 << 63])
one("shape of 2^61 with small offsets", str(1 << 61), shape=[1 << 61])
one("shape whose product overflows", "elements", shape=[1 << 32, 1 << 32, 1 << 32])
one("shape whose product overflows to what fits", "elements", shape=[1 << 61, 8, 2])
one("shape of a thousand dimensions", "1000 dimensions", shape=[1] * 1000)
one("offsets before the data", "data_offsets=[-8, 0]", offsets=[-8, 0])
one("offsets that fall", "data_offsets=[8, 0]", offsets=[8, 0])
one("offsets of three", "data_offsets", offsets=[0, 4, 8])
one("offsets past the end", "the file has", offsets=[0, 8000], shape=[2000])
one("offsets of 2^63", str(1 << 63), offsets=[0, 1 << 63])
one("size of another type", "span 8 bytes", dtype="F64")
one("bytes after the last tensor", "belong to no tensor", data=bytes(50))
one("a file cut off", "the file has", data=bytes(3))
raw("entry without a shape", file_of(json.dumps({NORM: {"dtype": "F32", "data_offsets": [0, 8]}}), bytes(8)), NORM)
raw("entry that is a number", file_of(json.dumps({NORM: 5}), bytes(8)), NORM)
raw("entry with more", file_of(json.dumps({NORM: entry() | {"code": "x"}}), bytes(8)), NORM)
raw("tensors that overlap", file_of(json.dumps({"a": entry(), NORM: entry(offsets=[4, 12])}), bytes(12)), NORM,
    "overlaps")
raw("two tensors in one place", file_of(json.dumps({"a": entry(), NORM: entry()}), bytes(8)), NORM, "overlaps")
raw("a hole between tensors", file_of(json.dumps({"a": entry(), NORM: entry(offsets=[16, 24])}), bytes(24)), NORM,
    "leaves 8 bytes")
raw("a hole before the first", file_of(json.dumps({NORM: entry(offsets=[8, 16])}), bytes(16)), NORM, "leaves 8 bytes")
raw("a name that writes to the terminal", file_of(json.dumps({"\x1b[2Jx": entry(shape=[-1])}), bytes(8)), "\\x1b[2Jx")


# tensors of a sound file that are not the model's
def _as(dtype: str) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        import torch
        tensors[NORM] = tensors[NORM].to(getattr(torch, dtype))
    return change


respoilt("a header that swaps two names", lambda header: header.update(
    {NORM: header[EXPERT], EXPERT: header[NORM]}), NORM, "shape")
rebuilt("a missing tensor", lambda tensors: tensors.pop(EXPERT), f"{EXPERT}: missing")
rebuilt("a tensor too many", lambda tensors: tensors.update(more=tensors[NORM].clone()), "more: not part of this model")
rebuilt("an expert too many", lambda tensors: tensors.update(
    {EXPERT.replace(".0.", ".99."): tensors[EXPERT].clone()}), "experts.99", "not part")
rebuilt("a transposed tensor", lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.contiguous()}),
        EXPERT, "shape")
rebuilt("whole numbers of 8 bits", _as("int8"), NORM, "torch.int8")
rebuilt("truth values", _as("bool"), NORM, "torch.bool")
rebuilt("FP8 without scales", lambda tensors: tensors.update(
    {EXPERT: tensors[EXPERT].to(__import__("torch").float8_e4m3fn)}), EXPERT, "FP8 without")
rebuilt("FP8 of one dimension with scales", lambda tensors: (
    _as("float8_e4m3fn")(tensors), tensors.update({f"{NORM}_scale_inv": tensors[EXPERT][:1, :1].clone()})),
    NORM, "two dimensions")
rebuilt("FP8 of another format", _as("float8_e5m2"), NORM, "float8_e5m2")
rebuilt("scales for what is not FP8", lambda tensors: tensors.update(
    {f"{EXPERT}_scale_inv": tensors[NORM].clone()}), f"{EXPERT}_scale_inv", "scales")


def _fp8(change: Callable[[dict[str, Any], str], object]) -> Callable[[dict[str, Any]], object]:
    def make(tensors: dict[str, Any]) -> None:
        from fathom.model import quant
        tensors[EXPERT], tensors[f"{EXPERT}_scale_inv"] = quant.quantise(tensors[EXPERT])
        change(tensors, f"{EXPERT}_scale_inv")
    return make


rebuilt("scales of wrong shape", _fp8(lambda tensors, scale: tensors.update({scale: tensors[scale].repeat(2, 3)})),
        f"{EXPERT}_scale_inv: shape [2, 3]")
rebuilt("scales in whole numbers", _fp8(lambda tensors, scale: tensors.update({scale: tensors[scale].to(int)})),
        f"{EXPERT}_scale_inv", "I64")
rebuilt("FP8 that the config knows nothing of", _fp8(lambda tensors, scale: None), "quantization_config")


@case("a copy that is another", FILE, "model.layers.2.shared_head.head.weight differs")
def other_copy(path: Path) -> None:
    from safetensors.torch import load_file, save_file
    tensors = load_file(path / FILE)
    tensors["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, path / FILE)


# shards and their index
pointed("a shard by its absolute path", "/etc/passwd")
pointed("a shard above", "../model.safetensors")
pointed("a shard in a folder", "deep/model.safetensors")
pointed("a shard by backslashes", "..\\model.safetensors")
pointed("a shard on the network", "https://example.org/model.safetensors")
pointed("a shard with a zero byte", "model\0.safetensors")
pointed("a shard of no name", "")
pointed("a shard that is pickled", "pytorch_model.bin")
sharded("a missing shard", lambda listed, path: (path / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002.safetensors: no such file")
sharded("a shard that was never there", lambda listed, path: listed.update({NORM: "other.safetensors"}),
        "other.safetensors: no such file")
sharded("an index of a tensor that is absent", lambda listed, path: listed.update(
    {"absent": "model-00001-of-00002.safetensors"}), INDEX, "absent: not in model-00001")
sharded("an index without a tensor", lambda listed, path: listed.pop(NORM), NORM, "not in the index")
sharded("an index that swaps files", lambda listed, path: listed.update(
    {NORM: "model-00001-of-00002.safetensors"}), NORM, "but in model-00002")
sharded("a shard twice", lambda listed, path: (
    shutil.copy(path / "model-00001-of-00002.safetensors", path / "again.safetensors"),
    listed.update(new="again.safetensors")), "model-00001-of-00002.safetensors", "stands in", "too")
sharded("a shard that is a link elsewhere", lambda listed, path: (
    (path / "model-00002-of-00002.safetensors").unlink(),
    (path / "model-00002-of-00002.safetensors").symlink_to("/etc/passwd")), "model-00002-of-00002.safetensors")
sharded("a shard cut off", lambda listed, path: os.truncate(path / "model-00002-of-00002.safetensors", 3000),
        "model-00002-of-00002.safetensors", "the file has")
sharded("weights beside the index", lambda listed, path: shutil.copy(
    path / "model-00002-of-00002.safetensors", path / FILE), INDEX, "beside it")
for number, (content, named) in enumerate((
        ("[]", "list"), ('{"weight_map": []}', "weight_map"), ('{"weight_map": {"a": 5}}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "twice"), ("{", "is not JSON"))):
    def _index(path: Path, content: str = content) -> None:
        (path / FILE).unlink()
        (path / INDEX).write_text(content)
    case(f"index {number}", INDEX, named)(_index)


@case("an index of 100 MB", INDEX, "larger than")
def long_index(path: Path) -> None:
    (path / FILE).unlink()
    with (path / INDEX).open("wb") as file:
        file.truncate(100 * MEGABYTE)


@case("only pickles", "pytorch_model.bin", "pickled", "never")
def only_pickles(path: Path) -> None:
    (path / FILE).rename(path / "pytorch_model.bin")


@case("ranks of the demo with a gap", "model1-mp3.safetensors: no such file")
def ranks(path: Path) -> None:
    (path / FILE).rename(path / "model0-mp3.safetensors")


@case("ranks of the demo with other names", "model0-mp1.safetensors", "not a name of DeepSeek's")
def renamed(path: Path) -> None:
    (path / FILE).rename(path / "model0-mp1.safetensors")


@case("a rank of a million million", "no such file")
def far_ranks(path: Path) -> None:
    shutil.move(path / FILE, path / "model0-mp999999.safetensors")


# configs that ask for more than there is
configured("10^12 layers", "num_hidden_layers=1000000000000", num_hidden_layers=10**12)
configured("10^6 layers", "num_hidden_layers=1000000", num_hidden_layers=10**6)
configured("10^12 experts", "n_routed_experts=1000000000000", n_routed_experts=10**12)
configured("10^12 channels", "hidden_size=1000000000000", hidden_size=10**12)
configured("10^12 tokens", "vocab_size=1000000000000", vocab_size=10**12)
configured("10^12 heads", "num_attention_heads=1000000000000", num_attention_heads=10**12)
configured("10^12 shared experts", "n_shared_experts=1000000000000", n_shared_experts=10**12)
configured("a latent of 2^62", "kv_lora_rank", kv_lora_rank=1 << 62)
configured("a number of a thousand digits", "intermediate_size", intermediate_size=10**1000)
configured("minus one layer", "num_hidden_layers", num_hidden_layers=-1)
configured("a layer and a half", "num_hidden_layers", num_hidden_layers=1.5)
configured("text for a width", "hidden_size", hidden_size="thirty")
configured("another activation", "hidden_act='gelu'", hidden_act="gelu")
configured("4-bit weights", "quant_method='gptq'", quantization_config={"quant_method": "gptq", "bits": 4})
configured("blocks of another size", "weight_block_size=[64, 64]", quantization_config={
    "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]})
configured("unknown stretching", "dynamic", rope_scaling={"type": "dynamic", "factor": 2.0})
configured("stretching that is text", "rope_scaling='yarn'", rope_scaling="yarn")
configured("stretching with more", "surprise", rope_scaling={
    "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "surprise": 1})
configured("a base of one", "rope_theta=1.0", rope_theta=1.0, rope_scaling={"type": "yarn", "factor": 8.0})
configured("a length of 10^30", "original_max_position_embeddings=1000000", rope_scaling={
    "type": "llama3", "factor": 8.0, "original_max_position_embeddings": 10**30})
configured("a scale of 10^300", "mscale_all_dim=1e+300", rope_scaling={
    "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "mscale_all_dim": 1e300})
configured("a scale below nothing", "mscale_all_dim=-20", rope_scaling={
    "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": -20})
configured("a factor of 10^300", "routed_scaling_factor=1e+300", routed_scaling_factor=1e300)
configured("null for a number of groups", "n_group=null", n_group=None)
configured("a model type that is a list", "model_type=['llama']", model_type=["llama"])
for number, (content, named) in enumerate((
        (b"", "is not JSON"), (b"[]", "list"), (b"\xff\xfe", "UTF-8"), (b'{"a": 1, "a": 2}', "twice"),
        (b'{"rms_norm_eps": NaN}', "NaN"), (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "is not JSON"),
        (b'{"model_type": "llama", "hidden_size": ' + b"1" * 10_000 + b"}", "is not JSON"))):
    def _config(path: Path, content: bytes = content) -> None:
        _write(path / CONFIG, content)
    case(f"config {number}", CONFIG, named)(_config)


@case("a config of 300 MB", CONFIG, "larger than")
def long_config(path: Path) -> None:
    with (path / CONFIG).open("wb") as file:
        file.truncate(300 * MEGABYTE)


@case("a config that is a device", CONFIG, "regular file")
def device_config(path: Path) -> None:
    (path / CONFIG).unlink()
    (path / CONFIG).symlink_to("/dev/zero")


@case("a tokenizer of 1 GB", "tokenizer.json", "bytes")
def long_tokenizer(path: Path) -> None:
    with (path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 30)


@case("a tokenizer that knows more than the model", "320 tokens, the model has rows for 300")
def large_tokenizer(path: Path) -> None:
    from safetensors.torch import load_file, save_file
    given = json.loads((path / CONFIG).read_text()) | {"vocab_size": 300}
    _write(path / CONFIG, json.dumps(given))
    tensors = load_file(path / FILE)
    save_file({key: t[:300].clone() if len(t) == 320 else t for key, t in tensors.items()}, path / FILE)


def sound(path: Path) -> None:
    """A small model directory without seal, as from a download; its copies are left out."""
    from made_models import sharp, tokenizer
    from safetensors.torch import load_file, save_file

    from fathom.model import weights
    from fathom.model.config import ModelConfig

    config = ModelConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, kv_lora_rank=12, qk_nope_head_dim=8,
        qk_rope_head_dim=4, v_head_dim=6, intermediate_size=24, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, moe_intermediate_size=8, num_nextn_predict_layers=1, max_position_embeddings=64)
    import torch
    weights.save(path, sharp(config, dtype=torch.float32), tokenizer())
    for name in ("COMPLETE", "checksums.json"):
        (path / name).unlink()
    tensors = load_file(path / FILE)
    save_file({k: t for k, t in tensors.items() if "embed_tokens" not in k or "layers" not in k}, path / FILE)


def answers(root: Path) -> Iterator[dict[str, Any]]:
    """Runs every case in this process: its message, seconds and growth in bytes."""
    sys.path.insert(0, str(HERE))
    from fathom.core.errors import FathomError
    from fathom.model import weights

    sound(root / "sound")
    for name in CASES:
        path = root / name.replace("/", " ")
        shutil.copytree(root / "sound", path)
        CASES[name][0](path)
    weights.load(root / "sound")  # what is imported and cached once is not a case's
    for name in CASES:
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            weights.load(root / name.replace("/", " "))
            said = "nothing"
        except FathomError as error:
            said = f"refused: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        yield {"name": name, "said": said, "seconds": time.monotonic() - began, "grown": grown}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("hostile")
    done = subprocess.run([sys.executable, __file__, str(root)], capture_output=True, text=True, timeout=300,
                          cwd=HERE.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.rmtree(root)
    return {answer["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}


@pytest.mark.property
@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name_and_costs_nothing(name: str, found: dict[str, dict[str, Any]]) -> None:
    answer = found[name]
    said = answer["said"]
    assert said.startswith("refused: "), said
    for word in CASES[name][1]:
        assert word in said, said
    assert said.isprintable()
    assert len(said) < 1000
    assert answer["seconds"] < SECONDS
    assert answer["grown"] < GROWTH


def test_there_are_enough() -> None:
    assert len(CASES) >= 60


if __name__ == "__main__":
    for line in answers(Path(sys.argv[1])):
        print(json.dumps(line), flush=True)
