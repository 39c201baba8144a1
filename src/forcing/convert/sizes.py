"""The sizes of a Wan, from and to the config.json of others, or from the shapes of its tensors alone."""

import dataclasses
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from forcing.backbones.wan import EPS, WanConfig
from forcing.convert.source import document

CONFIG = "config"  # in a file's metadata
HEAD = 128  # channels of a head in every released Wan2.1
MEASURED = {  # the tensors that tell the sizes, and how many dimensions they have
    "patch_embedding.weight": 5,
    "text_embedding.0.weight": 2,
    "time_embedding.0.weight": 2,
    "blocks.0.ffn.0.weight": 2,
    "head.head.weight": 2,
}

_BOTH = {"ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "num_layers": "num_layers"}
_MAY_LACK = {"text_dim": "text_dim", "patch": "patch_size"}  # the released original files do, and have our defaults
_ORIGINAL = {
    **_BOTH,
    **_MAY_LACK,
    "dim": "dim",
    "num_heads": "num_heads",
    "in_channels": "in_dim",
    "out": "out_dim",
    "text_len": "text_len",
}
_DIFFUSERS = {
    **_BOTH,
    **_MAY_LACK,
    "head": "attention_head_dim",
    "num_heads": "num_attention_heads",
    "in_channels": "in_channels",
    "out": "out_channels",
    "text_len": "_text_len",  # not a size of theirs: their pipeline pads texts. They pass over names that begin so
}
_ALLOWED: dict[str, tuple[Any, ...]] = {  # settings that change what is computed, and what ours computes
    "model_type": ("t2v",),
    "image_dim": (None,),
    "added_kv_proj_dim": (None,),
    "qk_norm": (True, "rms_norm_across_heads"),
    "cross_attn_norm": (True,),
    "window_size": ([-1, -1],),
    "eps": (EPS,),
}


def beside(folder: Path) -> WanConfig | None:
    """What config.json or world.json in the folder of the weights says; None if neither is there."""
    if (folder / "config.json").is_file():
        return _published(document(folder / "config.json"), folder / "config.json")
    if (folder / "world.json").is_file():
        return _own(folder / "world.json")
    return None


def within(path: Path) -> WanConfig | None:
    """What a file of ours says itself, in its metadata; None if it says nothing."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get(CONFIG)
    if told is None:
        return None
    try:
        return _published(json.loads(told), path)
    except (ValueError, TypeError) as damage:
        raise ValueError(f"{path} is damaged: its metadata is not a config ({damage})") from damage


def measured(shapes: Mapping[str, tuple[int, ...]], path: Path) -> WanConfig:
    """The sizes that tensors of these shapes have, if heads have HEAD channels and texts 512 embeddings."""
    absent = [name for name, dimensions in MEASURED.items() if len(shapes.get(name, ())) != dimensions]
    if absent:
        wrong = ", ".join(f"{name} of {MEASURED[name]} dimensions" for name in absent)
        raise ValueError(f"{path} is not a Wan transformer: it lacks {wrong}")
    dim, channels, *patch = shapes["patch_embedding.weight"]
    _check_channels(channels, shapes["head.head.weight"][0] / max(1, prod(patch)), path)
    if dim % HEAD:
        raise ValueError(f"{path} has {dim} channels, not heads of {HEAD}: its config.json, or a config, must say more")
    sizes = {
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "text_dim": shapes["text_embedding.0.weight"][1],
        "num_heads": dim // HEAD,
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "in_channels": channels,
        "patch": patch,
    }
    return _made(sizes, path)


def original(config: WanConfig) -> dict[str, Any]:
    """The config.json of the original code."""
    sizes = {**dataclasses.asdict(config), "out": config.in_channels}
    named = {theirs: sizes[ours] for ours, theirs in _ORIGINAL.items()}
    return {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "eps": EPS, **named}


def diffusers(config: WanConfig) -> dict[str, Any]:
    """The config.json of diffusers' WanTransformer3DModel."""
    sizes = {**dataclasses.asdict(config), "out": config.in_channels, "head": config.dim // config.num_heads}
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.33.0",
        **{theirs: sizes[ours] for ours, theirs in _DIFFUSERS.items()},
        "eps": EPS,
        "qk_norm": "rms_norm_across_heads",
        "cross_attn_norm": True,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
        "rope_max_seq_len": 1024,
    }


def _published(told: dict[str, Any], path: Path) -> WanConfig:
    grammar = _DIFFUSERS if _DIFFUSERS["head"] in told else _ORIGINAL
    lacking = [name for ours, name in grammar.items() if name not in told and ours not in (*_MAY_LACK, "text_len")]
    if lacking:
        raise ValueError(f"{path} is not the config of a Wan transformer: it has no {', '.join(lacking)}")
    for name, allowed in _ALLOWED.items():
        if name in told and told[name] not in allowed:
            raise ValueError(
                f"{path}: {name} {told[name]!r} is not supported, only {' or '.join(map(repr, allowed))} "
                "(Wan2.1, text to video)"
            )
    _check_types({name: told[name] for name in grammar.values() if name in told}, path)
    sizes = {ours: told[theirs] for ours, theirs in grammar.items() if theirs in told}
    _check_channels(sizes["in_channels"], sizes.pop("out"), path)
    if "head" in sizes:
        sizes["dim"] = sizes["num_heads"] * sizes.pop("head")
    return _made(sizes, path)


def _own(path: Path) -> WanConfig:
    recipe = document(path).get("recipe")
    told = recipe.get("backbone") if isinstance(recipe, dict) else None
    if not isinstance(told, dict) or "kind" not in told:
        raise ValueError(f"{path} is damaged: it does not say what its recipe's backbone is")
    if told["kind"] != WanConfig.__name__:
        raise ValueError(f"{path} is a world of {told['kind']!r}, and not of {WanConfig.__name__}")
    sizes = {name: value for name, value in told.items() if name != "kind"}
    unknown = sizes.keys() - {field.name for field in dataclasses.fields(WanConfig)}
    if unknown:
        raise ValueError(f"{path}: {WanConfig.__name__} has no {', '.join(map(repr, sorted(unknown)))}")
    _check_types(sizes, path)
    return _made(sizes, path)


def _made(sizes: dict[str, Any], path: Path) -> WanConfig:
    try:
        return WanConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_types(sizes: Mapping[str, Any], path: Path) -> None:
    for name, value in sizes.items():
        several = name in ("patch", "patch_size")
        numbers = value if several else [value]
        if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
            raise ValueError(f"{path}: {name} is {value!r}, which is no whole number{'s' * several}")


def _check_channels(taken: int, given: int | float, path: Path) -> None:
    if taken != given:
        raise ValueError(
            f"{path} takes {taken} channels and gives {given:g}: only text to video is supported, not image to video"
        )
