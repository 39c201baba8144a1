"""What is trained. A stage is a frozen dataclass of hyper-parameters that lists the updates of one step.

A loss is a pure function (models, batch, rng) -> Loss: it holds no state and draws nothing from a global generator.
Models go by role: "student", "teacher", "critic", and "<role>_ema" for the running average of a role's weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from forcing.backbone import Backbone
from forcing.cond import Cond
from forcing.shapes import Latents


@dataclass(frozen=True)
class Batch:
    """Clean clips, what the model is told about them, and the null condition for guidance."""

    latents: Latents
    cond: Cond
    uncond: Cond

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """`function` applied to every tensor."""
        return Batch(function(self.latents), self.cond.map(function), self.uncond.map(function))


class Loss(NamedTuple):
    """A scalar to descend, and scalars to log."""

    value: Tensor
    metrics: Mapping[str, Tensor]


Models = Mapping[str, Backbone]
LossFn = Callable[[Models, Batch, torch.Generator], Loss]


@dataclass(frozen=True)
class Update:
    """One optimizer step of `role`: the sum of its losses, taken in the last of every `every` steps from `start` on."""

    role: str
    losses: tuple[LossFn, ...]
    every: int = 1
    start: int = 0


@runtime_checkable
class Stage(Protocol):
    """`roles`: which models it needs; those it updates come first. `updates`: what one step does, in order."""

    roles: ClassVar[Sequence[str]]

    def updates(self) -> Sequence[Update]: ...
