"""Who else is served changes nothing of what a session shows; time is shared fairly; nothing is left behind."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_toys import PLANS, Changed, pictures, setup, told, world
from test_session import close, plainly, sizes

from forcing.engine.graphs import by_hand
from forcing.engine.reel import Reel
from forcing.engine.schedule import Engine
from forcing.engine.session import Told


class Clock:
    """Time that passes only when someone works or waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Paid(Changed):
    """A model whose passes take time."""

    def __init__(self, model, clock: Clock, seconds: float) -> None:
        super().__init__(model, self.paid)
        self.clock, self.seconds, self.batches = clock, seconds, []

    def paid(self, model, x, *rest):
        self.clock.now += self.seconds
        self.batches.append(tuple(x.shape[:2]))
        return model(x, *rest)


def serve(engine: Engine, ticks: int, shown: dict) -> None:
    for _ in range(ticks):
        for session, what in engine.tick():
            if isinstance(what, Exception):
                raise what
            shown.setdefault(session, []).append(what.latents)


@sizes
@pytest.mark.parametrize("plan", ["1 step", "2 steps", "4 steps"])
@pytest.mark.parametrize("policy", ["merge", "eager", "auto"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_session_shows_the_same_whoever_else_is_served(double, plan, chunk, window, sink, policy, batch):
    made, shown = setup(world(), plan, chunk, window, sink), {}
    engine = Engine(made, batch=batch, policy=policy)
    # they join and leave at different times, are told different things, and one goes on from pictures
    viewers = [told(chunk, 0), told(chunk, 1, switch=6), told(chunk, 2), told(chunk, 3, switch=3, how="cut")]
    first = engine.open(viewers[0], seed=0)
    serve(engine, 5, shown)
    second = engine.open(viewers[1], seed=1)
    third = engine.open(viewers[2], seed=2, start=pictures(1))
    serve(engine, 11, shown)
    engine.close(first)
    fourth = engine.open(viewers[3], seed=3)
    serve(engine, 30, shown)
    for session, seed, start in ((first, 0, None), (second, 1, None), (third, 2, pictures(1))):
        out = torch.cat(shown[session])
        assert len(out) >= 2 * chunk
        assert close(out, plainly(made, viewers[seed], len(out), seed, start))
    alone = {}
    other = Engine(made, policy="merge")
    last = other.open(viewers[3], seed=3)
    serve(other, 60, alone)
    out = torch.cat(shown[fourth])
    assert close(out, torch.cat(alone[last])[: len(out)])


def test_sessions_of_one_shape_share_a_pass(double):
    made, clock = setup(world(), "1 step"), Clock()
    made.world.model = paid = Paid(made.world.model, clock, 0.01)
    engine, shown = Engine(made, batch=4, policy="merge"), {}
    for seed in range(4):
        engine.open(told(1, seed), seed=seed)
    serve(engine, 20, shown)
    assert set(paid.batches) == {(4, 1), (4, 2)} and [len(each) for each in shown.values()] == [20] * 4


def test_guided_sessions_share_a_pass(double):
    made, shown = setup(world(), "2 steps", guidance=2.0), {}
    engine = Engine(made, batch=2)
    sessions = [engine.open(told(1, seed, switch=3 + seed), seed=seed) for seed in range(2)]
    serve(engine, 30, shown)
    for seed, session in enumerate(sessions):
        out = torch.cat(shown[session])
        assert len(out) > 8 and close(out, plainly(made, told(1, seed, switch=3 + seed), len(out), seed))


def test_the_policy_can_change_with_every_tick(double):
    made, shown = setup(world(), "2 steps"), {}
    engine = Engine(made, batch=2)
    session = engine.open(told(1), seed=0)
    for tick in range(40):
        engine.policy = ("merge", "eager", "auto")[tick % 3]
        serve(engine, 1, shown)
    out = torch.cat(shown[session])
    assert len(out) > 8 and close(out, plainly(made, told(1), len(out)))


def test_a_chunk_is_begun_just_before_it_is_due():
    made, clock, asked = setup(world(), "1 step"), Clock(), []
    made.world.model = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, fps=10.0, clock=clock)  # a frame in 0.1 s
    engine.open(lambda frame: asked.append(clock.now) or Told("day"))
    shown = []
    while len(shown) < 20:
        if engine.tick():
            shown.append(clock.now)
        wait = engine.wait()
        assert wait is not None
        clock.now += wait
    gaps = np.diff(shown[2:])
    assert np.allclose(gaps, 0.1, atol=0.012) and abs(gaps.mean() - 0.1) < 1e-3  # being early does not add up
    ages = np.array(shown[5:]) - np.array(asked[5:])
    assert (ages < 0.03).all()  # told late, not a period before


@pytest.mark.parametrize(("viewers", "stretch"), [(2, 1.0), (10, 1.0), (20, 2.0), (40, 4.0)])
def test_overload_stretches_all_alike(viewers, stretch):
    made, clock = setup(world(), "1 step"), Clock()
    made.world.model = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, fps=10.0, clock=clock, policy="auto")
    shown = {engine.open(told(1, seed), seed=seed): [] for seed in range(viewers)}
    while clock.now < 12:
        for session, _ in engine.tick():
            shown[session].append(clock.now)
        clock.now += engine.wait() or 0.0
    early, late = (
        np.array([np.mean(np.diff([at for at in each if start < at <= stop])) for each in shown.values()])
        for start, stop in ((2, 6), (8, 12))
    )
    for gaps in (early, late):  # and it does not grow
        assert np.allclose(gaps, 0.1 * stretch, rtol=0.06)
    most = [np.max(np.diff([at for at in each if at > 2])) for each in shown.values()]
    assert max(most) < 0.1 * stretch * 1.5 + 0.02


def test_idle_time_settles():
    made, clock = setup(world(), "1 step"), Clock()
    made.world.model = paid = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, fps=10.0, clock=clock)
    engine.open(told(1))
    for _ in range(40):
        engine.tick()
        clock.now += engine.wait() or 0.0
    assert set(paid.batches) == {(1, 1)}  # none is merged: each chunk's first pass is short


def test_pause_and_credit():
    engine, shown = Engine(setup(world(), "1 step")), {}
    one, two = (engine.open(told(1, seed), seed=seed) for seed in range(2))
    engine.pause(one)
    engine.credit(two, 3)
    serve(engine, 20, shown)
    assert one not in shown and len(shown[two]) == 3 and engine.wait() is None
    engine.pause(one, False)
    engine.credit(two, 2)
    serve(engine, 12, shown)
    assert len(shown[two]) == 5 and len(shown[one]) >= 5


def test_fewer_memories_than_sessions(double):
    made, shown = setup(world(), "2 steps", 1, 24), {}
    engine = Engine(made, sessions=5, rings=2, batch=2)
    sessions = [engine.open(told(1, seed, switch=4), seed=seed) for seed in range(5)]
    serve(engine, 150, shown)
    for seed, session in enumerate(sessions):
        out = torch.cat(shown[session])[:20]
        assert len(out) > 5 and close(out, plainly(made, told(1, seed, switch=4), len(out), seed))
    assert sum(seat.session.ring._store is not None for seat in engine.seats.values()) <= 2


def test_a_fork_is_served_too(double):
    made, shown = setup(world(), "2 steps", 1, 5, 1), {}
    engine = Engine(made, sessions=3, rings=2, batch=2)
    one = engine.open(told(1), seed=0)
    serve(engine, 9, shown)
    other = engine.fork(one, told(1))
    serve(engine, 30, shown)
    begun = other.frame - len(shown[other])
    expected = plainly(made, told(1), 20)
    assert begun > 2 and close(torch.cat(shown[other])[: 20 - begun], expected[begun : begun + len(shown[other])])
    assert close(torch.cat(shown[one])[:20], expected[: len(shown[one])])


def test_reset_and_back_are_served_at_once():
    made, clock, shown = setup(world(), "1 step"), Clock(), {}
    engine = Engine(made, clock=clock, fps=0.1)
    session = engine.open(told(1))
    for anew in (lambda: engine.reset(session, seed=1), lambda: engine.back(session, 0)):
        serve(engine, 3, shown)
        assert engine.wait() > 5
        anew()
        assert engine.wait() == 0.0


def test_a_pause_is_no_debt():
    made, clock, shown = setup(world(), "1 step"), Clock(), {}
    engine = Engine(made, clock=clock, fps=1.0)
    session = engine.open(told(1))
    serve(engine, 3, shown)
    engine.pause(session)
    clock.now = 100.0
    engine.pause(session, False)
    serve(engine, 3, shown)
    assert len(shown[session]) == 2 and engine.wait() == pytest.approx(1.0)


def test_who_is_due_last_gives_memory_back():
    made, clock, shown = setup(world(), "1 step", 1, 12), Clock(), {}
    made.world.model = paid = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, sessions=5, rings=4, clock=clock, policy="merge")
    sessions = [engine.open(told(1, seed), seed=seed) for seed in range(5)]
    serve(engine, 300, shown)
    before = sum(map(len, shown.values()))
    serve(engine, 300, shown)
    assert 300 / (sum(map(len, shown.values())) - before) < 5  # passes a chunk; in any other order it would be 12
    engine.pause(sessions[2])  # whose memory is needed least
    serve(engine, 50, shown)
    paid.batches.clear()
    before = sum(map(len, shown.values()))
    serve(engine, 40, shown)
    assert sum(map(len, shown.values())) - before == len(paid.batches) == 40


@pytest.mark.parametrize(("steps", "longest"), [(1, 0.05), (4, 0.1)])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_nobody_is_asked_long_before_their_turn(batch, steps, longest):
    made, clock, asked, ages = setup(world(), "1 step"), Clock(), {}, []
    made.world.model = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, batch=batch, fps=10.0, clock=clock)

    def viewer(number: int):
        def listen(frame: int) -> Told:
            asked[number, frame] = clock.now
            return Told(("day", "night")[frame // (3 + number % 5) % 2], [0])  # whose passes differ now and then

        return listen

    plans = (None, PLANS["1 step" if steps == 1 else "4 steps"])
    numbers = {engine.open(viewer(number), seed=number, plan=plans[number % 2]): number for number in range(20)}
    while clock.now < 4:
        ages += [clock.now - asked.pop((numbers[session], shown.frame)) for session, shown in engine.tick()]
        clock.now += engine.wait() or 0.0
    assert len(ages) > 100 and max(ages) < longest


class Later:
    """A device that has not done yet what it was asked to."""

    def __init__(self) -> None:
        self.there = False

    def query(self) -> bool:
        return self.there

    def synchronize(self) -> None:
        raise AssertionError("nobody should wait")


@pytest.mark.parametrize("fine", [True, False])
def test_a_device_is_not_asked_for_more_than_it_makes(monkeypatch, fine):
    made, clock, done, asked = setup(world(), "1 step"), Clock(), [], []

    def reel(latents) -> Reel:
        done.append(Later())
        return Reel(torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.tensor(fine), done[-1])

    monkeypatch.setattr(type(made), "projector", lambda self: reel)
    engine = Engine(made, clock=clock, policy="merge")
    session = engine.open(lambda frame: asked.append(frame) or Told("day"))
    ((_, what),) = engine.tick()
    assert what.frame == 0 and not what.reel.ready
    for _ in range(5):
        assert engine.tick() == [] and 0 < engine.wait() < 0.01
        clock.now += engine.wait()
    assert asked == [0]
    done[0].there = True
    ((same, what),) = engine.tick()
    assert same is session
    if fine:
        assert what.frame == 1 and engine.seats[session].usual == pytest.approx(0.005)
    else:
        assert isinstance(what, ValueError) and not engine.seats


@pytest.mark.parametrize("recorder", [None, by_hand])
def test_every_shape_of_pass_is_made_before_anyone_waits(recorder):
    made, clock, shown = setup(world(), "2 steps"), Clock(), {}
    made.world.model = paid = Paid(made.world.model, clock, 0.01)
    engine = Engine(made, sessions=3, batch=3, recorder=recorder)
    engine.warm()
    assert {(1, 1), (1, 2), (3, 1), (3, 2)} <= set(paid.batches) and len(engine._spare) == 3 and not engine.seats
    assert recorder or not any(ring.nbytes for ring in engine._spare)
    warm = set(paid.batches)
    paid.batches.clear()
    for seed in range(3):
        engine.open(told(1, seed))
    serve(engine, 20, shown)
    assert set(paid.batches) <= warm


def test_who_goes_together_again_is_put_together_once(double):
    made, static = setup(world(), "2 steps"), []
    model = Changed(made.world.model, lambda model, x, *rest: static.append(rest[1].static["text"]) or model(x, *rest))
    engine, shown = Engine(made, batch=2), {}
    engine.model = model
    sessions = [engine.open(told(1, seed, switch=4 + seed), seed=seed) for seed in range(2)]
    serve(engine, 40, shown)
    shared = [each for each in static if len(each) == 2]
    assert len(shared) > 20 and len({id(each) for each in shared}) < 6
    for seed, session in enumerate(sessions):
        out = torch.cat(shown[session])
        assert close(out, plainly(made, told(1, seed, switch=4 + seed), len(out), seed))


def test_one_that_fails_takes_no_one_along(double):
    made, shown, failed = setup(world(), "2 steps"), {}, []
    engine = Engine(made, batch=3)

    def bad(frame: int) -> Told:
        return Told("day" if frame < 3 else "dusk")

    def sick(model, x, *rest):
        if x.isnan().any():
            raise MemoryError("the pass failed")
        return model(x, *rest)

    engine.model = Changed(made.world.model, sick)
    good = engine.open(told(1), seed=0)
    engine.open(bad, seed=1)
    ill = engine.open(told(1, 2), seed=2)
    for tick in range(40):
        if tick == 12:
            clean, cond = ill.stream._waiting
            ill.stream._waiting = clean * torch.nan, cond
        for session, what in engine.tick():
            if isinstance(what, Exception):
                failed.append(type(what))
            else:
                shown.setdefault(session, []).append(what.latents)
    out = torch.cat(shown[good])
    assert sorted(each.__name__ for each in failed) == ["MemoryError", "ValueError"] and list(engine.seats) == [good]
    assert close(out, plainly(made, told(1), len(out)))


def test_numbers_that_are_not_finite_close_the_session():
    made = setup(world(), "1 step")
    made.world.model = Changed(made.world.model, lambda model, *args: model(*args) * torch.nan)
    engine = Engine(made)
    engine.open(told(1))
    ((_, what),) = engine.tick()
    assert isinstance(what, ValueError) and "not finite" in str(what) and not engine.seats


def test_what_cannot_be_is_named():
    made = setup(world())
    for wrong in ({"sessions": 0}, {"rings": 0}, {"batch": 0}, {"fps": 0.0}, {"fps": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Engine(made, **wrong)
    with pytest.raises(ValueError, match="batch is 4: only 2"):
        Engine(made, sessions=2, batch=4)
    engine = Engine(made, sessions=1)
    session = engine.open(told(1))
    with pytest.raises(RuntimeError, match="all 1 sessions are taken"):
        engine.open(told(1))
    engine.close(session)
    engine.close(session)
    with pytest.raises(ValueError, match="closed"):
        engine.pause(session)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fifty_sessions_twenty_times_leave_nothing_behind():
    made = setup(world(), "2 steps", 1, 12)
    engine, counts = Engine(made, sessions=50, batch=8), []
    for _ in range(20):
        sessions = [engine.open(told(1, seed), seed=seed, start=pictures(1)) for seed in range(50)]
        for _ in range(16):
            engine.tick()
        for session in sessions:
            engine.close(session)
        del sessions, session
        gc.collect()
        tensors = sum(type(each) is torch.Tensor for each in gc.get_objects())
        counts.append((resident(), tensors, threading.active_count(), len(os.listdir("/proc/self/fd"))))
    memory, *rest = zip(*counts, strict=True)
    assert all(len(set(each[2:])) == 1 for each in rest)
    assert memory[-1] - memory[4] < 4 << 20, [each >> 20 for each in memory]
