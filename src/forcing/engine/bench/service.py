"""What viewers notice: how soon they see something, how evenly frames come, how many viewers fit, whether it lasts."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from forcing.engine.bench.trial import UNSEEN, Row, Trial, fill, percentiles, ratio, resident, viewer
from forcing.engine.graphs import Recorder
from forcing.engine.schedule import Engine, Policy
from forcing.engine.session import Session, Setup, Shown, Told

MINUTE = 60.0
POLICIES: tuple[Policy, ...] = ("merge", "eager")  # that latency is measured under


def serve(engine: Engine, chunks: int, seen: Callable[[Session, Shown], None] = lambda *_: None) -> None:
    """Show so many chunks, with all their pictures; what goes wrong in a session is raised."""
    shown = 0
    while shown < chunks:
        for session, what in engine.tick():
            if isinstance(what, Exception):
                raise what
            what.reel.take()
            seen(session, what)
            shown += 1
        time.sleep(engine.wait() or 0.0)


def begun(engine: Engine, listen: Callable[[int], Told], seed: int) -> Session:
    """A new session whose window is full; nobody else may be served meanwhile."""
    session = engine.open(listen, seed=seed)
    serve(engine, 1)
    fill(session)
    seat = engine.seats[session]
    seat.usual, seat.reel = 0.0, None  # a first chunk takes longer than those to come
    return session


class Watched:
    """A paced engine whose viewer's every chunk is timed: from being asked to being seen, and from one to the next."""

    def __init__(self, setup: Setup, trial: Trial, policy: Policy, fps: float, recorder: Recorder | None) -> None:
        self.setup, self.trial, self.fps = setup, trial, fps
        self.engine = Engine(setup, sessions=2, fps=fps, policy=policy, recorder=recorder)
        if recorder is not None:
            self.engine.warm()
        self.first: list[float] = []
        self.action: list[float] = []
        self.between: list[float] = []
        self._asked: dict[int, float] = {}
        self._tell = viewer(setup, trial.seed)
        self.session = begun(self.engine, self._listen, trial.seed)
        self._pause()

    def turn(self) -> None:
        """A viewer who comes and goes, then some time of the one who stays."""
        began = time.monotonic()
        other = self.engine.open(viewer(self.setup, self.trial.seed), seed=self.trial.seed)
        serve(self.engine, 1)
        self.first.append(time.monotonic() - began)
        self.engine.close(other)
        self.engine.pause(self.session, False)
        seen: list[float] = []

        def see(_: Session, shown: Shown) -> None:
            seen.append(time.monotonic())
            self.action.append(seen[-1] - self._asked.pop(shown.frame))

        serve(self.engine, 2 + self.trial.chunks(self.setup), see)
        # the first of them could not be begun ahead of its time, so that the second comes sooner after it
        self.between += [after - before for before, after in pairwise(seen[1:])]
        self._pause()

    def row(self) -> Row:
        """Milliseconds from opening to the first frame, from being asked to being seen, and between two chunks."""
        return {
            "steps": len(self.setup.how.plan.rest),
            "chunk": self.setup.how.chunk,
            "policy": self.engine.policy,
            "fps": self.fps,
            "first": percentiles(self.first, 50),
            "action": percentiles(self.action, 50, 95),
            "between": percentiles(self.between, 50, 95, 99),
            "counts": {"first": len(self.first), "action": len(self.action), "between": len(self.between)},
        }

    def _listen(self, frame: int) -> Told:
        self._asked[frame] = time.monotonic()
        return self._tell(frame)

    def _pause(self) -> None:
        self.engine.pause(self.session)
        while self.engine.wait() is not None:  # the last chunk may still have to be settled
            self.engine.tick()


def latency(paced: Sequence[tuple[Setup, float]], trial: Trial, recorder: Recorder | None = None) -> list[Row]:
    """First frames, reactions and intervals of each setup, so many frames a second, under either policy."""
    watched = [Watched(setup, trial, policy, fps, recorder) for setup, fps in paced for policy in POLICIES]
    names = [f"{len(each.setup.how.plan.rest)} steps, {each.engine.policy}" for each in watched]
    trial.race({name: each.turn for name, each in zip(names, watched, strict=True)}, paced[0][0].device)
    return [each.row() for each in watched]


def sharing(
    setup: Setup, counts: Sequence[int], trial: Trial, *, batch: int, policy: Policy, recorder: Recorder | None = None
) -> list[Row]:
    """So many sessions on one engine, as fast as it can and without pictures, beside one session.

    evenness: frames of the session that got fewest, over those of the one that got most.
    """
    blind, chunks = replace(setup, decoder=lambda: UNSEEN), trial.chunks(setup)
    engines: dict[int, Engine] = {}
    shown: dict[int, dict[Session, int]] = {}
    for count in sorted({1, *counts}):
        engine = Engine(blind, sessions=count, batch=min(batch, count), policy=policy, recorder=recorder)
        if recorder is not None:
            engine.warm()
        for seed in range(trial.seed, trial.seed + count):
            engine.pause(begun(engine, viewer(blind, seed), seed))
        for session in engine.seats:
            engine.pause(session, False)
        engines[count], shown[count] = engine, dict.fromkeys(engine.seats, 0)

    def turn(count: int) -> None:
        def see(session: Session, _: Shown) -> None:
            shown[count][session] += 1

        serve(engines[count], count * chunks, see)

    took = trial.race({str(count): lambda count=count: turn(count) for count in engines}, setup.device)
    return [
        {
            "steps": len(setup.how.plan.rest),
            "chunk": setup.how.chunk,
            "sessions": count,
            "batch": engine.batch,
            "policy": policy,
            "ratio": count * ratio(took["1"], took[str(count)]),
            "evenness": min(shown[count].values()) / max(shown[count].values()),
            "frames/s": count * chunks * setup.how.chunk / median(took[str(count)]),
        }
        for count, engine in engines.items()
    ]


def soak(setup: Setup, seconds: float, trial: Trial, *, policy: Policy, tell: Callable[[float], None]) -> Row:
    """One session with pictures for so long, as fast as it can. tell: how many seconds have passed.

    drift: p95 of the last full minute over that of the first; None where there are not two.
    """
    engine = Engine(setup, sessions=1, policy=policy)
    begun(engine, viewer(setup, trial.seed), trial.seed)
    gaps: dict[int, list[float]] = defaultdict(list)  # by minute
    memory: dict[int, float] = {}
    began = before = time.monotonic()
    while before - began < seconds:
        serve(engine, 1)
        now = time.monotonic()
        minute = int((now - began) // MINUTE)
        gaps[minute].append(now - before)
        memory[minute] = resident(setup.device)
        before = now
        tell(now - began)
    spread = {minute: percentiles(each, 50, 95, 99) for minute, each in gaps.items()}
    whole = [each["p95"] for minute, each in spread.items() if (minute + 1) * MINUTE <= before - began]
    return {
        "seconds": before - began,
        "steps": len(setup.how.plan.rest),
        "minutes": [{"chunks": len(gaps[minute]), **spread[minute], "MB": memory[minute]} for minute in gaps],
        "drift": whole[-1] / whole[0] if len(whole) > 1 else None,
    }
