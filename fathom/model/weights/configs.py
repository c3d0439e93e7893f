"""config.json in and out: Hugging Face's files of every family, and the settings of DeepSeek's inference demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fathom.core.config import build
from fathom.core.errors import FathomError
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.quant import BLOCK
from fathom.model.tokenizer import Tokenizer
from fathom.model.weights.header import read_object, shown, valued

# What a file of each family means where it does not say, as its own configuration class has it; None: see `_fields`.
_DENSE = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": None,
          "head_dim": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
_QWEN = {**_DENSE, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
         "max_position_embeddings": 32768}
_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
           "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_DENSE, "vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "deepseek": {**_DENSE, "vocab_size": 102400, "intermediate_size": 11008, "max_position_embeddings": 2048,
                 "num_hidden_layers": 30, "moe_intermediate_size": 1407, "n_routed_experts": 0, "n_shared_experts": 0,
                 "num_experts_per_tok": 2, "first_k_dense_replace": 0, "norm_topk_prob": False},
    "deepseek_v2": {**_LATENT, "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008,
                    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
                    "moe_intermediate_size": 1407, "n_routed_experts": 64, "n_shared_experts": 2,
                    "num_experts_per_tok": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0, "n_group": 1,
                    "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False},
    "deepseek_v3": {**_LATENT, "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
                    "num_hidden_layers": 61, "num_attention_heads": 128, "max_position_embeddings": 4096,
                    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
                    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "n_group": 8,
                    "topk_group": 4, "norm_topk_prob": True, "rope_interleave": True},
}
# What null means in each family, as in transformers; null in any other of its fields is refused.
_HEADS = {"num_key_value_heads": None, "head_dim": None}  # derived, see `_fields`
NULLS: dict[str, dict[str, Any]] = {
    "llama": _HEADS, "qwen2": _HEADS, "qwen3": {"num_key_value_heads": None},
    "deepseek": {**_HEADS, "n_routed_experts": 0, "n_shared_experts": 0, "norm_topk_prob": False},
    "deepseek_v2": {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    "deepseek_v3": {"q_lora_rank": None, "norm_topk_prob": False, "rope_interleave": False},
}
# What a file of each family may say beside the model's own fields, first what it means where it says nothing.
_ALL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",), "use_sliding_window": (False,),
    "moe_layer_freq": (1,), "partial_rotary_factor": (1.0,), "is_causal": (True,),
}
MAY: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _ALL, "qwen2": _ALL, "qwen3": _ALL,
    "deepseek": {**_ALL, "scoring_func": ("softmax",), "topk_method": ("greedy",), "num_nextn_predict_layers": (0,)},
    "deepseek_v2": {**_ALL, "scoring_func": ("softmax",), "topk_method": ("greedy", "group_limited_greedy"),
                    "norm_topk_prob": (False,), "num_nextn_predict_layers": (0,)},
    "deepseek_v3": {**_ALL, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "deepseek": "DeepseekForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
}
_MLA = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EXPERTS = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
            "first_k_dense_replace", "routed_scaling_factor", "scoring_func", "topk_method", "n_group", "topk_group",
            "norm_topk_prob")
_ROPE = {"yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                  "attention_factor", "truncate"),
         "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}


@dataclass(frozen=True)
class Fp8:
    """How FP8 blocks were scaled: by any FP32 number, or by powers of two (`ue8m0`)."""

    ue8m0: bool = False

    def written(self) -> dict[str, Any]:
        """`quantization_config` of a config.json."""
        return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK], **({"scale_fmt": "ue8m0"} if self.ue8m0 else {})}


@dataclass(frozen=True)
class Described:
    """What the config.json of a directory says: the model, FP8 blocks or None, the demo's form or not, a type."""

    config: ModelConfig
    fp8: Fp8 | None
    demo: bool = False
    dtype: torch.dtype | None = None  # what the config says of the weights


def read(directory: Path) -> Described:
    """What a directory's config.json says; what this version cannot compute is refused by name."""
    path = directory / "config.json"
    raw = read_object(path)
    if "model_type" not in raw and "n_layers" in raw and "dim" in raw:
        return _read_demo(path, raw)
    kind = raw.get("model_type")
    if kind == "deepseek" and raw.get("kv_lora_rank"):
        kind = "deepseek_v2"  # the first upload of DeepSeek-V2 called itself so
    if not isinstance(kind, str) or (kind != "fathom" and kind not in DEFAULTS):
        raise FathomError(f"{path}: model_type={valued(kind)}; this version loads {', '.join(DEFAULTS)} and fathom: "
                          "choose such a model")
    for name, values in MAY.get(kind, {}).items():
        given = raw.get(name)
        if given is not None and not (type(given) in map(type, values) and given in values) and given != values[0]:
            raise FathomError(f"{path}: {name}={valued(given)}; this version computes "
                              f"{' and '.join(f'{name}={value!r}' for value in values)} of {kind} only: choose a model "
                              "with that value")
    layers = raw.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise FathomError(f"{path}: layer_types={valued(layers)}; this version computes full_attention only: choose a "
                          "model with that value")
    for name in DEFAULTS.get(kind, {}):
        if name in raw and raw[name] is None and name not in NULLS[kind]:
            raise FathomError(f"{path}: {name}=null: {kind} takes no null there; write its value, or leave it out for "
                              f"{valued(DEFAULTS[kind][name])}")
    fields = _fields(kind, raw)
    fields |= _rotary(path, raw, fields.get("max_position_embeddings"))
    return Described(build(ModelConfig, fields, str(path)), _fp8(path, raw.get("quantization_config")),
                     dtype=_dtype(raw))


def _dtype(raw: Mapping[str, Any]) -> torch.dtype | None:
    """The type that a config states, under its new name or its old one; None where it is none that weights have."""
    stated = raw.get("dtype") or raw.get("torch_dtype")
    known = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
    return known.get(stated.removeprefix("torch.")) if isinstance(stated, str) else None


def _fields(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig, the family's own values where the file says nothing."""
    own = {name: raw[name] for name in ModelConfig.model_fields
           if raw.get(name) is not None and name not in ("rope_theta", "rope_scaling")}
    if kind == "fathom":
        return {"attention": "gqa", **own, "q_lora_rank": raw.get("q_lora_rank")}
    nulls = {name: value for name, value in NULLS[kind].items() if name in raw and raw[name] is None}
    fields = {**DEFAULTS[kind], **nulls, **own}
    fields["attention"] = "mla" if kind in ("deepseek_v2", "deepseek_v3") else "gqa"
    if fields["attention"] == "gqa":
        heads = fields["num_attention_heads"]
        if fields["num_key_value_heads"] is None:
            fields["num_key_value_heads"] = heads
        if fields["head_dim"] is None and all(type(n) is int and n > 0 for n in (heads, fields["hidden_size"])):
            fields["head_dim"] = fields["hidden_size"] // heads
        fields = {name: value for name, value in fields.items() if name not in _MLA}
        fields["rope_interleave"] = False
    else:  # these families give every head its own key, and the widths have names of their own
        fields = {name: value for name, value in fields.items() if name not in ("num_key_value_heads", "head_dim")}
    fields |= {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}, "deepseek_v2": {"rope_interleave": True}}.get(
        kind, {})
    if kind in ("deepseek", "deepseek_v2"):
        fields["scoring_func"] = "softmax"
        fields.setdefault("topk_method", "greedy")
        if fields["topk_method"] == "greedy":  # knows no groups, whatever the file says of them
            fields["n_group"] = fields["topk_group"] = 1
    if kind in ("llama", "qwen2", "qwen3"):
        fields = {name: value for name, value in fields.items() if name not in _EXPERTS}
        fields |= {"n_routed_experts": 0, "num_nextn_predict_layers": 0}
    return fields


def _rotary(path: Path, raw: Mapping[str, Any], longest: Any) -> dict[str, Any]:
    """rope_theta and rope_scaling, from either spelling: beside each other, or together as rope_parameters.

    As in transformers, the length of pre-training is the file's own original_max_position_embeddings, else the one
    among the rotary settings, else the `longest` sequence.
    """
    outer = "original_max_position_embeddings"
    found = []
    for name in ("rope_scaling", "rope_parameters"):
        given = raw.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise FathomError(f"{path}: {name}={valued(given)}: must be an object or null; correct it")
        rest = dict(given)
        kinds = {rest.pop(key) for key in ("rope_type", "type") if isinstance(rest.get(key), str)} or {"default"}
        theta = rest.pop("rope_theta", raw.get("rope_theta"))
        if kinds - {"default", *_ROPE} or len(kinds) > 1:
            raise FathomError(f"{path}: {name}: type={valued(' '.join(sorted(kinds)))}; this version computes "
                              f"{', '.join(_ROPE)} and default: choose a model with one of them")
        if rest.pop("partial_rotary_factor", 1.0) != 1.0:
            raise FathomError(f"{path}: partial_rotary_factor={valued(given['partial_rotary_factor'])}; this version "
                              "turns all rotary channels: choose a model with 1.0")
        kind = kinds.pop()
        scaling = None
        if kind != "default":
            if rest.get("factor") is None:
                raise FathomError(f"{path}: {name}={valued(given)}: no factor; write how many times longer sequences "
                                  "may be")
            if outer in raw and raw[outer] is None:
                raise FathomError(f"{path}: {outer}=null beside {name}; write the length of pre-training, or remove it")
            given = {outer: longest, **rest, **({outer: raw[outer]} if outer in raw else {})}
            # nested, so that a message names the field as the file has it
            scaling = {"type": kind, **{key: value for key, value in given.items() if value is not None}}
        found.append((theta, scaling))
    if len(found) == 2 and found[0] != found[1]:
        raise FathomError(f"{path}: rope_scaling and rope_parameters say different things; remove one of them")
    theta, scaling = found[0] if found else (raw.get("rope_theta"), None)
    return {"rope_theta": 10000.0 if theta is None else theta, "rope_scaling": scaling}


def _fp8(path: Path, given: Any) -> Fp8 | None:
    """The form of FP8 blocks; other kinds of quantisation are refused by name."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise FathomError(f"{path}: quantization_config={valued(given)}: must be an object or null; correct it")
    # modules_to_not_convert needs no look: which tensors are FP8 is seen from the tensors
    must = {"quant_method": ("fp8",), "fmt": ("e4m3", None), "weight_block_size": ([BLOCK, BLOCK],),
            "activation_scheme": ("dynamic", None), "scale_fmt": ("ue8m0", "float", None)}
    for name, values in must.items():
        if given.get(name) not in values:
            raise FathomError(f"{path}: quantization_config={valued(given)}: {name}={valued(given.get(name))}; FP8 "
                              f"blocks with {name}={values[0]!r} are read: take the model unquantised, or in that form")
    return Fp8(given.get("scale_fmt") == "ue8m0")


def _family(config: ModelConfig) -> str:
    """The model_type to write: the config's family, where its files can say all of it."""
    family = config.family
    if family == "deepseek" and (config.routed_scaling_factor != 1
                                 or config.head_dim * config.num_attention_heads != config.hidden_size):
        return "fathom"
    return family


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """BOS and what ends a completion, as config.json and generation_config.json have them: one id, or a list."""
    stops = sorted(tokenizer.stop_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops if len(stops) > 1 else tokenizer.eos_id}


def hugging_face_config(config: ModelConfig, tokenizer: Tokenizer | None, dtype: torch.dtype,
                        fp8: Fp8 | None = None) -> dict[str, Any]:
    """`config.json` for transformers: the config's own fields and those that it derives.

    A shape that no published family has is written as model_type "fathom", which is ours alone. The rotary frequencies
    are spelt as transformers before 5 did, which it and older engines read.
    """
    fields = config.model_dump()
    family = _family(config)
    scaling = config.rope_scaling
    written: dict[str, Any] = {
        "model_type": family, "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0,
        "torch_dtype": str(dtype).removeprefix("torch."), "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(scaling) if scaling else None,
        **{name: fields[name] for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "initializer_range")},
    }
    if tokenizer is not None:
        written |= token_ids(tokenizer)
    if fp8 is not None:
        written["quantization_config"] = fp8.written()
    if family == "fathom":
        return {**fields, **written}
    written["architectures"] = [_ARCHITECTURES[family]]
    if config.attention == "mla":
        written |= {name: fields[name] for name in (*_MLA, *_EXPERTS)}
        written |= {"num_key_value_heads": config.num_attention_heads, "moe_layer_freq": 1}
        if not config.n_routed_experts:
            written["first_k_dense_replace"] = config.num_hidden_layers
        if family == "deepseek_v3":
            written |= {"num_nextn_predict_layers": config.num_nextn_predict_layers, "rope_interleave": True,
                        "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
        return written
    written |= {name: fields[name] for name in ("num_key_value_heads", "head_dim")}
    if family == "deepseek":
        written |= {name: fields[name] for name in _EXPERTS if name not in ("n_group", "topk_group", "topk_method",
                                                                           "routed_scaling_factor")}
        return written | {"moe_layer_freq": 1}
    return written | ({"mlp_bias": False} if family == "llama" else {"use_sliding_window": False})


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    own = {name: getattr(scaling, name) for name in _ROPE[scaling.type]}
    if own.get("truncate"):
        del own["truncate"]  # what everyone does where nothing is said, and not every reader knows the word
    return {"type": scaling.type, "rope_type": scaling.type, **{k: v for k, v in own.items() if v is not None}}


# DeepSeek's inference demo: our field → its own name and what it means where the file does not say
_DEMO: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 102400), "hidden_size": ("dim", 2048), "intermediate_size": ("inter_dim", 10944),
    "moe_intermediate_size": ("moe_inter_dim", 1408), "num_hidden_layers": ("n_layers", 27),
    "first_k_dense_replace": ("n_dense_layers", 1), "num_attention_heads": ("n_heads", 16),
    "n_routed_experts": ("n_routed_experts", 64), "n_shared_experts": ("n_shared_experts", 2),
    "num_experts_per_tok": ("n_activated_experts", 6), "n_group": ("n_expert_groups", 1),
    "topk_group": ("n_limited_groups", 1), "scoring_func": ("score_func", "softmax"),
    "routed_scaling_factor": ("route_scale", 1.0), "q_lora_rank": ("q_lora_rank", 0),
    "kv_lora_rank": ("kv_lora_rank", 512), "qk_nope_head_dim": ("qk_nope_head_dim", 128),
    "qk_rope_head_dim": ("qk_rope_head_dim", 64), "v_head_dim": ("v_head_dim", 128),
    "rope_theta": ("rope_theta", 10000.0),
}
_DEMO_ROPE = {"original_seq_len": 4096, "rope_factor": 40.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}
_DEMO_REST = {"max_seq_len": 16384, "max_batch_size": 8, "dtype": "bf16", "scale_fmt": None}


def _read_demo(path: Path, raw: Mapping[str, Any]) -> Described:
    """The demo's ModelArgs. Its norms add 1e-6; it stretches positions where max_seq_len passes original_seq_len."""
    known = {theirs for theirs, _ in _DEMO.values()} | _DEMO_ROPE.keys() | _DEMO_REST.keys()
    if unknown := sorted(raw.keys() - known):
        raise FathomError(f"{path}: {shown(unknown[0])}: not a setting of DeepSeek's inference demo, whose form this "
                          "file has; remove it, or write a Hugging Face config with model_type")
    fields = {ours: raw.get(theirs, default) for ours, (theirs, default) in _DEMO.items()}
    rope = {name: raw.get(name, default) for name, default in _DEMO_ROPE.items()}
    rest = {name: raw.get(name, default) for name, default in _DEMO_REST.items()}
    for name, values in (("dtype", ("bf16", "fp8")), ("scale_fmt", (None, "ue8m0"))):
        if rest[name] not in values:
            raise FathomError(f"{path}: {name}={valued(rest[name])}; {values[0]} and {values[1]} are read: correct it")
    for name in ("max_seq_len", "original_seq_len", "rope_factor"):
        value: Any = rest.get(name, rope.get(name))
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise FathomError(f"{path}: {name}={valued(value)}: must be a number above 0; correct it")
    sigmoid = fields["scoring_func"] == "sigmoid"
    grouped = fields["n_group"] != 1
    fields |= {
        "attention": "mla", "rope_interleave": True, "tie_word_embeddings": False, "num_nextn_predict_layers": 0,
        "rms_norm_eps": 1e-6, "q_lora_rank": fields["q_lora_rank"] or None, "norm_topk_prob": sigmoid,
        "topk_method": "noaux_tc" if sigmoid else "group_limited_greedy" if grouped else "greedy",
        "max_position_embeddings": rest["max_seq_len"],
    }
    if rest["max_seq_len"] > rope["original_seq_len"]:
        fields["max_position_embeddings"] = int(rope["original_seq_len"] * rope["rope_factor"])
        fields["rope_scaling"] = {
            "type": "yarn", "factor": rope["rope_factor"], "original_max_position_embeddings": rope["original_seq_len"],
            "beta_fast": rope["beta_fast"], "beta_slow": rope["beta_slow"],
            # the demo scales the softmax by m(mscale)² and never cos and sin
            **({"mscale": rope["mscale"], "mscale_all_dim": rope["mscale"]} if rope["mscale"] else {
                "attention_factor": 1.0})}
    fp8 = Fp8(rest["scale_fmt"] == "ue8m0") if rest["dtype"] == "fp8" else None
    return Described(build(ModelConfig, fields, str(path)), fp8, demo=True)


def demo_config(config: ModelConfig, fp8: Fp8 | None) -> dict[str, Any]:
    """The demo's ModelArgs for a model; FathomError names what the demo cannot compute."""
    if config.family not in ("deepseek_v2", "deepseek_v3"):
        raise FathomError(f"family={config.family}: DeepSeek's inference demo computes deepseek_v2 and deepseek_v3; "
                          "write Hugging Face's names instead")
    must: dict[str, Any] = {
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "norm_topk_prob": config.scoring_func == "sigmoid",
        "rope_interleave": True}
    for name, value in must.items():
        if getattr(config, name) != value:
            raise FathomError(f"{name}={getattr(config, name)}: DeepSeek's inference demo computes {name}={value} "
                              "only; write Hugging Face's names instead")
    written = {theirs: getattr(config, ours) for ours, (theirs, _) in _DEMO.items()}
    written |= {"q_lora_rank": config.q_lora_rank or 0, "dtype": "fp8" if fp8 else "bf16"}
    if fp8 and fp8.ue8m0:
        written["scale_fmt"] = "ue8m0"
    if not config.n_routed_experts:
        written["n_dense_layers"] = config.num_hidden_layers
    scaling = config.rope_scaling
    if scaling is None:
        return written | {"max_seq_len": config.max_position_embeddings,
                          "original_seq_len": config.max_position_embeddings}
    if (scaling.type != "yarn" or not scaling.truncate or (scaling.mscale or 0) != (scaling.mscale_all_dim or 0)
            or scaling.attention_factor != (None if scaling.mscale else 1.0)):
        raise FathomError(f"rope_scaling={scaling.model_dump()}: DeepSeek's inference demo computes yarn with mscale = "
                          "mscale_all_dim only; write Hugging Face's names instead")
    original = scaling.original_max_position_embeddings
    longest = max(config.max_position_embeddings, original + 1)
    if int(original * scaling.factor) != config.max_position_embeddings:
        raise FathomError(f"max_position_embeddings={config.max_position_embeddings}: DeepSeek's inference demo has "
                          f"original length × factor = {int(original * scaling.factor)}; write Hugging Face's names")
    return written | {"max_seq_len": longest, "original_seq_len": original, "rope_factor": scaling.factor,
                      "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "mscale": scaling.mscale or 0.0}
