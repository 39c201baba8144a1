"""Where and how precisely a run computes: the only file of training that knows of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from forcing.recipe import Precision
from forcing.stages import Batch, Loss, LossFn, Models, Stage, Update


@dataclass(frozen=True)
class Placed:
    """A stage, computed in a certain way: `stage` says what, this says where.

    device: of the models; batches are moved there. precision: of matrix products, by autocast; weights and optimizers
    keep their own. pieces: that a batch is cut into, one after another in memory; the gradient is the mean of theirs
    (and, as each piece draws its own noise, that of the whole in expectation).
    """

    stage: Stage
    device: str = "cpu"
    precision: Precision = "float32"
    pieces: int = 1
    roles: ClassVar[Sequence[str]] = ()

    def updates(self) -> Sequence[Update]:
        return [
            Update(
                update.role,
                tuple(self._placed(loss, piece) for loss in update.losses for piece in range(self.pieces)),
                update.every,
                update.start,
            )
            for update in self.stage.updates()
        ]

    def _placed(self, loss: LossFn, piece: int) -> LossFn:
        def placed(models: Models, batch: Batch, rng: torch.Generator) -> Loss:
            own = rng
            if self.device != "cpu":
                seed = int(torch.randint(2**62, (), generator=rng))
                own = torch.Generator(self.device).manual_seed(seed)
            part = batch.map(lambda value: value.chunk(self.pieces)[piece].to(self.device))
            kind = torch.device(self.device).type
            with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
                value, metrics = loss(models, part, own)
            return Loss(value / self.pieces, metrics)

        return placed


def place(name: str) -> str:
    """The device called `name`; for "auto" the GPU if there is one. ValueError for one that this machine lacks."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return devices[min(1, len(devices) - 1)]
    if name not in (*devices, "cuda") or (name == "cuda" and len(devices) == 1):
        raise ValueError(f"device {name!r} is not there; this machine has {', '.join(devices)} (or auto)")
    return name
