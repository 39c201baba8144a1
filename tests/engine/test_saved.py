"""A session that moves as bytes goes on as it would have."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_toys import pictures, setup, told, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import close, plainly, shown, sizes

from forcing.engine.saved import FORMAT, dumps, loads
from forcing.engine.session import Session
from forcing.rollout import Plan


@sizes
@pytest.mark.parametrize("start", [0, 4])
def test_it_goes_on_elsewhere(double, chunk, window, sink, start):
    made, listen = setup(world(), "2 steps", chunk, 30, sink), told(chunk, switch=6, how="recache")
    session, whole = Session(made, listen), Session(made, listen)
    if start:
        session, whole = (Session(made, listen, start=pictures(start)) for _ in range(2))
    expected = shown(whole, 24 + start)
    out = []
    while session.frame < 24 + start:  # moves after every chunk
        session = loads(setup(world(), "2 steps", chunk, 30, sink), listen, dumps(session))
        out.append(session.next().latents)
    assert close(torch.cat(out), expected[: session.frame])
    session.back(9 + start)
    assert session.generation == 2 and close(session.next().latents, expected[9 + start :][:chunk])


def test_before_the_first_frame(double):
    made, listen = setup(world()), told(1)
    session = loads(made, listen, dumps(Session(made, listen, seed=3)))
    assert close(shown(session, 6), plainly(made, listen, 6, seed=3))
    begun = loads(made, listen, dumps(Session(made, listen, start=pictures(2))))
    assert np.array_equal(begun.next().pictures, pictures(2))


def saved() -> bytes:
    made = setup(world())
    session = Session(made, told(1, switch=2, how="recache"))
    shown(session, 4)
    return dumps(session)


def test_another_world_is_named():
    other = setup(world())
    object.__setattr__(other, "size", (5, 4, 8))
    with pytest.raises(ValueError, match=r"its latents are \[5, 4, 4\], here they are \[5, 4, 8\]"):
        loads(other, told(1), saved())


def changed(data: bytes, **what) -> bytes:
    """With other values in what is said of it."""
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    head["__metadata__"]["session"] = json.dumps(json.loads(head["__metadata__"]["session"]) | what)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_another_format_is_named():
    data = saved()
    assert loads(setup(world()), told(1), changed(data)).frame == 4
    with pytest.raises(ValueError, match=f"it has format 7, this version reads {FORMAT}"):
        loads(setup(world()), told(1), changed(data, format=7))
    with pytest.raises(ValueError, match="OverflowError"):
        loads(setup(world()), told(1), changed(data, place=float("inf")))


def test_it_goes_on_by_its_own_plan(double):
    made, listen = setup(world(), "2 steps", 1, 24), told(1)
    session = Session(made.by(Plan((1.0, 0.9, 0.4))), listen)
    shown(session, 3)
    again = loads(made, listen, dumps(session))
    assert again.setup.how == session.setup.how and close(shown(again, 3), shown(session, 3))


@pytest.mark.parametrize("name", ["chunk", "window", "sink", "guidance"])
def test_another_memory_is_named(name):
    made = setup(world(), "2 steps", 1, 4)
    other = replace(made, how=replace(made.how, **{name: 2.0 if name == "guidance" else 2}))
    with pytest.raises(ValueError, match=rf"its {name} is [014.]+, here it is 2"):
        loads(other, told(1), saved())


def test_another_model_is_named():
    with pytest.raises(ValueError, match="another world made it"):
        loads(setup(world(seed=1)), told(1), saved())


def test_the_digest_is_made_once(monkeypatch):
    made, asked = setup(world()), []
    digest = type(made.world).digest.fget
    monkeypatch.setattr(type(made.world), "digest", property(lambda self: asked.append(1) or digest(self)))
    for setting in (made, made.by(Plan((1.0,)))):
        loads(made, told(1), dumps(Session(setting, told(1))))
    assert len(asked) == 1
    assert replace(made, world=replace(made.world)).digest == made.digest and len(asked) == 2


def test_only_the_newest_frames(double):
    made, listen = setup(world(), "2 steps", 1, 5, 2), told(1, switch=9, how="cut")
    session = Session(made, listen)
    shown(session, 16)
    whole, data = dumps(session), dumps(session, 5)
    assert len(data) < 0.7 * len(whole)
    again = loads(made, listen, data)
    assert [chunk.frame for chunk in again.history] == [*range(11, 16)]
    assert [chunk.frame for chunk in again.history.first] == [9, 10]
    assert close(shown(again, 4), shown(loads(made, listen, whole), 4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_named(data):
    whole, made = saved(), setup(world())
    kind = data.draw(st.sampled_from(["cut", "bytes", "empty", "format"]))
    if kind == "cut":
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "bytes":
        at = data.draw(st.integers(0, int.from_bytes(whole[:8], "little") + 7))
        broken = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    else:
        broken = b"" if kind == "empty" else changed(whole, format=7)
        assert broken != whole
    may = contextlib.suppress(ValueError) if kind in ("cut", "bytes") else pytest.raises(ValueError, match="no session")
    with may:  # ValueError is what it must be, if it is anything
        assert isinstance(loads(made, told(1), broken), Session)
