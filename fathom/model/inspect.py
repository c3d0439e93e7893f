"""`fathom inspect`: what a model is and costs, from a preset's name, a model directory or a GGUF file.

`facts` has everything as JSON-able values under stable keys (docs/inspect.md); `show` prints them. Neither loads torch
for a preset; of files only headers, config and tokenizer are read, never a tensor.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.core import disk
from fathom.core.chat import Message
from fathom.core.console import trained_pieces, trained_text, visible
from fathom.core.errors import FathomError, UsageError
from fathom.model.config import ModelConfig
from fathom.model.cost import RECIPES, Cost, cost, layer_kinds
from fathom.model.presets import PRESETS, PUBLISHED
from fathom.model.pretrained import PACKAGED, is_model, locate

if TYPE_CHECKING:
    from rich.console import Console

    from fathom.model.tokenizer import Tokenizer

CONTEXT = 4096  # tokens that memory and arithmetic are given for, where nothing else is asked and the model has as many
UNUSED = {  # fields of the other kind of attention
    "mla": {"num_key_value_heads", "head_dim", "qkv_bias", "qk_norm"},
    "gqa": {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"},
}
EXAMPLE = (Message("user", "What is 2 + 3?"), Message("assistant", "2 + 3 = 5"), Message("user", "And 4 + 4?"),
           Message("assistant", "4 + 4 = 8"))


def facts(what: str, context: int | None = None, batch: int = 1) -> dict[str, Any]:
    """What `what` is: a model directory, a .gguf file, a packaged model or a preset; an existing path comes first.

    Memory and arithmetic are for `batch` sequences of `context` tokens. Raises UsageError, naming the nearest preset,
    where nothing is called so, and FathomError for files that cannot be read.
    """
    path, known = Path(what), PUBLISHED.get(what)
    files = tokens = example = None
    if is_model(path):
        source, known, place = "files", None, locate(path)
        config, files, tokenizer = _gguf(place) if place.suffix == ".gguf" else _directory(place)
        if isinstance(tokenizer, str):
            tokens = {"error": tokenizer}
        else:
            tokens, example = _tokens(tokenizer, place), template(tokenizer)
    elif what in PRESETS:
        source, config = "preset", PRESETS[what]
    else:
        raise _unknown(what)
    length = min(CONTEXT, config.max_position_embeddings) if context is None else context
    bill, (dense, experts) = cost(config), layer_kinds(config)
    return {
        "name": what, "source": source, "family": config.family, "note": known.note if known else "",
        "config": config.model_dump(mode="json", exclude=UNUSED[config.attention]),
        "layers": {"total": config.num_hidden_layers, "dense": dense, "experts": experts,
                   "multi_token_prediction": config.num_nextn_predict_layers},
        "parameters": {
            "total": bill.parameters, "active": bill.active, "active_with_embedding": bill.active_with_embedding,
            "parts": bill.parts, "selection_biases": bill.selection_biases,
            "multi_token_prediction": {"own": bill.mtp, "active": bill.mtp_active, "with_copies": bill.mtp_with_copies},
        },
        "cache": {
            "elements_per_token": bill.cache_elements, "elements_per_token_and_layer": bill.cache_per_layer,
            "bytes_per_token": {"bf16": bill.cache_bytes(), "fp8": _fp8_cache(bill)},
        },
        "memory": _memory(bill, length, batch),
        "flops_per_token": {"context": length, "forward": bill.forward_flops(length),
                            "training": bill.training_flops(length), "decode": bill.decode_flops(length)},
        "rope": _rope(config), "routing": _routing(config),
        "context": {"max_position_embeddings": config.max_position_embeddings,
                    "claimed": known.context if known else None},
        "template_family": known.template if known else tokens and tokens.pop("family", None),
        "files": files, "tokenizer": tokens, "example": example,
    }


def presets() -> list[dict[str, Any]]:
    """One entry per shape: its name, the names of further releases of it, family, counts, context and note."""
    entries: list[dict[str, Any]] = []
    for _, group in itertools.groupby(PRESETS.items(), key=lambda item: id(item[1])):
        names, configs = zip(*group, strict=True)
        config, known = configs[0], PUBLISHED.get(names[0])
        bill = cost(config)
        entries.append({
            "name": names[0], "also": list(names[1:]), "family": config.family, "parameters": bill.parameters,
            "active": bill.active, "cache_bytes_per_token": bill.cache_bytes(),
            "context": known.context if known else config.max_position_embeddings, "note": known.note if known else "",
        })
    return entries


def frequencies(config: ModelConfig) -> list[float]:
    """Radians per position of each pair of rotary channels, highest first (YaRN: Peng et al. 2023 §3.2)."""
    channels, scaling = config.rotary_channels, config.rope_scaling
    plain = [config.rope_theta ** (-pair / channels) for pair in range(0, channels, 2)]
    if scaling is None:
        return plain
    original, factor = scaling.original_max_position_embeddings, scaling.factor
    if scaling.type == "llama3":
        slow, fast = scaling.low_freq_factor, scaling.high_freq_factor
        stays = [(original * f / (2 * math.pi) - slow) / (fast - slow) for f in plain]
    else:
        def pair_with(turns: float) -> float:
            return channels * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

        first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, channels - 1)
        stays = [1 - (i - first) / (last - first if last != first else 0.001) for i in range(len(plain))]
    part = [min(max(s, 0.0), 1.0) for s in stays]
    return [f * s + f / factor * (1 - s) for f, s in zip(plain, part, strict=True)]


def _unknown(what: str) -> UsageError:
    path = Path(what)
    if path.is_dir():
        inner = path / "model"
        hint = f"did you mean {inner}?" if is_model(inner) else "name a model directory, like DIR/model of a stage"
        return UsageError(f"{what}: no config.json in this directory; {hint}")
    if path.is_file():
        return UsageError(f"{what}: neither a model directory nor a .gguf file; name one of these, or a preset")
    near = get_close_matches(what.lower(), [*PRESETS, *PACKAGED], 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`fathom inspect` alone lists the presets"
    return UsageError(f"{what:.200}: no such directory, .gguf file or preset; {hint}")


def _fp8_cache(bill: Cost) -> int | None:
    return bill.cache_bytes("fp8") if bill.config.attention == "mla" else None


def _memory(bill: Cost, context: int, batch: int) -> dict[str, Any]:
    cached = {"bf16": bill.cache_bytes() * context * batch}
    fp8 = _fp8_cache(bill)
    if fp8 is not None:
        cached["fp8"] = fp8 * context * batch
    return {
        "context": context, "batch": batch, "train": {name: bill.training_bytes(name) for name in RECIPES},
        "serve": {
            "bf16": {"weights": bill.weight_bytes(), "cache": cached["bf16"],
                     "total": bill.weight_bytes() + cached["bf16"]},
            "fp8": {"weights": bill.weight_bytes("fp8"), "cache": cached.get("fp8", cached["bf16"]),
                    "total": bill.weight_bytes("fp8") + cached.get("fp8", cached["bf16"])},
        },
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    scaling, each = config.rope_scaling, frequencies(config)
    return {
        "type": scaling.type if scaling else "plain", "theta": config.rope_theta,
        "pairs": "neighbours" if config.rope_interleave else "halves", "channels": config.rotary_channels,
        "factor": scaling.factor if scaling else 1.0,
        "original_max_position_embeddings": scaling.original_max_position_embeddings if scaling else None,
        "softmax_scale": config.softmax_scale, "cos_sin_factor": scaling.rotary_factor if scaling else 1.0,
        "highest_frequency": each[0], "lowest_frequency": each[-1], "longest_turn": 2 * math.pi / each[-1],
    }


def _routing(config: ModelConfig) -> dict[str, Any] | None:
    if not config.n_routed_experts:
        return None
    return {
        "scores": config.scoring_func, "choice": config.topk_method, "experts": config.n_routed_experts,
        "per_token": config.num_experts_per_tok, "shared": config.n_shared_experts, "groups": config.n_group,
        "groups_per_token": config.topk_group, "renormalised": config.norm_topk_prob,
        "scaling": config.routed_scaling_factor, "selection_bias": config.selection_bias,
    }


def _directory(place: Path) -> tuple[ModelConfig, dict[str, Any], Tokenizer | str]:
    """The config of a model directory, what its files hold, and its tokenizer or why there is none."""
    from fathom.model import weights
    from fathom.model.tokenizer import Tokenizer

    config = weights.read_config(place)
    try:
        tokenizer: Tokenizer | str = Tokenizer.load(place)
    except FathomError as error:  # what is wrong with a model is what inspecting it is for
        tokenizer = str(error)
    return config, _stored(place, config), tokenizer


def _gguf(path: Path) -> tuple[ModelConfig, dict[str, Any], Tokenizer | str]:
    """The same of a GGUF file, which is converted once, as whatever uses it does; tensors and bytes are its own."""
    from fathom.model import weights

    config, stored, tokenizer = _directory(weights.resolve(path))
    from gguf import GGUFReader  # of the extra `gguf`: the conversion has said so where it is missing

    kinds = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    return config, {**stored, "bytes": path.stat().st_size, "tensors": dict(kinds.most_common())}, tokenizer


def _stored(place: Path, config: ModelConfig) -> dict[str, Any]:
    """Counts of the checkpoint's tensors by type, its files and bytes, and what loading it would refuse."""
    from fathom.model.weights import Stored
    from fathom.model.weights.directory import own
    from fathom.model.weights.streamed import blank

    found: dict[str, Any] = {"shards": 0, "bytes": 0, "tensors": {}, "fp8": False, "problem": None}
    try:
        stored = Stored(place)
        parts = {part.file for source in stored.sources.values() for part in source.parts}
        found |= {"shards": len(parts), "bytes": sum(file.stat().st_size for file in parts), "fp8": stored.fp8,
                  "tensors": dict(Counter(source.dtype for source in stored.sources.values()).most_common())}
        stored.bounded(config)
        stored.check(config, {name: tensor.shape for name, tensor in own(blank(config)).items()})
    except FathomError as error:
        found["problem"] = str(error)
    return found


def _tokens(tokenizer: Tokenizer, place: Path) -> dict[str, Any]:
    from fathom.model.template import FAMILIES, family

    try:
        ids = sorted(tokenizer.stop_ids)
    except FathomError:  # of a template that fails: the example says why
        ids = [tokenizer.eos_id]
    stops = [{"id": number, "text": tokenizer.backend.id_to_token(number)} for number in ids]
    if (place / "chat_template.jinja").is_file():
        template = "chat_template.jinja"
    else:
        inside = place.suffix == ".gguf" or disk.read_json(place / "tokenizer_config.json").get("chat_template")
        template = (place.name if place.suffix == ".gguf" else "tokenizer_config.json") if inside else "default"
    return {"error": None, "size": tokenizer.vocab_size, "bos": tokenizer.bos, "bos_id": tokenizer.bos_id,
            "eos": tokenizer.eos, "eos_id": tokenizer.eos_id, "stops": stops, "template": template,
            "family": next((name for name in FAMILIES if family(name) == tokenizer.template), None)}


def template(tokenizer: Tokenizer) -> dict[str, Any]:
    """The chat template on a short example, in pieces that are trained or not, or the error that it raised."""
    try:
        encoded = tokenizer.chat(EXAMPLE)
    except FathomError as error:
        return {"error": str(error), "pieces": [], "tokens": 0, "trained": 0}

    def decode(run: list[int]) -> str:
        return tokenizer.backend.decode(run, skip_special_tokens=False)

    pieces = trained_pieces(decode, encoded.tokens, encoded.trained)
    return {"error": None, "pieces": [{"text": text, "trained": mask} for text, mask in pieces],
            "tokens": len(encoded.tokens), "trained": sum(encoded.trained)}


def show(what: str | None, context: int | None, batch: int, as_json: bool, console: Console | None = None) -> None:
    """Prints what `what` is as tables, or as JSON; of None, the presets."""
    import sys

    from rich.console import Console as Terminal

    values: Any = presets() if what is None else facts(what, context, batch)
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    # a pipe has no width: nothing is folded there
    out = console or (Terminal() if sys.stdout.isatty() else Terminal(width=160))
    if what is None:
        _list(values, out)
    else:
        _describe(values, out)


def _list(entries: Iterable[Mapping[str, Any]], out: Console) -> None:
    from rich.table import Table as Rows

    table = Rows(box=None, pad_edge=False, header_style="bold")
    for head in ("preset", "family", "parameters", "active", "cache/token", "context"):
        table.add_column(head, justify="left" if head in ("preset", "family") else "right", no_wrap=head != "preset")
    for e in entries:
        names = e["name"] + (f" [dim]{' '.join(e['also'])}[/dim]" if e["also"] else "")
        table.add_row(names, e["family"], f"{e['parameters']:,}", f"{e['active']:,}",
                      f"{e['cache_bytes_per_token']:,} B", f"{e['context']:,}")
    out.print(table)


def _describe(f: Mapping[str, Any], out: Console) -> None:
    from rich.table import Table as Rows
    from rich.text import Text

    out.print(Text(f["name"], style="bold") + Text(f"  {f['family']}, {f['source']}", style="dim"), highlight=False)
    if f["note"]:
        out.print(Text(f["note"], style="yellow"))
    for title, rows in _sections(f):
        table = Rows(box=None, show_header=False, pad_edge=False, title=title, title_justify="left", title_style="cyan")
        table.add_column(min_width=26, no_wrap=True)
        table.add_column()
        for name, value in rows:
            table.add_row(f"  {name}", Text(visible(value)))
        out.print(table)
    _show_example(f, out)


def _sections(f: Mapping[str, Any]) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """Title and rows (name, text) of every table."""
    c, layers, counts, rope = f["config"], f["layers"], f["parameters"], f["rope"]
    heads = f"{c['num_attention_heads']} heads"
    if c["attention"] == "mla":
        heads += (f", latent {c['kv_lora_rank']}, query latent {c['q_lora_rank'] or 'none'}, key "
                  f"{c['qk_nope_head_dim']} + {c['qk_rope_head_dim']} rotary, value {c['v_head_dim']}")
    else:
        extra = "".join(text for text, there in ((", biases", c["qkv_bias"]), (", query and key norms", c["qk_norm"]))
                        if there)
        heads += f", {c['num_key_value_heads']} of keys and values, width {c['head_dim']}{extra}"
    kinds = ", ".join(f"{layers[kind]} {name}" for kind, name in (("dense", "dense"), ("experts", "with experts"))
                      if layers[kind])
    further = layers["multi_token_prediction"]
    claimed = f["context"]["claimed"]
    yield "shape", [
        ("layers", f"{layers['total']} ({kinds})" + (f" and {further} for multi-token prediction" if further else "")),
        ("width", f"{c['hidden_size']:,}, feed-forward {c['intermediate_size']:,}"
         + (f", experts {c['moe_intermediate_size']:,}" if layers["experts"] else "")),
        ("attention", ("latent, " if c["attention"] == "mla" else "grouped-query, ") + heads),
        ("vocabulary", f"{c['vocab_size']:,} rows{', shared with the head' if c['tie_word_embeddings'] else ''}"),
        ("context", f"{c['max_position_embeddings']:,} positions" + (f", {claimed:,} claimed" if claimed else "")),
    ]
    mtp = counts["multi_token_prediction"]
    yield "parameters", [
        ("total", _count(counts["total"])),
        ("active per token", f"{_count(counts['active'])}; with the embedding {counts['active_with_embedding']:,}"),
        *((part.replace("_", " "), f"{number:,}") for part, number in counts["parts"].items()),
    ]
    if mtp["own"]:
        yield "multi-token prediction, besides", [
            ("its own", f"{mtp['own']:,}, of which a token visits {mtp['active']:,}"),
            ("with copies", f"{mtp['with_copies']:,}, embedding and head being copied in released files"),
        ]
    if f["routing"]:
        r = f["routing"]
        groups = f", from {r['groups_per_token']} of {r['groups']} groups" if r["groups"] > 1 else ""
        yield "routing", [
            ("experts", f"{r['per_token']} of {r['experts']}{groups}, {r['shared']} shared"),
            ("weights", f"{r['scores']}, {r['choice']}{', with a selection bias' if r['selection_bias'] else ''}, "
             f"{'divided by their sum' if r['renormalised'] else 'as they are'}, × {r['scaling']:g}"),
        ]
    stretched = "" if rope["type"] == "plain" else (
        f", {rope['type']} × {rope['factor']:g} from {rope['original_max_position_embeddings']:,} positions")
    yield "rotary positions", [
        ("base", f"{rope['theta']:,g}{stretched}; {rope['channels']} channels, pairs are {rope['pairs']}"),
        ("radians per position", f"{rope['highest_frequency']:.7g} to {rope['lowest_frequency']:.7g} (one turn in "
         f"{rope['longest_turn']:,.0f} positions)"),
        ("softmax scale", f"{rope['softmax_scale']:.7f}; cos and sin × {rope['cos_sin_factor']:.7g}"),
    ]
    memory, cache, flops = f["memory"], f["cache"], f["flops_per_token"]
    fp8 = cache["bytes_per_token"]["fp8"]
    of = f"{memory['batch']} × {memory['context']:,} tokens"
    yield "cache per token", [
        ("elements", f"{cache['elements_per_token']:,} ({cache['elements_per_token_and_layer']:,} per layer)"),
        ("bytes", f"{cache['bytes_per_token']['bf16']:,} in BF16" + (f", {fp8:,} in FP8" if fp8 else "")),
    ]
    yield "memory, without activations", [
        *((f"to train, {name}", f"{_bytes(size)}: {RECIPES[name].about}") for name, size in memory["train"].items()),
        *((f"to serve, {kind}", f"{_bytes(size['total'])}: weights {_bytes(size['weights'])}, cache of {of} "
           f"{_bytes(size['cache'])}") for kind, size in memory["serve"].items()),
    ]
    yield f"arithmetic per token at {flops['context']:,} tokens", [
        ("forward", f"{_scaled(flops['forward'])}FLOP, averaged over the sequence"),
        ("forward and backward", f"{_scaled(flops['training'])}FLOP"),
        ("decoding the last", f"{_scaled(flops['decode'])}FLOP" + (", latent attention absorbed" if fp8 else "")),
    ]
    yield from _of_disk(f)


def _of_disk(f: Mapping[str, Any]) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    files, tokens = f["files"], f["tokenizer"]
    if files:
        stored = ", ".join(f"{number:,} {kind}" for kind, number in files["tensors"].items()) or "none"
        yield "files", [
            ("weights", f"{files['shards']} file{'s' * (files['shards'] != 1)}, {_bytes(files['bytes'])}"
             f"{', in FP8 blocks' if files['fp8'] else ''}"),
            ("tensors", stored),
            ("beside the config", files["problem"] or "none missing, none too many, all of the shapes it asks for"),
        ]
    if tokens and tokens["error"]:
        yield "tokenizer", [("none read", tokens["error"])]
    elif tokens:
        stops = ", ".join(f"{stop['text']} ({stop['id']})" for stop in tokens["stops"])
        family = f", that of {f['template_family']}" if f["template_family"] else ""
        yield "tokenizer", [
            ("tokens", f"{tokens['size']:,}"),
            ("begins with", f"{tokens['bos']} ({tokens['bos_id']})" if tokens["bos"] else "nothing"),
            ("stops with", stops), ("chat template", tokens["template"] + family),
        ]


def _show_example(f: Mapping[str, Any], out: Console) -> None:
    from rich.text import Text

    example = f["example"]
    if f["source"] == "preset":
        family = f"; its chats have the form {f['template_family']}" if f["template_family"] else ""
        out.print(Text(f"a preset has no tokenizer{family}", style="dim"), highlight=False)
    elif example and example["error"]:
        out.print(Text(visible(example["error"]), style="red"), highlight=False)
    elif example:
        out.print(Text("the chat template on an example", style="cyan italic"))
        marked = bool(out.no_color or not out.is_terminal)
        out.print(trained_text(((visible(p["text"]), p["trained"]) for p in example["pieces"]), marked), soft_wrap=True)
        seen = "between ⟦ and ⟧" if marked else "green"
        out.print(Text(f"{example['trained']} of {example['tokens']} tokens trained ({seen})", style="dim italic"),
                  highlight=False)


def _count(number: int) -> str:
    return f"{number:,}" + (f" ({_scaled(number).replace('G', 'B').strip()})" if number >= 1e6 else "")


def _scaled(number: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:g} "


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.4g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
