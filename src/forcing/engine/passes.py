"""Work as a sequence of passes that someone else makes: so passes of several sessions can be made as one."""

from collections.abc import Callable, Generator, Mapping, Sequence
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
    return drive(lambda asked: model(asked.x, asked.sigma, asked.cond, asked.layout), work)


def drive(make: Callable[[Pass], Latents], work: Work[T]) -> T:
    """Make the passes of one work in a way of one's own."""
    try:
        asked = next(work)
        while True:
            asked = work.send(make(asked))
    except StopIteration as done:
        return done.value


class Together:
    """Several passes of one shape, made as one: each clip still sees its own past alone.

    Static conditions of the newest group are kept as they were put together: mostly the same sessions come again.
    """

    def __init__(self) -> None:
        self._static: tuple[list[Tensor], Mapping[str, Tensor]] = [], {}

    def __call__(self, model: Model, passes: Sequence[Pass]) -> list[Latents]:
        """The velocities of each."""
        if len(passes) == 1:
            (one,) = passes
            return [model(one.x, one.sigma, one.cond, one.layout)]
        clips = tuple(len(one.x) for one in passes)
        cond = Cond(
            self._together([one.cond.static for one in passes]), _joined([one.cond.per_frame for one in passes])
        )
        x, sigma = (torch.cat(each) for each in ([one.x for one in passes], [one.sigma for one in passes]))
        v = model(x, sigma, cond, Abreast(tuple(one.layout for one in passes), clips))
        return list(v.split(clips))

    def _together(self, static: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        own, (known, made) = [value for each in static for value in each.values()], self._static
        if len(own) != len(known) or any(one is not other for one, other in zip(own, known, strict=True)):
            self._static = own, (made := _joined(static))
        return made


def _joined(conditions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([each[name] for each in conditions]) for name in conditions[0]}
