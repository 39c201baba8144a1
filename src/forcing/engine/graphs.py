"""Passes that are recorded once and replayed: launching a pass's kernels one by one can take as long as they run.

A stream whose window is full makes passes of two or three shapes, each reading and writing the same memory again and
again: the chunk alone, merged with the one before, and settling.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forcing.backbones import Network, attention, tiny, wan
from forcing.cond import Cond
from forcing.engine.passes import Model
from forcing.layout import Abreast, Cache, Layout
from forcing.ring import Reading, Ring
from forcing.shapes import Latents, Sigma

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
_WARM = 3  # runs before recording, in which libraries make up their minds


def compiled(model: Network) -> Network:
    """A copy of a model whose blocks' kernels torch.compile makes; on a CPU that needs a C++ compiler.

    Attention stays as it is: it reads and writes a past by rules that no compiler sees.
    """
    import torch._dynamo  # seconds, for those who compile

    known = torch._dynamo.config
    known.recompile_limit = max(known.recompile_limit, 8 * len(model.blocks))  # each layer, in each shape of pass
    opaque = torch.compiler.disable(attention.attend)
    for module in (tiny, wan):
        vars(module)["attend"] = opaque
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.compile(dynamic=False)
    return model


def on_cuda() -> Recorder:
    """Record CUDA graphs, which share their scratch memory: one is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made = run()
        return graph.replay, made

    return record


def by_hand(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The slow twin, for any device: replaying is running again, on the same memory."""
    made = run().clone()

    def replay() -> None:
        made.copy_(run())

    return replay, made


@dataclass
class Recorded:
    """A pass that can be replayed. Its inputs are copied to where it was recorded from; `made` is what comes out."""

    x: Tensor
    sigma: Tensor
    times: Tensor
    steps: Tensor
    cond: Cond
    said: Mapping[str, Tensor]  # the static conditions that were copied last
    replay: Callable[[], None]
    made: Tensor

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, start: float) -> Tensor:
        self.x.copy_(x)
        self.sigma.copy_(sigma)
        torch.add(self.steps, start, out=self.times)  # no copy from the host, which would wait
        for name, value in cond.per_frame.items():
            self.cond.per_frame[name].copy_(value)
        for name, value in cond.static.items():
            if value is not self.said.get(name):
                self.cond.static[name].copy_(value)
        self.said = cond.static
        with _at(self.x):
            self.replay()
        return self.made


class Graphs:
    """A model that replays what it has recorded, and runs anything else as it is.

    While `recording`, a pass of a ring that is full is recorded when it is first met. What a replay returns is
    overwritten by the next one.
    """

    def __init__(self, model: Model, record: Recorder) -> None:
        self.model, self.record, self.recording = model, record, False
        self._known: dict[tuple[object, ...], Recorded] = {}

    def __call__(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout | Abreast) -> Tensor:
        ring = _full(layout)
        if ring is None or isinstance(layout, Abreast):
            return self.model(x, sigma, cond, layout)
        key = (ring, ring.where, tuple(x.shape), x.dtype, layout.mute)
        if key not in self._known:
            if not self.recording:
                return self.model(x, sigma, cond, layout)
            self._known[key] = self._recorded(x, sigma, cond, layout)
        made = self._known[key](x, sigma, cond, float(layout.times[0]))
        ring.wrote(len(layout.times))
        return made

    def __len__(self) -> int:
        return len(self._known)

    def forget(self, ring: Ring) -> None:
        """Keep nothing of what was said to whoever has used this ring."""
        for key, recorded in self._known.items():
            if key[0] is ring:
                recorded.said = {}

    def cache(self, batch: int, *, window: int, sink: int = 0) -> Cache:
        return self.model.cache(batch, window=window, sink=sink)

    def prepare(self, cond: Cond) -> Cond:
        return self.model.prepare(cond)

    def embed(self, sigma: Sigma) -> Mapping[str, Tensor]:
        return self.model.embed(sigma)

    def _recorded(self, x: Latents, sigma: Sigma, cond: Cond, layout: Layout) -> Recorded:
        x, sigma, own = x.clone(), sigma.clone(), cond.map(torch.clone)
        times = layout.times.to(x.device, copy=True)
        here = replace(layout, times=times)
        with _at(x):
            replay, made = self.record(lambda: self.model(x, sigma, own, here))
        return Recorded(x, sigma, times, times - times[0], own, cond.static, replay, made)


def _at(x: Tensor) -> AbstractContextManager[object]:
    """Where a tensor is: graphs are recorded and replayed on the GPU that is chosen."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _full(layout: Layout | Abreast) -> Ring | None:
    """The ring that a pass reads, if that is as full as it gets: its places and sizes then stay."""
    past = layout.past if isinstance(layout, Layout) else None
    return past.ring if isinstance(past, Reading) and past.held == past.ring.most else None
