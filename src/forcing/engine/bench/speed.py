"""Seconds a frame: the plain rollout loop, the engine, and the engine with each of its savings left out."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import count

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.engine.bench.trial import UNSEEN, Row, Trial, fill, full, ratio, viewer
from forcing.engine.graphs import Graphs, Recorder
from forcing.engine.passes import run
from forcing.engine.session import Session, Setup
from forcing.engine.stream import ALL, Savings
from forcing.flow import randn
from forcing.world import World

PLAIN, ENGINE, GRAPHS, COMPILED, DECODED = "plain", "engine", "graphs", "compiled", "decoded"
PRODUCT, FASTER = "product", (ENGINE, GRAPHS, COMPILED, DECODED)
SAVINGS = (*(each.name for each in fields(Savings)), "ring")
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product shows what the machine can do

Chunk = Callable[[], object]  # makes the next chunk


@dataclass(frozen=True)
class More:
    """What is measured beside the engine as it is. decode: with pictures. recorder: with passes that are replayed.

    compiled: the same world, its model compiled.
    """

    decode: bool = True
    recorder: Recorder | None = None
    compiled: World | None = None

    @property
    def count(self) -> int:
        return self.decode + (self.recorder is not None) + (self.compiled is not None)


def turns(trial: Trial, more: More) -> int:
    """How often `speed` ticks."""
    return trial.rounds * (len(SAVINGS) + 3 + more.count)


@torch.no_grad()
def speed(setup: Setup, trial: Trial, more: More) -> Row:
    """What a latent frame costs in the steady state.

    Of the row, passes are a chunk's; ratio: frames a second over the plain loop's; without: those of the engine with
    one saving less over those of the whole one; GFLOP and ms: of a frame; share: of what a large matrix product reaches
    here; MB: of a session.
    """
    how, device, chunks = setup.how, setup.device, trial.chunks(setup)
    frames = chunks * how.chunk
    session = started(replace(setup, decoder=lambda: UNSEEN), trial)
    makers = {PLAIN: plainly(setup, trial), ENGINE: session.next, **_others(setup, trial, session, more)}
    passes = {name: _passes(setup, makers[name]) for name in (PLAIN, ENGINE)}
    operations = _operations(session.next, device) / how.chunk
    rng = seeded(trial.seed, "product", device=str(device))
    matrix = randn((SIDE[device.type],) * 2, rng).to(dtype_of(setup))
    product = 2 * len(matrix) ** 3
    runs: dict[str, Chunk] = {name: lambda make=make: [make() for _ in range(chunks)] for name, make in makers.items()}
    took = trial.race(runs | {PRODUCT: lambda: matrix @ matrix}, device)
    return {
        "steps": len(how.plan.rest),
        "chunk": how.chunk,
        "ratio": {name: ratio(took[PLAIN], took[name]) for name in FASTER if name in took},
        "without": {name: ratio(took[ENGINE], took[name]) for name in SAVINGS},
        "passes": passes,
        "GFLOP": operations / 1e9,
        "GFLOP/s product": product / statistics.median(took[PRODUCT]) / 1e9,
        "share": operations * frames / product * ratio(took[PRODUCT], took[ENGINE]),
        "ms": {name: 1000 * statistics.median(took[name]) / frames for name in makers},
        **_held(session),
    }


def _others(setup: Setup, trial: Trial, like: Session, more: More) -> dict[str, Chunk]:
    """The engine `like` with less, and with more."""
    blind, made = like.setup, dict[str, Chunk]()
    for name in SAVINGS:
        less = replace(blind, savings=without(name))
        made[name] = started(less, trial, like, ring=name != "ring").next
    if more.recorder is not None:
        made[GRAPHS] = _recorded(started(blind, trial, like), more.recorder)
    if more.compiled is not None:
        made[COMPILED] = started(replace(blind, world=more.compiled), trial, like).next
    if more.decode:
        shows = started(setup, trial, like)
        made[DECODED] = lambda: shows.next().pictures
    return made


def _recorded(session: Session, recorder: Recorder) -> Chunk:
    """The next chunk by passes that have been recorded."""
    graphs = Graphs(session.setup.world.model, recorder)
    graphs.recording = True
    for _ in range(2):
        run(graphs, session.work())
    graphs.recording = False
    return lambda: run(graphs, session.work())


def without(name: str) -> Savings:
    """All savings but one of SAVINGS."""
    return ALL if name == "ring" else replace(ALL, **{name: False})


@torch.no_grad()
def started(setup: Setup, trial: Trial, like: Session | None = None, *, ring: bool = True) -> Session:
    """A session whose window is full. like: copy its keys and values. ring: keep them in one, not in a plain cache."""
    session = Session(setup, viewer(setup, trial.seed), seed=trial.seed)
    if not ring:
        session.stream.past = setup.world.model.cache(1, window=setup.how.window, sink=setup.how.sink)
    session.next()
    if ring and like is not None:
        session.ring.become(like.ring)
    else:
        fill(session)
    session.next()
    return session


def plainly(setup: Setup, trial: Trial) -> Chunk:
    """The rollout loop, its window full: a pass settles each chunk, and nothing but keys and values is kept."""
    how, world, chunk = setup.how, setup.world, setup.how.chunk
    rng, listen = seeded(trial.seed, "generate", device=str(setup.device)), viewer(setup, trial.seed)
    before = full(setup) * chunk
    start = randn((1, before, *setup.size), rng), world.cond([None], None, before)
    text, keys = start[1].static, (listen(frame).actions for frame in count(step=chunk))
    told = (Cond(text, world.pressed(1, None if each is None else [each], chunk)) for each in keys)
    chunks = world.stream(told, 1, rng, sampling=how, start=start, latents=setup.size)
    next(chunks)
    return lambda: next(chunks)


def _passes(setup: Setup, make: Chunk) -> int:
    """Passes of one chunk."""
    seen: list[None] = []
    hook = setup.world.model.register_forward_hook(lambda *_: seen.append(None))
    try:
        make()
    finally:
        hook.remove()
    return len(seen)


def _operations(make: Chunk, device: torch.device) -> int:
    """Floating-point operations of the matrix products of one chunk."""
    # the counter knows the attention kernels of GPUs; on a CPU only those that attention is made of
    known = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with known, FlopCounterMode(display=False) as counter:
        make()
    return counter.get_total_flops()


def _held(session: Session) -> Row:
    """Bytes of one session, its window full: keys and values, and the latents that it can go back to."""
    shown, ring = session.next(), session.ring
    kept = shown.latents.nbytes // len(shown.latents) * session.setup.keep
    return {"tokens": ring.tokens, "ring MB": ring.nbytes / 1e6, "kept MB": kept / 1e6}


def dtype_of(setup: Setup) -> torch.dtype:
    """What most of the weights are stored in: some of Wan's stay float32."""
    return max(setup.world.model.parameters(), key=Tensor.numel).dtype
