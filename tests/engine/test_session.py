"""A session shows what the plain rollout makes for the same seed, prompts, keys and start; nothing is lost."""

import numpy as np
import pytest
import torch
from engine_toys import PLANS, Changed, Recalling, pictures, setup, told, world

from forcing.data.order import seeded
from forcing.engine import session as sessions
from forcing.engine.passes import run
from forcing.engine.saved import dumps, loads
from forcing.engine.session import Session, Told
from forcing.rollout import remember, rollout

FRAMES = 12
every_plan = pytest.mark.parametrize("plan", PLANS)
sizes = pytest.mark.parametrize(("chunk", "window", "sink"), [(1, 4, 0), (1, 5, 2), (3, 9, 0), (3, 9, 3)])


def plainly(made, listen, frames: int = FRAMES, seed: int = 0, start=None):
    """Latents [F, C, h, w] by `World.stream`, which knows nothing of merging, rings and memories."""
    here, chunk = made.world, made.how.chunk
    first = 0 if start is None else len(start)
    conds = (
        here.cond([(one := listen(at)).prompt], [one.actions] if one.actions is not None else None, chunk)
        for at in range(first, frames, chunk)
    )
    given = None
    if start is not None:
        latents = here.codec.encode(start[None]).to(torch.get_default_dtype())
        given = latents, here.cond([listen(0).prompt], None, first)
    out = list(here.stream(conds, 1, seeded(seed, "generate"), sampling=made.how, start=given))
    return torch.cat([*([] if given is None else [given[0]]), *out], 1)[0]


def shown(session: Session, frames: int = FRAMES, settle: int = 0):
    out = []
    while sum(len(each.latents) for each in out) < frames:
        out.append(session.next())
        if settle and len(out) % settle == 0:
            session.settle()
    return torch.cat([each.latents for each in out])


def close(one, other) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-9)


@every_plan
@sizes
@pytest.mark.parametrize("settle", [0, 1, 3])
def test_a_session_is_a_rollout(double, plan, chunk, window, sink, settle):
    made, listen = setup(world(), plan, chunk, window, sink), told(chunk, switch=6)
    expected = plainly(made, listen)
    assert expected.abs().mean() > 0.1
    assert close(shown(Session(made, listen), settle=settle), expected)


@pytest.mark.parametrize("frames", [1, 3, 4])
@sizes
def test_it_goes_on_from_pictures(double, chunk, window, sink, frames):
    made, listen, start = setup(world(), "2 steps", chunk, window, sink), told(chunk), pictures(frames)
    session = Session(made, listen, start=start)
    first = session.next()
    assert first.told is None and np.array_equal(first.pictures, start)
    out = torch.cat([first.latents, shown(session, 9)])
    assert close(out, plainly(made, listen, frames + 9, start=start))


def test_guidance(double):
    made, listen = setup(world(), guidance=2.5), told(1, switch=5)
    assert close(shown(Session(made, listen)), plainly(made, listen))
    assert not close(shown(Session(setup(world()), listen)), plainly(made, listen))


def test_what_is_shown(double):
    made = setup(world(), chunk=3, window=9)
    session = Session(made, told(3), seed=4)
    one, two = session.next(), session.next()
    assert (one.frame, two.frame) == (0, 3) and one.generation == two.generation
    assert one.pictures.shape == (3, 16, 16, 3) and one.pictures.dtype == np.uint8
    assert np.array_equal(two.pictures, made.world.codec.decode(two.latents[None])[0])
    session.reset(seed=4)
    again = session.next()
    assert again.generation == one.generation + 1 and close(again.latents, one.latents)
    session.reset(seed=5)
    assert not close(session.next().latents, one.latents)


def test_prompts_and_keys_are_asked_for_when_a_chunk_is_begun():
    made, asked = setup(world()), []
    session = Session(made, lambda frame: asked.append(frame) or Told("day", [0]))
    assert asked == []
    session.next()
    session.settle()
    assert asked == [0]
    session.next()
    assert asked == [0, 1]


@sizes
def test_sleeping_loses_nothing_while_nothing_was_evicted(double, chunk, window, sink):
    made, listen = setup(world(), "2 steps", chunk, 24, sink), told(chunk, switch=6)
    session, out = Session(made, listen), []
    for _ in range(24 // chunk):
        out.append(session.next().latents)
        session.sleep()
    assert close(torch.cat(out), plainly(made, listen, 24))


@sizes
def test_after_an_eviction_a_woken_session_has_the_window(double, chunk, window, sink):
    # by the definition: the frames that are held, one after another, each seeing those before it
    made, listen = setup(world(), "2 steps", chunk, window, sink), told(chunk)
    session = Session(made, listen)
    shown(session, 15)
    held, cache = session.history.held(window), made.world.model.cache(1, window=window, sink=sink)
    assert sum(each.frames for each in held) >= window and held[-1].frame + chunk == 15
    assert all(frame in [each.frame for each in held] for frame in range(0, sink, chunk))
    with torch.no_grad():
        for each in held:
            cache.end = each.place
            remember(made.world.model, each.latents, each.cond, cache)
    random = seeded(0, "generate")
    random.set_state(session.random.get_state())
    cond = made.world.cond([listen(15).prompt], [listen(15).actions], chunk)
    shape = (1, chunk, *made.size)
    with torch.no_grad():
        expected = next(rollout(made.world.model, [cond], shape, made.how.plan, cache, random))
    session.sleep()
    after = session.next().latents
    assert close(after, expected[0]) and not close(after, plainly(made, listen, 15 + chunk)[15:])


@pytest.mark.parametrize("at", [0, 3, 6])
@pytest.mark.parametrize("sink", [0, 5])
def test_going_back(double, at, sink):
    made, listen = setup(world(), "2 steps", 3, 24, sink), told(3, switch=6, how="recache")
    session = Session(made, listen)
    before = shown(session, 12)
    session.back(at)
    again = session.next()
    assert again.frame == at and again.generation == 2
    assert close(torch.cat([again.latents, shown(session, 9 - at)]), before[at:])
    with pytest.raises(ValueError, match="frame 5 is not the beginning"):
        session.back(5)


def test_a_fork_goes_on_alike_and_apart(double):
    made, listen = setup(world(), window=5, sink=1), told(1)
    session = Session(made, listen)
    shown(session, 7)
    other = session.fork(listen)
    differs = session.fork(lambda frame: Told("night", [2]))
    expected = plainly(made, listen, 14)[7:]
    assert not close(shown(differs, 7), expected)
    assert [each.frame for each in session.history] == list(range(7))
    assert close(shown(session, 7), expected) and close(shown(other, 7), expected)


def test_a_cut_begins_a_new_scene(double):
    made, chunk = setup(world(), "2 steps", 3, 9), 3
    session = Session(made, told(chunk, switch=6, how="cut"))
    shown(session, 6)
    random = session.random.get_state()
    after = session.next()
    assert after.frame == 6
    # the same noise, where nothing was before
    fresh = Session(made, lambda frame: told(chunk, switch=0)(frame + 6))
    fresh.random.set_state(random)
    assert close(after.latents, fresh.next().latents)
    for each in (session, fresh):
        each.sleep()
    assert close(session.next().latents, fresh.next().latents)


def test_a_recache_is_a_past_told_the_new_prompt(double):
    made = setup(world(), "1 step", 1, 24)
    keys = told(1)
    session = Session(made, lambda frame: Told("day" if frame < 6 else "night", keys(frame).actions, "recache"))
    out = shown(session, 12)
    # teacher forcing by hand: the same frames, remembered under the new prompt
    other = Session(made, lambda frame: Told("night", keys(frame).actions))
    other.stream.forget()
    with torch.no_grad():
        for frame in range(6):
            cond = other._cond(Told("night", keys(frame).actions))
            run(made.world.model, other.stream.remember(out[None, frame : frame + 1], cond))
    other.frame = other.place = 6
    drawn = Session(made, keys)
    shown(drawn, 6)
    other.random.set_state(drawn.random.get_state())
    assert close(shown(other, 6), out[6:])
    assert not close(out, plainly(made, told(1, switch=6), 12))
    # and it stays so when the memory is made again
    session.back(9)
    assert close(shown(session, 3), out[9:])


@pytest.mark.parametrize("how", ["blend", "cut", "recache"])
@pytest.mark.parametrize("start", [None, 3])
def test_what_fails_can_be_tried_again(double, how, start):
    made, listen = setup(world(), "2 steps", 1, 24, 2), told(1, switch=4, how=how)
    begun = None if start is None else pictures(start)
    session, model, plain = Session(made, listen, start=begun), made.world.model, Session(made, listen, start=begun)
    out, calls, failed = [], 0, 0

    def sick(model, *args):
        nonlocal calls
        calls += 1
        if calls in (2, 8, 9, 13, 24, 31):
            raise MemoryError("a pass failed")
        return model(*args)

    with torch.no_grad():
        for _ in range(200):
            try:
                out.append(run(Changed(model, sick), session.work()).latents)
            except MemoryError:
                failed += 1
            if len(out) == 8:
                break
    out = torch.cat(out)
    assert failed >= 5 and close(out, shown(plain, len(out))) and len(session.history) == len(out)


def given_up(session: Session) -> Session:
    work = session.work()
    with torch.no_grad():
        next(work)
    work.close()
    return session


def gone_back(session: Session) -> Session:
    session.back(session.next().frame)
    return session


def slept(session: Session) -> Session:
    session.sleep()
    return session


def forked(session: Session) -> Session:
    session.fork(told(1, seed=9)).next()
    return session


def moved(session: Session) -> Session:
    return loads(session.setup, session.listen, dumps(session))


@pytest.mark.parametrize("between", [given_up, gone_back, slept, forked, moved], ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", ["blend", "cut", "recache"])
@pytest.mark.parametrize("sink", [0, 2])
def test_what_happens_between_chunks_is_not_seen(double, between, how, sink):
    made, listen = setup(world(), "2 steps", 1, 24, sink, decoder=Recalling), told(1, switch=5, how=how)
    session, out = Session(made, listen), []
    for _ in range(9):
        out.append(session.next())
        session = between(session)
    latents = torch.cat([each.latents for each in out])
    assert close(latents, shown(Session(made, listen), 9))
    scenes = latents.split([5, 4]) if how == "cut" else [latents]
    seen = np.concatenate([Recalling()(scene[None])[0] for scene in scenes]).astype(int)
    assert np.abs(seen - np.concatenate([each.pictures for each in out])).max() <= 1


@pytest.mark.parametrize("undone", [given_up, gone_back], ids=lambda each: each.__name__)
@pytest.mark.parametrize("how", ["blend", "cut", "recache"])
def test_a_change_of_mind_leaves_no_trace(double, undone, how):
    made, keys, mind = setup(world(), "2 steps", 1, 24), told(1), ["night"]
    session = Session(made, lambda frame: Told(mind[0] if frame > 4 else "day", keys(frame).actions, how))
    out = [shown(session, 5)]
    undone(session)
    mind[0] = "day"
    for _ in range(2):
        out.append(shown(session, 2))
        session.sleep()  # what it is woken from must not remember, either
    assert close(torch.cat(out), plainly(made, keys, 9)) and session.place == 9


def test_going_back_over_scenes(double):
    keys = told(1)

    def listen(frame: int) -> Told:
        prompt, how = ("day", "blend") if frame < 3 else ("night", "recache") if frame < 6 else ("day", "cut")
        return Told(prompt, keys(frame).actions, how)

    made = setup(world(), "2 steps", 1, 24, 2)
    session = Session(made, listen)
    before = shown(session, 10)
    for at in (9, 7, 6, 5, 2):
        session.back(at)
        assert close(shown(session, 10 - at), before[at:])


@pytest.mark.parametrize("hows", [("cut", "recache"), ("recache", "recache")])
def test_memory_of_old_scenes_has_an_end(hows):
    keys = told(1)

    def listen(frame: int) -> Told:
        return Told(("day", "night")[frame // 3 % 2], keys(frame).actions, hows[frame // 3 % 2])

    session = Session(setup(world(), "1 step", 1, 6, 2, keep=8), listen)
    shown(session, 60)
    assert len(session.history) == 8
    assert len(session.history.first) <= 6 and len(session.history.recached) <= 4


def test_going_back_to_what_was_given(double):
    made, listen, start = setup(world(), "2 steps", 3, 24), told(3), pictures(4)
    for move in (lambda session: session, moved):
        session = Session(made, listen, start=start)
        before = shown(session, 10)
        session = move(session)
        with pytest.raises(ValueError, match="frame 1 is one of the 4 that were given"):
            session.back(1)
        session.back(4)
        assert close(shown(session, 3), before[4:7])
        session.back(0)
        again = session.next()
        assert again.told is None and np.array_equal(again.pictures, start) and close(again.latents, before[:4])
        assert close(shown(session, 6), before[4:])


def test_bad_actions_do_not_hide_a_new_prompt(double):
    made, listen, bad = setup(world(), "2 steps", 1, 24), told(1, switch=4, how="cut"), [4, 4]

    def clumsy(frame: int) -> Told:
        said = listen(frame)
        return Told(said.prompt, [0, 0], said.switch) if frame in bad and not bad.remove(frame) else said

    session, out = Session(made, clumsy), []
    while len(out) < 8:
        try:
            out.append(session.next().latents)
        except ValueError:
            assert len(out) == 4
    assert not bad and close(torch.cat(out), shown(Session(made, listen), 8)) and session.place == 4


def test_a_beginning_that_cannot_be_changes_nothing(double):
    made, listen = setup(world(), "2 steps"), told(1)
    session = Session(made, listen)
    out = [shown(session, 5)]
    for wrong in ({"seed": -1}, {"seed": 1, "start": pictures(1)[0]}):
        with pytest.raises(ValueError, match=r"seed is -1|pictures \[F, H, W, 3\]"):
            session.reset(plan=PLANS["1 step"], **wrong)
    out.append(shown(session, 5))
    assert close(torch.cat(out), plainly(made, listen, 10)) and session.generation == 1


def test_what_is_told_the_same_is_kept_once(monkeypatch):
    made, keys = setup(world(), "1 step", guidance=2.0), told(1)
    session = Session(made, lambda frame: Told(("day", "night")[frame // 2 % 2], keys(frame).actions))
    shown(session, 20)
    assert len({id(chunk.cond.static["text"]) for chunk in session.history}) == 2
    assert Session(made.by(PLANS["2 steps"]), keys).setup.text("day") is made.text("day")
    monkeypatch.setattr(sessions, "TEXTS", 1)
    one, other = made.text("day"), made.text("night")
    assert made.text("night") is other and made.text("day") is not one


def test_guidance_asks_for_its_other_side_once(monkeypatch):
    made, asked = setup(world(), "1 step", guidance=2.0), []
    uncond = type(made.world).uncond
    monkeypatch.setattr(type(made.world), "uncond", lambda self, cond: asked.append(1) or uncond(self, cond))
    shown(Session(made, told(1)), 10)
    assert len(asked) == 1


def test_what_cannot_be_is_named(double):
    made = setup(world())
    with pytest.raises(ValueError, match="seed is -1"):
        Session(made, told(1), seed=-1)
    with pytest.raises(ValueError, match="unknown prompt 'dusk'"):
        Session(made, lambda frame: Told("dusk")).next()
    with pytest.raises(ValueError, match="one action a frame"):
        Session(made, lambda frame: Told("day", [0, 1])).next()
    with pytest.raises(ValueError, match=r"pictures \[F, H, W, 3\]"):
        Session(made, told(1), start=pictures(1)[0])
    with pytest.raises(ValueError, match="keep is 3 latent frames"):
        setup(world()).of(made.world, made.how, keep=3)
