"""Work as a sequence of passes that someone else makes: so passes of several sessions can be made as one."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from forcing.cond import Cond
from forcing.layout import Abreast, Cache, Layout
from forcing.shapes import Latents, Sigma

T = TypeVar("T")


@runtime_checkable
class Model(Protocol):
    """A backbone that can be asked for several sessions at once, and can prepare what stays.

    prepare: static conditions, as long as they last. embed: noise levels, as conditions of each frame.
    """

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout | Abreast) -> Tensor: ...

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache: ...

    def prepare(self, cond: Cond) -> Cond: ...

    def embed(self, sigma: Sigma) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Pass:
    """What a model is asked once."""

    x: Latents
    sigma: Sigma
    cond: Cond
    layout: Layout

    @property
    def shape(self) -> tuple[object, ...]:
        """Passes of one shape can be made as one."""
        static = tuple((name, value.shape[1:]) for name, value in self.cond.static.items())
        return (*self.x.shape[1:], self.layout.mute, static)


Work = Generator[Pass, Latents, T]  # yields passes, is sent the velocities, returns what they were for


def run(model: Model, work: Work[T]) -> T:
    """Make the passes of one work."""
    try:
        asked = next(work)
        while True:
            asked = work.send(model(asked.x, asked.sigma, asked.cond, asked.layout))
    except StopIteration as done:
        return done.value


def together(model: Model, passes: Sequence[Pass]) -> list[Latents]:
    """Velocities of several passes of one shape, made as one: each clip still sees its own past alone."""
    if len(passes) == 1:
        (one,) = passes
        return [model(one.x, one.sigma, one.cond, one.layout)]
    clips = tuple(len(one.x) for one in passes)
    first, *rest = (one.cond for one in passes)
    cond = Cond(
        {name: torch.cat([value, *(each.static[name] for each in rest)]) for name, value in first.static.items()},
        {name: torch.cat([value, *(each.per_frame[name] for each in rest)]) for name, value in first.per_frame.items()},
    )
    x, sigma = (torch.cat(each) for each in ([one.x for one in passes], [one.sigma for one in passes]))
    v = model(x, sigma, cond, Abreast(tuple(one.layout for one in passes), clips))
    return list(v.split(clips))
