"""One viewer of a world, without sockets: told something before each chunk, it shows the next frames, without end."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
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
TEXTS = 16  # prompts whose texts an engine keeps


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
class Making:
    """How frames came about, as far as their last digits depend on it: sums of other shapes round differently.

    woken: their past was made again from latents. settled: sessions that shared the pass in which the chunk before was
    settled, 0 where it was not by itself. shared: sessions in each of their own passes.
    """

    woken: bool = False
    settled: int = 0
    shared: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shown:
    """Frames as they are made. frame: number of the first latent one. told: None for those that were given.

    latents: [F, channels, height, width]. generation: which beginning they follow. making: as an engine made them.
    """

    frame: int
    latents: Tensor
    reel: Reel
    told: Told | None
    generation: int
    making: Making = Making()

    @property
    def pictures(self) -> Pixels:
        """uint8 [F', H, W, 3]; waits where they are still being decoded. ValueError where they are not finite."""
        return self.reel.take()


class Shared:
    """What is made once for all sessions of a world: texts of the newest prompts, and its digest, which takes time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._texts: OrderedDict[str | None, Mapping[str, Tensor]] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        return self.world.digest

    def text(self, prompt: str | None, device: torch.device) -> Mapping[str, Tensor]:
        """The same tensors whoever asks: what is told the same is not kept twice, nor taken for something new."""
        if prompt not in self._texts:
            self.keep(prompt, self.world.cond([prompt], None, 1).static, device)
        self._texts.move_to_end(prompt)
        self._trim()
        return self._texts[prompt]

    def knows(self, prompt: str | None) -> bool:
        """Whether its text is there at once."""
        return prompt in self._texts

    def keep(self, prompt: str | None, static: Mapping[str, Tensor], device: torch.device) -> None:
        """The text of a prompt, which was made elsewhere."""
        self._texts[prompt] = {name: value.to(device) for name, value in static.items()}
        self._trim()

    def _trim(self) -> None:
        while len(self._texts) > TEXTS:
            self._texts.popitem(last=False)


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
    shared: Shared | None = field(default=None, repr=False, compare=False)  # made here, and of this world

    def __post_init__(self) -> None:
        if self.shared is None or self.shared.world is not self.world:
            object.__setattr__(self, "shared", Shared(self.world))

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
        assert self.shared is not None
        return self.shared.text(prompt, self.device)

    @property
    def digest(self) -> str:
        """Identifies the world; see `World.digest`."""
        assert self.shared is not None
        return self.shared.digest

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
        """Begin anew, as a new generation; by another plan, if one is given. After an error it is as it was."""
        if seed < 0:
            raise ValueError(f"seed is {seed}: it must be 0 or more")
        latents = None if start is None else self._encoded(start)
        self.setup = self.setup.by(plan)
        how, world = self.setup.how, self.setup.world
        self.seed, self.start = seed, latents
        self.random = seeded(seed, "generate", device=str(self.setup.device))
        self.ring.clear()
        shape = (1, how.chunk, *self.setup.size)
        self.stream = Stream(world.model, how, shape, self.ring, self.random, world.uncond, self.setup.savings)
        self.history = History(self.setup.keep, how.sink)
        self.decode = self.setup.projector()
        self.frame = self.place = 0  # number of the next frame: in the session, and in the scene
        self.given = 0  # frames that it began with, once they have been shown
        self.generation += 1
        self.asleep = self.blind = False  # whether the past, and the decoder's memory, must be made again
        self._text: tuple[str | None, Mapping[str, Tensor]] | None = None  # of the newest chunk

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
        cond, random, generation = self._cond(told), self.random.get_state(), self.generation
        switch = told.switch if before is not None and before[0] != told.prompt else None
        recache = Recache(self.frame, told.prompt, cond.static) if switch == "recache" else None
        try:
            if switch == "cut":
                self.stream.forget()
            elif recache is not None:
                yield from self._replay(recache)
            latents = yield from self.stream.chunk(cond)
            shown = self._show(latents, cond, told, random, cut=switch == "cut")
        except BaseException:  # also where nobody wants it any more
            if self.generation == generation:  # else it has begun anew, or gone back, and nothing is left to undo
                self.random.set_state(random)
                self.asleep = True
            raise
        if recache is not None:
            self.history.recached.append(recache)
        return shown

    def back(self, frame: int) -> None:
        """Go back to before the chunk that began at `frame`: what comes next is what came then, if it is told the same.

        ValueError where that is no longer kept. What was evicted from the window until then is not known any more.
        """
        if 0 < frame < self.given:
            raise ValueError(f"frame {frame} is one of the {self.given} that were given: go back to 0")
        given = [chunk.latents for chunk in self.history if chunk.frame < self.given]
        chunk = self.history.back(frame)
        self.start = torch.cat(given, 1) if frame < self.given else None
        self.frame, self.place = chunk.frame, chunk.place
        self.random.set_state(chunk.random)
        self.generation += 1
        self.go_on()

    def go_on(self) -> None:
        """Go on from what the history holds, whatever was in memory."""
        last = self.history.last
        self.asleep = self.blind = True
        self._text = None if last is None else (last.prompt, last.cond.static)
        if last is not None:  # which may be of another scene than what was gone back from
            self.place = last.place + last.frames

    def sleep(self) -> Ring:
        """Give the memory away, which is cleared; the session makes it again from its kept latents when it goes on."""
        ring, self.ring = self.ring, self.setup.ring()
        self.stream.past, self.asleep, self.blind = self.ring, True, True
        self.decode = self.setup.projector()
        ring.clear()
        return ring

    def use(self, ring: Ring) -> None:
        """Use this memory from here on: it is clear, and so is the session's own, or it holds what that held."""
        self.ring = self.stream.past = ring

    def fork(self, listen: Callable[[int], Told], ring: Ring | None = None) -> "Session":
        """Another session that goes on from here, as this one would; not while a chunk is being made."""
        other = Session(self.setup, listen, seed=self.seed, ring=ring)
        other.start, other.frame, other.place, other.given = self.start, self.frame, self.place, self.given
        other.asleep, other.blind = self.asleep, self.blind
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
        history = History(self.setup.keep, self.setup.how.sink)
        self.stream.forget()
        for first, stop in pieces(frames, self.setup.how.chunk):
            cond = self._cond(told, stop - first)
            yield from self.stream.remember(start[:, first:stop], cond)
            history.add(Chunk(start[:, first:stop], cond, told.prompt, first, first, random))
        reel = self.decode(start)
        self.history, self.start, self._text = history, None, (told.prompt, self.setup.text(told.prompt))
        self.frame = self.place = self.given = frames
        return Shown(0, start[0], reel, None, self.generation)

    def _wake(self) -> Work[None]:
        yield from self._replay()
        if self.blind:
            self.decode = self.setup.projector()
            for chunk in self.history.newest(self.setup.how.window):
                self.decode(chunk.latents)
        self.asleep = self.blind = False

    def _replay(self, recache: Recache | None = None) -> Work[None]:
        """Make the past again, from its latents: as it was, while nothing has been evicted from it."""
        self.stream.forget()
        for chunk in self.history.held(self.setup.how.window, recache):
            yield from self.stream.remember(chunk.latents, chunk.cond, at=chunk.place)

    def _cond(self, told: Told, frames: int | None = None) -> Cond:
        """As the model is told; the text is that of the newest chunk, where it says the same."""
        frames, device = frames or self.setup.how.chunk, self.setup.device
        actions = None if told.actions is None else [list(told.actions)]
        per_frame, text = self.setup.world.pressed(1, actions, frames), self._text
        static = text[1] if text is not None and text[0] == told.prompt else self.setup.text(told.prompt)
        return Cond(static, {name: value.to(device, non_blocking=True) for name, value in per_frame.items()})

    def _show(self, latents: Latents, cond: Cond, told: Told, random: Tensor, *, cut: bool) -> Shown:
        place, decode = (0, self.setup.projector()) if cut else (self.place, self.decode)
        reel, frame, frames = decode(latents), self.frame, latents.shape[1]
        self.history.add(Chunk(latents, cond, told.prompt, frame, place, random))
        self.frame, self.place, self.decode = frame + frames, place + frames, decode
        self._text = told.prompt, cond.static
        return Shown(frame, latents[0], reel, told, self.generation)
