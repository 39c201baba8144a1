"""Checkpoints: safetensors for every tensor, JSON for the rest; complete or absent, never half-written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from forcing import files
from forcing.recipe import Recipe, differences, dump, parse
from forcing.train.state import State

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with its path and the reason."""


def save(state: State, recipe: Recipe, folder: Path, keep: int) -> Path:
    """Write `folder`/step-N and remove all but the newest `keep`. Frozen models are not written: they have a source."""
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    path = folder / f"step-{state.step:08d}"
    tensors, scalars = _flatten(state)
    document = {
        "format": FORMAT,
        "step": state.step,
        "torch": torch.__version__,
        "recipe": dump(recipe),
        "optimizers": scalars,
        "recent": state.recent,
        "sources": state.sources,
    }
    with files.whole(path) as draft:
        draft.mkdir()
        save_file(_weights(state), draft / "models.safetensors")
        save_file(tensors, draft / "optimizers.safetensors")
        files.write_json(draft / "state.json", document)
        files.remove(path)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`."""
    found = _all(folder)
    return found[-1] if found else None


def load(state: State, path: Path, recipe: Recipe) -> None:
    """Put the checkpoint at `path` into `state`. It must have been made by the same recipe, from the same sources."""
    try:
        document = json.loads((path / "state.json").read_text())
        weights = load_file(path / "models.safetensors")
        tensors = load_file(path / "optimizers.safetensors")
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to continue from the one before") from error
    if document["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {document['format']}, this version reads {FORMAT}")
    different = differences(parse(Recipe, document["recipe"]), recipe)
    if different:
        raise CheckpointError(
            f"{path} was made by a different recipe (differs in: {', '.join(different)}); use another run folder, "
            "or delete this one to start again"
        )
    before = document.get("sources", {})  # checkpoints made before this was kept say nothing
    other = [name for name, digest in state.sources.items() if before.get(name, digest) != digest]
    if other:
        raise CheckpointError(
            f"{path} was trained from another {', another '.join(other)} than is there now; "
            f"delete {path.parent.parent} to start again"
        )
    for role in _saved(state):
        prefix = role + "/"
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        state.models[role].load_state_dict(own, strict=True)
    _unflatten(state, tensors, document["optimizers"])
    state.step, state.recent = document["step"], document.get("recent", {})
    state.sources = before | state.sources


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)) if folder.exists() else []


def _saved(state: State) -> list[str]:
    return [role for role in state.models if role.removesuffix("_ema") in state.optimizers]


def _weights(state: State) -> dict[str, torch.Tensor]:
    models = {role: state.models[role] for role in _saved(state)}
    return {
        f"{role}/{name}": value.contiguous()
        for role, model in models.items()
        for name, value in model.state_dict().items()
    }


def _flatten(state: State) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for role, optimizers in state.optimizers.items():
        for i, optimizer in enumerate(optimizers):
            for parameter, entries in optimizer.state_dict()["state"].items():
                for key, value in entries.items():
                    where = f"{role}/{i}/{parameter}/{key}"
                    if isinstance(value, torch.Tensor):
                        tensors[where] = value.contiguous()
                    else:
                        scalars[where] = value
    return tensors, scalars


def _unflatten(state: State, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    for role, optimizers in state.optimizers.items():
        for i, optimizer in enumerate(optimizers):
            whole = optimizer.state_dict()
            entries: dict[int, dict[str, Any]] = {}
            for where, value in [*tensors.items(), *scalars.items()]:
                owner, index, parameter, key = where.split("/")
                if owner == role and int(index) == i:
                    entries.setdefault(int(parameter), {})[key] = value
            optimizer.load_state_dict({"state": entries, "param_groups": whole["param_groups"]})
