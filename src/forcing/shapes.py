"""Names for the shapes that cross module boundaries.

The annotations are checked under pytest (jaxtyping + beartype) and cost nothing in production. jaxtyping is a
development dependency: without it the names fall back to plain tensors, so that the method also runs in a bare
image that holds torch alone.
"""

from torch import Tensor

try:
    from jaxtyping import Bool, Float
except ModuleNotFoundError:  # pragma: no cover - exercised by the bare-image check only

    class Float:  # type: ignore[no-redef]
        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Float  # type: ignore[assignment,misc]

Latents = Float[Tensor, "b f c h w"]
Sigma = Float[Tensor, "b f"]
Times = Float[Tensor, " f"]
FrameMask = Bool[Tensor, "q k"]
