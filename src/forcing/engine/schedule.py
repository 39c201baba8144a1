"""Several sessions on one model: whose frames are due first is served first, and those who can share a pass do.

What a session shows does not depend on who else is served: passes are shared, pasts and noise are not. Where there is
more to do than time, every session's frames come later by the same measure, and nobody's debt grows.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import GEN_RUNNING, getgeneratorstate
from typing import Literal

import torch

from forcing.codecs import Pixels
from forcing.engine.graphs import Graphs, Recorder
from forcing.engine.passes import Model, Pass, Together, Work, run
from forcing.engine.reel import Reel
from forcing.engine.session import Making, Session, Setup, Shown, Told
from forcing.ring import Ring
from forcing.rollout import Plan
from forcing.shapes import Latents

Policy = Literal["merge", "eager", "auto"]
POLICIES: tuple[Policy, ...] = ("merge", "eager", "auto")
SESSIONS = 64
MARGIN = 1.2  # a chunk is begun so many times its usual duration before it is due
POLL = 0.001  # seconds until a device is asked again whether it has made what was asked of it


@dataclass(eq=False)
class Seat:
    """A session's place in an engine. due: when its next frames should be shown, in seconds of the engine's clock.

    credit: chunks that its viewer is ready for; None for any number.
    """

    session: Session
    due: float
    credit: int | None = None
    paused: bool = False
    usual: float = 0.0  # seconds from the beginning of a chunk to its end: the longest lately
    begun: float = 0.0
    holds: bool = False  # keys and values in memory
    reel: Reel | None = None  # shown, but perhaps not made yet: a device does what it is asked later
    asked: Pass | None = None  # the pass that it waits for
    making: Making = field(default_factory=Making)  # of what it is to show next, so far
    work: Work[Shown | None] | None = field(default=None, repr=False)

    @property
    def wants(self) -> bool:
        """Whether its viewer waits for more."""
        return not self.paused and (self.credit is None or self.credit > 0)

    def begin(self, work: Work[Shown | None]) -> Shown | None:
        self.work, self.making = work, replace(self.making, woken=self.session.asleep)
        return self._went(lambda: next(work))

    def go_on(self, v: Latents, sharing: int) -> Shown | None:
        """The velocity that it asked for, of a pass that so many sessions shared."""
        work, self.making = self.work, replace(self.making, shared=(*self.making.shared, sharing))
        assert work is not None
        return self._went(lambda: work.send(v))

    def leave(self) -> None:
        """Give up what is being made; it can be begun anew."""
        work, self.work, self.asked, self.making = self.work, None, None, Making()
        # it runs where a viewer, who is asked what to show next, closes their own session
        if work is not None and getgeneratorstate(work) != GEN_RUNNING:
            work.close()

    def _went(self, step: Callable[[], Pass]) -> Shown | None:
        try:
            self.asked = step()
        except StopIteration as done:
            self.work = self.asked = None
            making, self.making = self.making, Making()
            if done.value is None:
                self.making = Making(settled=sum(making.shared))  # of one pass
                return None
            return replace(done.value, making=making)
        except Exception:
            self.work = self.asked = None
            raise
        return None


Happened = tuple[Session, Shown | Exception]


class Full(RuntimeError):
    """There is no room for another session."""


class Engine:
    """Serve sessions by calling `tick` whenever `wait` says so; a session that fails is closed, and alone.

    sessions: how many may be open. rings: how many of them may have keys and values in memory; the others, whose turn
    comes last, make theirs again when they go on. batch: sessions that may share a pass. fps: frames a second that each
    session is shown; None for as many as can be. policy: when a chunk is settled; "merge": with the pass that begins
    the next one (most frames), "eager": at once after it was shown (soonest reaction), "auto": when idle, else merged.
    The frames are the same. recorder: how passes are recorded when it warms up, to be replayed; see `graphs`. Say how
    many rings, then: `warm` takes the memory of all of them, and records passes on each.

    It belongs to one thread.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        sessions: int = SESSIONS,
        rings: int | None = None,
        batch: int = 1,
        fps: float | None = None,
        policy: Policy = "auto",
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rings = sessions if rings is None else rings
        for name, value in (("sessions", sessions), ("rings", rings), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if fps is not None and not fps > 0:
            raise ValueError(f"fps is {fps}: it must be above 0")
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}: choose from {', '.join(POLICIES)}")
        if batch > rings:
            raise ValueError(f"batch is {batch}: only {rings} sessions have keys and values in memory")
        self.setup, self.sessions, self.batch, self.policy, self.clock = setup, sessions, batch, policy, clock
        self.period = 0.0 if fps is None else setup.how.chunk * setup.world.codec.stride[0] / fps
        self.model: Model = setup.world.model if recorder is None else Graphs(setup.world.model, recorder)
        self.seats: dict[Session, Seat] = {}
        self.ticked = False  # whether the last tick made a pass
        self._spare = [setup.ring() for _ in range(rings)]
        self._together, self._late = Together(), list[Happened]()  # what happened between two ticks

    def open(
        self,
        listen: Callable[[int], Told],
        *,
        seed: int = 0,
        start: Pixels | None = None,
        plan: Plan | None = None,
    ) -> Session:
        """A new session; see `Session`. plan: another than the others have. Full where there is no room."""
        self._room()
        return self._seated(Session(self.setup.by(plan), listen, seed=seed, start=start))

    def adopt(self, session: Session) -> Session:
        """A session that was made elsewhere, such as by `saved.loads`. Full where there is no room."""
        self._room()
        if session in self.seats:
            raise ValueError("this session is served here already")
        ring = None if session.asleep else self._ring(None)
        if ring is None:  # its memory is made again
            session.sleep()
            return self._seated(session)

        def moved(ring: Ring) -> Session:
            ring.become(session.ring)
            session.use(ring)
            return session

        return self._held(ring, moved)

    @torch.no_grad()
    def fork(self, session: Session, listen: Callable[[int], Told]) -> Session:
        """Another session that goes on from here, after the chunk in progress, whose passes are made right now.

        Full where there is no room, for keys and values either.
        """
        self._room()
        seat = self._seat(session)
        if not seat.holds:
            return self._seated(session.fork(listen))
        ring = self._ring(seat)
        if ring is None:
            raise Full("all keys and values in memory are in use")

        def forked(ring: Ring) -> Session:
            self.finish(session)
            return session.fork(listen, ring)

        other = self._held(ring, forked)
        self.seats[other].making = seat.making
        return other

    @torch.no_grad()
    def finish(self, session: Session) -> None:
        """Make what is left of the chunk in progress right now. ValueError where that fails, and closes the session."""
        seat = self._seat(session)
        while seat.asked is not None:
            self._pass([seat], self._late)
        self._seat(session)  # which has been closed, if that failed

    def close(self, session: Session) -> None:
        """Forget a session; nothing happens if it is closed already."""
        seat = self.seats.pop(session, None)
        if seat is not None:
            self._forget(session)
            seat.leave()
            self._give_back(seat)

    def pause(self, session: Session, paused: bool = True) -> None:
        """Make nothing more for it until it goes on; a chunk that has been begun is still shown."""
        seat = self._seat(session)
        seat.due = max(seat.due, self.clock()) if seat.paused and not paused else seat.due
        seat.paused = paused

    def credit(self, session: Session, chunks: int | None) -> None:
        """So many more chunks may be made for it; None for any number."""
        seat = self._seat(session)
        seat.credit = None if chunks is None else (seat.credit or 0) + chunks

    def reset(self, session: Session, *, seed: int, start: Pixels | None = None, plan: Plan | None = None) -> None:
        """Begin anew; see `Session.reset`."""
        seat = self._seat(session)
        session.reset(seed=seed, start=start, plan=plan)
        self._anew(seat)

    def back(self, session: Session, frame: int) -> None:
        """Go back; see `Session.back`."""
        seat = self._seat(session)
        session.back(frame)
        self._anew(seat)

    @torch.no_grad()
    def warm(self) -> None:
        """Make passes of every shape once, before anyone waits for them: from an empty window to a full one and on."""
        how, graphs = self.setup.how, self.model if isinstance(self.model, Graphs) else None
        _ = self.setup.digest  # which is saved with each session, and takes time
        for ring in self._spare[:1] if graphs is None else self._spare:
            session = Session(self.setup, lambda _: Told(), ring=ring)
            for full in (False, True):
                if graphs is not None:
                    graphs.recording = full
                for _ in range(2 if full else -(-how.window // how.chunk)):
                    run(self.model, session.work())  # merged with settling
                run(self.model, session.stream.settle())
                run(self.model, session.work())
            if graphs is not None:
                graphs.recording = False
                ring.clear()
            else:
                ring.drop()
        if 1 < self.batch <= len(self._spare):
            self._warm_abreast()

    def _warm_abreast(self) -> None:
        """Passes that `batch` sessions share: each chunk alone, merged with settling, and settling."""
        other = Engine(self.setup, sessions=self.batch, batch=self.batch, policy="merge")
        other.model, other._spare = self.model, self._spare[: self.batch]
        sessions = [other.open(lambda _: Told()) for _ in other._spare]
        for other.policy, chunks in (("merge", 2), ("eager", 4)):
            while min(session.frame for session in sessions) < chunks * self.setup.how.chunk:
                for _, what in other.tick():
                    if isinstance(what, Exception):
                        raise what
        for session in sessions:
            other.close(session)

    @torch.no_grad()
    def tick(self) -> list[Happened]:
        """Make one pass for those who are due first, if any is; returns what is to be shown now."""
        happened, self._late = self._late, []
        for seat in [*self.seats.values()]:
            self._look(seat, happened)
        group = self._chosen(happened)
        self.ticked = bool(group)
        if group:
            self._pass(group, happened)
        return happened

    def wait(self) -> float | None:
        """Seconds until there is something to do; None: not before someone is told something else."""
        now, busy = self.clock(), self.seats.values()
        if self._late or any(seat.asked or self._settles(seat) for seat in busy):
            return 0.0
        waits = [max(0.0, self._release(seat) - now) for seat in busy if seat.wants and seat.reel is None]
        return min([*waits, *(POLL for seat in busy if seat.reel is not None)], default=None)

    def _chosen(self, happened: list[Happened]) -> list[Seat]:
        """Seats whose passes are made as one, the most urgent first. They are told something now, and not before."""
        now = self.clock()
        ready = [seat for seat in self.seats.values() if seat.asked or self._due(seat, now)]
        group: list[Seat] = []
        settling: list[Seat] = []
        if self.policy == "eager" or not ready:
            settling = [seat for seat in self.seats.values() if not seat.asked and self._settles(seat)]
        begins = True  # as long as all that was begun can share a pass: who cannot be served now is not asked yet
        for seat in sorted(settling or ready, key=lambda seat: seat.due):
            if len(group) == self.batch:
                break
            if seat.asked is None and (begins or settling) and self._is_open(seat):
                self._begin(seat, now, happened)
            if seat.asked is None or not self._is_open(seat):
                continue
            if not group or seat.asked.shape == _shape(group):
                group.append(seat)
            else:
                begins = False
        return [seat for seat in group if seat.asked is not None and self._is_open(seat)]

    def _begin(self, seat: Seat, now: float, happened: list[Happened]) -> None:
        session, settles = seat.session, self._settles(seat) and (self.policy == "eager" or not self._due(seat, now))
        if not seat.holds:
            ring = self._ring(seat)
            if ring is None:  # all are in use just now
                return
            session.use(ring)
            seat.holds = True
        seat.begun = seat.begun if settles else now
        self._step(seat, lambda: seat.begin(session.stream.settle() if settles else session.work()), happened)

    def _pass(self, group: Sequence[Seat], happened: list[Happened]) -> None:
        passes = [seat.asked for seat in group if seat.asked is not None]
        sharing = len(passes)
        try:
            made: list[Latents | Exception] = [*self._together(self.model, passes)]
        except Exception as failed:  # one of them may be to blame: the others go on
            made = [_alone(self.model, each) for each in passes] if sharing > 1 else [failed]
            sharing = 1
        for seat, v in zip(group, made, strict=True):
            if isinstance(v, Exception):
                self._failed(seat, v, happened)
            else:
                self._step(seat, lambda seat=seat, v=v: seat.go_on(v, sharing), happened)

    def _step(self, seat: Seat, step: Callable[[], Shown | None], happened: list[Happened]) -> None:
        try:
            shown = step()
        except Exception as failed:
            self._failed(seat, failed, happened)
            return
        if shown is not None:
            seat.due = max(seat.due + self.period, self.clock())  # who is late is not made to catch up more than that
            seat.credit = None if seat.credit is None else seat.credit - 1
            seat.reel = shown.reel
            self._look(seat, happened)
            if self._is_open(seat):
                happened.append((seat.session, shown))

    def _look(self, seat: Seat, happened: list[Happened]) -> None:
        """Whether its newest pictures are there by now, and what they are."""
        if seat.reel is not None and seat.reel.ready:
            reel, seat.reel = seat.reel, None
            seat.usual = max(self.clock() - seat.begun, 0.9 * seat.usual)
            if not reel.fine:
                self._failed(seat, ValueError("the frames are not finite"), happened)

    def _failed(self, seat: Seat, failed: Exception, happened: list[Happened]) -> None:
        self.close(seat.session)
        happened.append((seat.session, failed))

    def _settles(self, seat: Seat) -> bool:
        """Whether its newest chunk is to be settled before it goes on."""
        return self.policy != "merge" and seat.work is None and seat.session.stream.waits and not seat.session.asleep

    def _due(self, seat: Seat, now: float) -> bool:
        return seat.wants and seat.reel is None and self._release(seat) <= now

    def _release(self, seat: Seat) -> float:
        """When to begin its next chunk: not before it must be, for its viewer may change their mind."""
        return seat.due - min(self.period, MARGIN * seat.usual)

    def _room(self) -> None:
        if len(self.seats) >= self.sessions:
            raise Full(f"all {self.sessions} sessions are taken")

    def _seat(self, session: Session) -> Seat:
        if session not in self.seats:
            raise ValueError("this session is closed")
        return self.seats[session]

    def _seated(self, session: Session) -> Session:
        self.seats[session] = Seat(session, self.clock())
        return session

    def _anew(self, seat: Seat) -> None:
        """What its session shows next has nothing to do with what it has shown."""
        self._forget(seat.session)
        seat.leave()
        seat.reel, seat.due = None, self.clock()

    def _forget(self, session: Session) -> None:
        """What happened to it between two ticks is nobody's business any more."""
        self._late[:] = [(each, what) for each, what in self._late if each is not session]

    def _is_open(self, seat: Seat) -> bool:
        """Whether it is served still: who is asked what to show next may have closed anyone."""
        return self.seats.get(seat.session) is seat

    def _held(self, ring: Ring, made: Callable[[Ring], Session]) -> Session:
        """A session made with a ring, which is free again if that fails."""
        try:
            session = self._seated(made(ring))
        except BaseException:
            self._spare.append(ring)
            raise
        self.seats[session].holds = True
        return session

    def _ring(self, wants: Seat | None) -> Ring | None:
        """A ring that is free, if need be that of the one who needs it last."""
        if not self._spare:
            idle = (seat for seat in self.seats.values() if seat.holds and seat.work is None and seat is not wants)
            least = min(idle, key=lambda seat: (seat.wants, -seat.due), default=None)
            if least is not None:
                self._give_back(least)
        return self._spare.pop() if self._spare else None

    def _give_back(self, seat: Seat) -> None:
        if seat.holds:
            ring, seat.holds = seat.session.sleep(), False
            if isinstance(self.model, Graphs):
                self.model.forget(ring)  # but not the memory, which it replays on
            else:
                ring.drop()
            self._spare.append(ring)


def _shape(group: Sequence[Seat]) -> tuple[object, ...] | None:
    return None if group[0].asked is None else group[0].asked.shape


def _alone(model: Model, asked: Pass) -> Latents | Exception:
    try:
        return model(asked.x, asked.sigma, asked.cond, asked.layout)
    except Exception as failed:
        return failed
