"""A run, as a value: what is trained, from where, on what, how long. Saved as JSON in every checkpoint."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from forcing.backbones import NetworkConfig
from forcing.data.withhold import Withhold
from forcing.rollout import Plan
from forcing.stages.consistency import Consistency
from forcing.stages.diffusion import Bidirectional, DiffusionForcing, TeacherForcing
from forcing.stages.dmd import DMD

Precision = Literal["float32", "bfloat16"]
AnyStage = Bidirectional | TeacherForcing | DiffusionForcing | Consistency | DMD


@dataclass(frozen=True)
class Optim:
    """One role's optimizer. Muon takes the matrices of the blocks, AdamW (at `adam_lr`) everything else.

    betas: AdamW's. weight_decay: of both.
    """

    method: Literal["adamw", "muon"] = "muon"
    lr: float = 0.02
    adam_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in ("adamw", "muon"):
            raise ValueError(f"optimizer {self.method!r} is not known; choose 'adamw' or 'muon'")
        if not (0 < self.lr < math.inf and 0 < self.adam_lr < math.inf):
            raise ValueError(f"learning rates must be positive, got lr {self.lr} and adam_lr {self.adam_lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True)
class Schedule:
    """Learning rates rise over `warmup` steps and fall over the last `decay` share of a run to `floor` of the peak."""

    warmup: int = 20
    decay: float = 0.4
    floor: float = 0.05

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {self.warmup}")
        for name in ("decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share and must lie in 0..1, got {getattr(self, name)}")

    def at(self, step: int, steps: int) -> float:
        """The factor on every learning rate at `step` of `steps`."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        left = (steps - step) / max(1.0, self.decay * steps)
        return rise * max(self.floor, min(1.0, left))


@dataclass(frozen=True)
class Role:
    """A model of the stage. `start`: the recipe whose product it starts from, None for a fresh one.

    optim: how it is trained, None if frozen. ema: weight of the past in its running average, None for no average.
    """

    start: str | None = None
    optim: Optim | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class Sampling:
    """How the product generates: its plan, guidance, frames denoised together, and the cache's window and sink."""

    plan: Plan
    guidance: float = 1.0
    chunk: int = 1
    window: int = 12
    sink: int = 0

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 frame, got {self.chunk}")
        if self.sink < 0:
            raise ValueError(f"sink must be at least 0 frames, got {self.sink}")
        if self.window < self.chunk + self.sink:
            raise ValueError(
                f"window is {self.window} frames: it must hold a chunk of {self.chunk} and {self.sink} sink frames"
            )
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be at least 0 (1 changes nothing), got {self.guidance}")


@dataclass(frozen=True)
class Gate:
    """How much worse a stage may make things before the pipeline stops.

    control: least share to keep of what the starting world's controllability gauge has above 1, which is deaf.
    quality: greatest frame-pair Frechet distance of its clips, as a multiple of the starting world's. None: not asked.
    """

    control: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class Recipe:
    """`frames`: of a training clip. `clip`: greatest gradient norm. `log`, `save`: steps between the two.

    precision: of matrix products in training; weights are float32. pieces: that a batch is computed in, one after
    another, where the memory does not hold it at once.
    """

    name: str
    stage: AnyStage
    backbone: NetworkConfig
    roles: Mapping[str, Role]
    sampling: Sampling
    steps: int
    batch: int = 32
    frames: int = 12
    seed: int = 0
    clip: float = 1.0
    schedule: Schedule = Schedule()
    withhold: Withhold = Withhold()
    gate: Gate = Gate()
    precision: Precision = "float32"
    pieces: int = 1
    log: int = 10
    save: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "frames", "pieces", "log", "save", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.batch % self.pieces:
            raise ValueError(f"pieces is {self.pieces}: a batch of {self.batch} does not divide into so many")
        if self.precision not in typing.get_args(Precision):
            raise ValueError(f"precision {self.precision!r} is not known; choose 'float32' or 'bfloat16'")
        if not self.clip > 0:
            raise ValueError(f"clip, the greatest gradient norm, must be positive, got {self.clip}")
        self._check_roles()
        self._check_agreement()

    def _check_roles(self) -> None:
        missing = [role for role in self.stage.roles if role.removesuffix("_ema") not in self.roles]
        missing += [role for role in self.stage.roles if role.endswith("_ema") and self.roles[role[:-4]].ema is None]
        if missing:
            raise ValueError(f"{type(self.stage).__name__} needs roles {list(self.stage.roles)}; {missing} not given")
        trained = {update.role for update in self.stage.updates()}
        idle = [role for role in trained if self.roles[role].optim is None]
        if idle:
            raise ValueError(f"{type(self.stage).__name__} trains {sorted(trained)}, but {idle} have no optimizer")

    def _check_agreement(self) -> None:
        # what is trained is what is sampled; another plan or window is for those who sample a finished product
        stage, chunk = self.stage, self.sampling.chunk
        if self.frames % chunk:
            raise ValueError(f"clips of {self.frames} frames do not divide into chunks of {chunk}")
        if isinstance(stage, Bidirectional):
            if chunk != self.frames:
                raise ValueError(
                    f"sampling.chunk is {chunk}: a bidirectional model makes its clip of {self.frames} frames at once"
                )
        elif stage.chunk != chunk:
            raise ValueError(f"stage.chunk is {stage.chunk} and sampling.chunk {chunk}: they must be the same")
        if isinstance(stage, DMD) and stage.plan != self.sampling.plan:
            raise ValueError(
                f"stage.plan visits {_told(stage.plan)} and sampling.plan {_told(self.sampling.plan)}: a student must "
                "be sampled as it was trained"
            )

    @property
    def causal(self) -> bool:
        """False for a bidirectional model, whose one chunk is a whole clip."""
        return not isinstance(self.stage, Bidirectional)


def _told(plan: Plan) -> str:
    first = "" if plan.first is None else f" (first {plan.first})"
    return f"{plan.rest}{first}{'' if plan.fresh else ' along the ODE'}"


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Fields in which two recipes would train differently: not how often they log or save, nor what a gate asks."""
    aside = ("log", "save", "keep", "gate")
    names = [f.name for f in dataclasses.fields(Recipe) if f.name not in aside]
    return [name for name in names if dump(getattr(a, name)) != dump(getattr(b, name))]


def dump(value: Any) -> Any:
    """Plain JSON values of a recipe or any part of one; dataclasses keep their name under "kind"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **parts}
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [dump(item) for item in value]
    return value


def parse(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `dump` wrote as `data`. Unknown names and kinds are errors."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if data is None and types.NoneType in options:
        return None
    if isinstance(data, dict) and "kind" in data:
        return _parse_dataclass(options, data)
    for option in options:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is tuple and isinstance(data, list):
            inner = [args[0]] * len(data) if len(args) == 2 and args[1] is ... else args
            return tuple(parse(part, item) for part, item in zip(inner, data, strict=True))
        if origin is Mapping and isinstance(data, dict):
            return {key: parse(args[1], item) for key, item in data.items()}
        if option is float and isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
    return data


def _parse_dataclass(options: tuple[Any, ...], data: dict[str, Any]) -> Any:
    found = [option for option in options if isinstance(option, type) and option.__name__ == data["kind"]]
    if not found:
        raise ValueError(f"unknown kind {data['kind']!r}; expected one of {[option.__name__ for option in options]}")
    hints = typing.get_type_hints(found[0])
    fields = {f.name for f in dataclasses.fields(found[0])}
    unknown = data.keys() - fields - {"kind"}
    if unknown:
        raise ValueError(f"{data['kind']} has no {sorted(unknown)}; it has {sorted(fields)}")
    return found[0](**{name: parse(hints[name], item) for name, item in data.items() if name != "kind"})
