"""A batch in pieces has the gradient of the whole, and bfloat16 is for matrix products alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from forcing.cond import Cond
from forcing.layout import Cache, full
from forcing.stages import Batch, Loss, Update
from forcing.train import compute
from forcing.train.compute import Placed, place


@dataclass(frozen=True)
class Regression:
    seen: list
    roles: ClassVar[Sequence[str]] = ("student",)

    def updates(self):
        return [Update("student", (self.loss,), every=2, start=3)]

    def loss(self, models, batch, rng):
        self.seen.append((len(batch.latents), batch.cond.static["text"].tolist(), torch.rand((), generator=rng).item()))
        out = models["student"](batch.latents, batch.latents[:, :, 0, 0, 0], batch.cond, full(2))
        return Loss(out.float().square().mean(), {"kind": torch.tensor(float(out.dtype == torch.bfloat16))})


class Line(nn.Linear):
    """A network of one matrix, as the contract asks for it."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(8, 3)

    def forward(self, x, sigma, cond, layout):
        return super().forward(x.flatten(1))

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return Cache(1, window=window, sink=sink)


def batch(clips: int = 4) -> Batch:
    latents = torch.randn(clips, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    cond = Cond({"text": torch.arange(clips, dtype=torch.float32)[:, None]})
    return Batch(latents, cond, cond.blank())


def gradient(pieces: int, seen: list) -> Tensor:
    model = Line()
    (update,) = Placed(Regression(seen), pieces=pieces).updates()
    assert (update.role, update.every, update.start) == ("student", 2, 3)
    for loss in update.losses:
        loss({"student": model}, batch(), torch.Generator().manual_seed(1)).value.backward()
    assert model.weight.grad is not None
    return model.weight.grad


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_have_the_gradient_of_the_whole(pieces):
    seen: list = []
    torch.testing.assert_close(gradient(pieces, seen), gradient(1, []))
    assert [clips for clips, _, _ in seen] == [4 // pieces] * pieces
    assert [row for _, told, _ in seen for row in told] == [[0.0], [1.0], [2.0], [3.0]]


def test_on_the_cpu_the_random_stream_is_the_loop_s_own():
    seen: list = []
    gradient(1, seen)
    assert seen[0][2] == torch.rand((), generator=torch.Generator().manual_seed(1)).item()


@pytest.mark.parametrize(("precision", "half"), [("float32", 0.0), ("bfloat16", 1.0)])
def test_matrix_products_are_as_precise_as_asked(precision, half):
    (update,) = Placed(Regression([]), precision=precision).updates()
    loss = update.losses[0]({"student": Line()}, batch(), torch.Generator())
    assert loss.metrics["kind"].item() == half and loss.value.dtype == torch.float32


def test_devices_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "device_count", lambda: 0)
    assert place("auto") == place("cpu") == "cpu"
    for name in ("cuda", "cuda:0", "tpu", ""):
        with pytest.raises(ValueError, match="this machine has cpu"):
            place(name)
    monkeypatch.setattr(compute.torch.cuda, "device_count", lambda: 2)
    assert (place("auto"), place("cuda"), place("cuda:1")) == ("cuda:0", "cuda", "cuda:1")
