"""What becomes of a session that is served: it is forked, begun anew, gone back with, adopted or closed."""

import pytest
import torch
from engine_toys import Changed, setup, told, world
from test_schedule import Clock, serve
from test_session import close, plainly

from forcing.engine.schedule import Engine
from forcing.engine.session import Session, Told
from forcing.ring import Ring


def failing(*_):
    raise MemoryError("there is no more")


@pytest.mark.parametrize("rings", [1, 2])
def test_a_fork_waits_for_the_chunk_in_progress(double, rings):
    made, shown, other = setup(world(), "2 steps", 1, 4), {}, None
    engine = Engine(made, sessions=2, rings=rings, policy="merge")
    one = engine.open(told(1), seed=0)
    serve(engine, 41, shown)  # frames have been evicted, and a chunk has been begun
    assert engine.seats[one].work is not None
    if rings == 1:
        with pytest.raises(RuntimeError, match="in use"):
            engine.fork(one, told(1))
    else:
        other = engine.fork(one, told(1))
        for session in (one, other):
            engine.pause(session)
        assert engine.wait() == 0.0  # the chunk that was finished waits to be shown
        for session in (one, other):
            engine.pause(session, False)
    begun = one.frame
    serve(engine, 30, shown)
    expected = plainly(made, told(1), 40)
    assert close(torch.cat(shown[one]), expected[: len(shown[one])])
    assert other is None or close(torch.cat(shown[other]), expected[begun : begun + len(shown[other])])


def test_a_fork_that_fails_leaves_no_memory_behind(monkeypatch):
    made, shown = setup(world(), "2 steps"), {}
    engine = Engine(made, sessions=3)
    one, two = engine.open(told(1)), engine.open(told(1))
    serve(engine, 20, shown)
    with monkeypatch.context() as patch:
        patch.setattr(Ring, "become", failing)
        with pytest.raises(MemoryError):
            engine.fork(one, told(1))
    serve(engine, 1, shown)
    begun = next(seat.session for seat in engine.seats.values() if seat.work is not None)
    engine.model = Changed(made.world.model, failing)
    with pytest.raises(ValueError, match="closed"):
        engine.fork(begun, told(1))
    ((session, what),) = [each for each in engine.tick() if each[0] is begun]
    assert session not in engine.seats and isinstance(what, MemoryError)
    for each in (one, two):
        engine.close(each)
    assert len(engine._spare) == 3


@pytest.mark.parametrize("rings", [1, 3])
def test_a_session_that_has_run_goes_on_in_an_engine(double, rings):
    made, listen, seen = setup(world(), "2 steps", 1, 4 if rings == 3 else 24), told(1), []
    session = Session(made, listen)
    out = [session.next() for _ in range(7)]
    engine = Engine(made, sessions=3, rings=rings)
    engine.open(told(1, 5))
    serve(engine, 5, {})  # it has the only memory, if there is one
    assert engine.adopt(session) is session
    for _ in range(120):
        seen += [what for each, what in engine.tick() if each is session]
    latents = torch.cat([each.latents for each in (*out, *seen)])
    assert len(seen) > 4 and close(latents, plainly(made, listen, len(latents)))
    with pytest.raises(ValueError, match="already"):
        engine.adopt(session)


def test_memory_of_another_size_is_not_adopted():
    engine, session = Engine(setup(world(), window=4)), Session(setup(world(), window=5), told(1))
    session.next()
    with pytest.raises(ValueError, match="different sizes"):
        engine.adopt(session)
    assert not engine.seats and len(engine._spare) == 64


@pytest.mark.parametrize("what", ["reset", "back", "wrong"])
def test_what_was_begun_before_is_not_shown(double, what):
    made, before, after, clock = setup(world(), "2 steps", 1, 24), {}, {}, Clock()
    engine = Engine(made, clock=clock, fps=0.5, policy="merge")
    session = engine.open(told(1), seed=0)
    while session.frame < 6 or engine.seats[session].work is None:
        serve(engine, 1, before)
        clock.now += 0.0 if engine.seats[session].work is not None else engine.wait()
    if what == "reset":
        engine.reset(session, seed=5)
    elif what == "back":
        engine.back(session, 3)
    else:
        for wrong in (lambda: engine.reset(session, seed=-1), lambda: engine.back(session, 99)):
            with pytest.raises(ValueError, match=r"seed is -1|frame 99"):
                wrong()
    assert engine.wait() == 0.0  # due at once
    while len(after.get(session, ())) < 5:
        serve(engine, 1, after)
        clock.now += engine.wait()
    expected = plainly(made, told(1), 11, seed=5) if what == "reset" else plainly(made, told(1), 11)
    start = {"reset": 0, "back": 3, "wrong": 6}[what]
    assert close(torch.cat(after[session]), expected[start : start + 5])


@pytest.mark.parametrize("whom", [0, 1, 2], ids=["who is begun", "oneself", "who will be begun"])
def test_a_viewer_may_close_anyone_when_asked(whom):
    made, shown = setup(world(), "1 step"), {}
    engine = Engine(made, sessions=3, batch=3)

    def listen(frame: int) -> Told:
        if frame == 3:
            engine.close(sessions[whom])
        return Told("day")

    sessions = [engine.open(each) for each in (lambda _: Told("day"), listen, lambda _: Told("day"))]
    serve(engine, 14, shown)
    assert [session in engine.seats for session in sessions] == [each != whom for each in range(3)]
    assert all(
        len(shown[session]) == 3 if session is sessions[whom] else len(shown[session]) > 11 for session in sessions
    )
    for session in sessions:
        engine.close(session)
    assert len(engine._spare) == 3
