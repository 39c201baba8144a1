"""Weights that others published: read from a file, and put in a network that they fit exactly."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLED = (".pth", ".pt")
KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of what torch.save wrote. ValueError names a file that is not one."""
    if path.suffix not in (".safetensors", *PICKLED):
        raise ValueError(f"{path} has the extension {path.suffix!r}; weights are .safetensors, {' or '.join(PICKLED)}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is damaged; we say so ourselves
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as damage:  # whatever bytes that mean something else lead a reader to
        reason = f"{type(damage).__name__}: {damage}".partition("\n")[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors ({reason})") from damage
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise ValueError(f"{path} holds something else than tensors by name")
    return found


def fill(
    network: nn.Module, weights: Mapping[str, Tensor], path: Path, device: str | torch.device, dtype: torch.dtype | None
) -> None:
    """Give `network`, also one on the meta device, these tensors as its weights. dtype: None for that of the first.

    ValueError, with `path`, where one does not fit, is not of KINDS, or is not finite in that dtype.
    """
    own, given = ({name: value.shape for name, value in each.items()} for each in (network.state_dict(), weights))
    odd = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if odd:
        named = f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}"
        raise ValueError(f"{path}: {len(odd)} weights are missing, too many or of another shape: {named}")
    for name, value in weights.items():
        if value.dtype not in KINDS:
            raise ValueError(f"{path}: {name} is stored as {value.dtype}; weights are {', '.join(map(str, KINDS))}")
    dtype = dtype or next(iter(weights.values())).dtype
    cast = {name: value.to(device, dtype) for name, value in weights.items()}
    for name, value in cast.items():
        if not finite(value):
            raise ValueError(f"{path}: {name} has values that are NaN, infinite or too large for {dtype}")
    network.load_state_dict(cast, assign=True)


def finite(value: Tensor) -> bool:
    """Whether no number is NaN or infinite. Of the smallest and the largest, NaN is both: asking each takes longer."""
    return value.numel() == 0 or bool(torch.stack(value.aminmax()).isfinite().all())
