"""Names for the shapes that cross module boundaries.

The annotations are checked under pytest (jaxtyping + beartype) and cost nothing in production. jaxtyping is a
development dependency: without it the names fall back to plain tensors, so that the method also runs in a bare
image that holds torch alone.
"""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
else:
    try:
        from jaxtyping import Bool, Float
    except ModuleNotFoundError:

        class Float:
            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                return item[0]

        Bool = Float

Latents = Float[Tensor, "b f c h w"]
Sigma = Float[Tensor, "b f"]
Times = Float[Tensor, " f"]
FrameMask = Bool[Tensor, "q k"]
