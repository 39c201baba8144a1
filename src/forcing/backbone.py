"""The protocol every video transformer meets: two methods, no base class."""

from typing import Protocol, runtime_checkable

from forcing.cond import Cond
from forcing.layout import Cache, Layout
from forcing.shapes import Latents, Sigma


@runtime_checkable
class Backbone(Protocol):
    """A video network: noised latents, a noise level per frame, conditions and a layout in; velocity out.

    Velocity of all frames but those that the layout calls mute.
    """

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Latents: ...

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache: ...
