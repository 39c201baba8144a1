"""What others call the parameters of Wan: the original names, which are ours, diffusers', and what training adds."""

import re

_MARKS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")
_FRONTS = re.compile(r"(?:model\.)?(?:diffusion_model\.)?")
_STEM = re.compile(r"\A(blocks\.[0-9]+\.)?(.*?)(\.weight|\.bias)?\Z", re.DOTALL)

_OUTSIDE = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_INSIDE = {  # of a block
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_TO_DIFFUSERS = (_OUTSIDE, _INSIDE)
_TO_ORIGINAL = tuple({theirs: ours for ours, theirs in table.items()} for table in _TO_DIFFUSERS)


def original(key: str) -> str:
    """The original name of a parameter that a file calls `key`, in whichever grammar; a foreign name stays foreign."""
    return _renamed(_FRONTS.sub("", _MARKS.sub("", key), count=1), _TO_ORIGINAL)


def diffusers(name: str) -> str:
    """What diffusers calls the parameter `name`."""
    return _renamed(name, _TO_DIFFUSERS)


def _renamed(name: str, tables: tuple[dict[str, str], ...]) -> str:
    block, stem, leaf = _STEM.findall(name)[0]  # it matches anything
    return block + tables[bool(block)].get(stem, stem) + leaf
