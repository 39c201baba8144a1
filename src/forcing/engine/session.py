"""One viewer of a world, without sockets: told something before each chunk, it shows the next frames, without end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from forcing.codecs import Decoder, Pixels
from forcing.cond import Cond
from forcing.data.order import seeded
from forcing.engine.history import Chunk, History, Recache
from forcing.engine.passes import Work, run
from forcing.engine.reel import Projector, Reel
from forcing.engine.stream import ALL, Savings, Stream
from forcing.recipe import Sampling
from forcing.ring import Ring
from forcing.rollout import Plan
from forcing.shapes import Latents
from forcing.world import World, pieces

Switch = Literal["blend", "cut", "recache"]
KEEP = 512  # latent frames of a session that can be gone back to


@dataclass(frozen=True)
class Told:
    """What is told for one chunk. prompt: None for none. actions: one for each of its frames, None for the free regime.

    switch: what becomes of the past where the prompt is another than before. "blend" keeps it, "cut" forgets it,
    "recache" makes it again as if the new prompt had been there all along.
    """

    prompt: str | None = None
    actions: Sequence[str | int] | None = None
    switch: Switch = "blend"

    def __post_init__(self) -> None:
        if self.switch not in get_args(Switch):
            raise ValueError(f"switch is {self.switch!r}: choose from {', '.join(get_args(Switch))}")


@dataclass(frozen=True)
class Shown:
    """Frames as they are made. frame: number of the first latent one. told: None for those that were given.

    latents: [F, channels, height, width]. generation: which beginning they follow.
    """

    frame: int
    latents: Tensor
    reel: Reel
    told: Told | None
    generation: int

    @property
    def pictures(self) -> Pixels:
        """uint8 [F', H, W, 3]; waits where they are still being decoded. ValueError where they are not finite."""
        return self.reel.take()


@dataclass(frozen=True)
class Setup:
    """What all sessions of an engine share. size: (channels, height, width) of a latent frame.

    decoder: makes one stream of pictures. keep: latent frames of each session that can be gone back to. side: a stream
    of kernels to decode on, where there is a GPU.
    """

    world: World
    how: Sampling
    size: tuple[int, int, int]
    decoder: Callable[[], Decoder]
    keep: int = KEEP
    savings: Savings = ALL
    side: torch.cuda.Stream | None = None

    @staticmethod
    def of(
        world: World, how: Sampling | None = None, frame: tuple[int, int] | None = None, keep: int = KEEP
    ) -> "Setup":
        """As the world was made for, if nothing else is said. frame: (height, width) in pixels."""
        if not world.causal:
            raise ValueError(f"{world.recipe.name} is bidirectional: it makes clips at once and cannot stream")
        how = how or world.recipe.sampling
        if keep < how.window:
            raise ValueError(f"keep is {keep} latent frames: it must be at least the window of {how.window}")
        made = Setup(world, how, world.codec.size(*(frame or world.kit.frame)), world.codec.decoder, keep)
        return replace(made, side=torch.cuda.Stream(made.device)) if made.device.type == "cuda" else made

    @property
    def device(self) -> torch.device:
        return next(self.world.model.parameters()).device

    def by(self, plan: Plan | None) -> "Setup":
        """The same with another plan, such as of more steps; None for the same."""
        return self if plan is None else replace(self, how=replace(self.how, plan=plan))

    def text(self, prompt: str | None) -> Mapping[str, Tensor]:
        """What the model is told of a prompt."""
        static = self.world.cond([prompt], None, 1).static
        return {name: value.to(self.device) for name, value in static.items()}

    def projector(self) -> Projector:
        """One stream of pictures."""
        return Projector(self.decoder(), self.side)

    def ring(self) -> Ring:
        """The memory of one session; it is taken when it is first written."""
        layers = len(self.world.model.blocks)
        return Ring(layers, window=self.how.window, sink=self.how.sink, chunk=self.how.chunk)


class Session:
    """`listen` is asked when a chunk is about to be made, with the number of its first frame: as late as can be.

    start: pictures uint8 [F, H, W, 3] to go on from, of the setup's size; they are what is shown first.
    """

    def __init__(
        self,
        setup: Setup,
        listen: Callable[[int], Told],
        *,
        seed: int = 0,
        start: Pixels | None = None,
        ring: Ring | None = None,
    ) -> None:
        self.setup, self.listen, self.generation = setup, listen, 0
        self.ring = ring or setup.ring()
        self.reset(seed=seed, start=start)

    def reset(self, *, seed: int, start: Pixels | None = None, plan: Plan | None = None) -> None:
        """Begin anew, as a new generation; by another plan, if one is given."""
        self.setup = self.setup.by(plan)
        how, world = self.setup.how, self.setup.world
        if seed < 0:
            raise ValueError(f"seed is {seed}: it must be 0 or more")
        self.seed, self.start = seed, None if start is None else self._encoded(start)
        self.random = seeded(seed, "generate", device=str(self.setup.device))
        self.ring.clear()
        shape = (1, how.chunk, *self.setup.size)
        self.stream = Stream(world.model, how, shape, self.ring, self.random, world.uncond, self.setup.savings)
        self.history = History(self.setup.keep, how.sink)
        self.decode = self.setup.projector()
        self.frame = self.place = 0  # number of the next frame: in the session, and in the scene
        self.generation += 1
        self.asleep = False
        self._text: tuple[str | None, Mapping[str, Tensor]] | None = None

    @torch.no_grad()
    def next(self) -> Shown:
        """The next frames, by passes of its own."""
        return run(self.setup.world.model, self.work())

    @torch.no_grad()
    def settle(self) -> None:
        """Use idle time: the next frames then need a shorter first pass. They are the same."""
        run(self.setup.world.model, self.stream.settle())

    def work(self) -> Work[Shown]:
        """What it takes to show the next frames; given up before its end, it can be begun anew."""
        if self.asleep:
            yield from self._wake()
        if self.start is not None:
            return (yield from self._open(self.start))
        told, before = self.listen(self.frame), self._text
        cond = self._cond(told)
        random = self.random.get_state()
        try:
            if before is not None and before[0] != told.prompt:
                yield from self._switch(told.switch, told.prompt, cond)
            latents = yield from self.stream.chunk(cond)
            return self._show(latents, cond, told, random)
        except BaseException:  # also where nobody wants it any more
            self.random.set_state(random)
            self._text, self.asleep = before, True
            raise

    def back(self, frame: int) -> None:
        """Go back to before the chunk that began at `frame`: what comes next is what came then, if it is told the same.

        ValueError where that is no longer kept. What was evicted from the window until then is not known any more.
        """
        chunk = self.history.back(frame)
        self.frame, self.place = chunk.frame, chunk.place
        self.random.set_state(chunk.random)
        self.generation += 1
        self.start = None
        self.go_on()

    def go_on(self) -> None:
        """Go on from what the history holds, whatever was in memory."""
        last = self.history.last
        self.asleep, self._text = True, None if last is None else (last.prompt, last.cond.static)

    def sleep(self) -> Ring:
        """Give the memory away, which is cleared; the session makes it again from its kept latents when it goes on."""
        ring, self.ring = self.ring, self.setup.ring()
        self.stream.past, self.asleep = self.ring, True
        self.decode = self.setup.projector()
        ring.clear()
        return ring

    def take(self, ring: Ring) -> None:
        """Use this memory, which is clear, from here on; before the first frame, or after `sleep`."""
        self.ring = self.stream.past = ring

    def fork(self, listen: Callable[[int], Told], ring: Ring | None = None) -> "Session":
        """Another session that goes on from here, as this one would."""
        other = Session(self.setup, listen, seed=self.seed, ring=ring)
        other.start, other.frame, other.place, other.asleep = self.start, self.frame, self.place, self.asleep
        other.random.set_state(self.random.get_state())
        other.history, other.decode, other._text = self.history.fork(), self.decode.fork(), self._text
        other.ring.become(self.ring)
        other.stream.become(self.stream)
        return other

    def _encoded(self, start: Pixels) -> Latents:
        if start.ndim != 4:
            raise ValueError(f"a start is pictures [F, H, W, 3], not {list(start.shape)}")
        latents = self.setup.world.codec.encode(start[None])
        if tuple(latents.shape[2:]) != self.setup.size:
            raise ValueError(f"the start has latents of {list(latents.shape[2:])}; here they are {self.setup.size}")
        return latents.to(self.setup.device, torch.get_default_dtype())  # as the noise is

    def _open(self, start: Latents) -> Work[Shown]:
        told, frames, random = Told(self.listen(0).prompt), start.shape[1], self.random.get_state()
        self.stream.forget()
        self.frame = self.place = 0
        for first, stop in pieces(frames, self.setup.how.chunk):
            cond = self._cond(told, stop - first)
            yield from self.stream.remember(start[:, first:stop], cond)
            self.history.add(Chunk(start[:, first:stop], cond, told.prompt, self.frame, self.place, random))
            self.frame, self.place = self.frame + stop - first, self.place + stop - first
        self.start = None
        return Shown(0, start[0], self.decode(start), None, self.generation)

    def _switch(self, switch: Switch, prompt: str | None, cond: Cond) -> Work[None]:
        if switch == "cut":
            self.stream.forget()
            self.place, self.decode = 0, self.setup.projector()
        elif switch == "recache":
            if self.history.last is not None:
                self.history.recached.append(Recache(self.frame, prompt, cond.static))
            yield from self._replay()

    def _wake(self) -> Work[None]:
        yield from self._replay()
        self.decode = self.setup.projector()
        for chunk in self.history.newest(self.setup.how.window):
            self.decode(chunk.latents)
        self.asleep = False

    def _replay(self) -> Work[None]:
        """Make the past again, from its latents: as it was, while nothing has been evicted from it."""
        self.stream.forget()
        for chunk in self.history.held(self.setup.how.window):
            yield from self.stream.remember(chunk.latents, chunk.cond, at=chunk.place)

    def _cond(self, told: Told, frames: int | None = None) -> Cond:
        """As the model is told; the text is encoded where it is another than before."""
        frames, device = frames or self.setup.how.chunk, self.setup.device
        actions = None if told.actions is None else [list(told.actions)]
        if self._text is None or self._text[0] != told.prompt:
            self._text = told.prompt, self.setup.text(told.prompt)
        per_frame = self.setup.world.pressed(1, actions, frames)
        return Cond(self._text[1], {name: value.to(device) for name, value in per_frame.items()})

    def _show(self, latents: Latents, cond: Cond, told: Told, random: Tensor) -> Shown:
        reel, frame, frames = self.decode(latents), self.frame, latents.shape[1]
        self.history.add(Chunk(latents, cond, told.prompt, frame, self.place, random))
        self.frame, self.place = frame + frames, self.place + frames
        return Shown(frame, latents[0], reel, told, self.generation)
