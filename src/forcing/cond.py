"""What the model is told: conditions of the whole clip, and conditions of each frame.

Losses and rollouts carry, slice, double and blank a `Cond`; only backbones open it. A new condition therefore costs
one encoder and a few lines in the backbone that consumes it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cond:
    """`static`: name -> [B, ...], e.g. text. `per_frame`: name -> [B, F, ...], e.g. the action that led to a frame.

    All zeros is "not told": the null condition of guidance.
    """

    static: Mapping[str, Tensor] = field(default_factory=dict)
    per_frame: Mapping[str, Tensor] = field(default_factory=dict)

    def frames(self, start: int, stop: int) -> "Cond":
        """The conditions of frames start..stop-1; static ones stay."""
        return Cond(self.static, {name: value[:, start:stop] for name, value in self.per_frame.items()})

    def twice(self) -> "Cond":
        """For a [clean; noisy] sequence: each per-frame condition once for either half."""
        return Cond(self.static, {name: torch.cat([value, value], 1) for name, value in self.per_frame.items()})

    def beside(self, other: "Cond") -> "Cond":
        """One batch holding both: this first, `other` second. Both must tell the same names."""
        if self.static.keys() != other.static.keys() or self.per_frame.keys() != other.per_frame.keys():
            raise ValueError(f"conditions differ: {self.names()} beside {other.names()}")
        return Cond(
            {name: torch.cat([value, other.static[name]]) for name, value in self.static.items()},
            {name: torch.cat([value, other.per_frame[name]]) for name, value in self.per_frame.items()},
        )

    def blank(self) -> "Cond":
        """The null condition of the same shape."""
        return self.map(torch.zeros_like)

    def chunks(self, frames: int, chunk: int) -> Iterator["Cond"]:
        """The conditions of consecutive chunks of `chunk` frames."""
        if frames % chunk:
            raise ValueError(f"{frames} frames do not divide into chunks of {chunk}")
        for start in range(0, frames, chunk):
            yield self.frames(start, start + chunk)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cond":
        """`function` applied to every tensor."""
        return Cond(
            {name: function(value) for name, value in self.static.items()},
            {name: function(value) for name, value in self.per_frame.items()},
        )

    def names(self) -> list[str]:
        """Everything told, static first."""
        return [*self.static, *self.per_frame]
