"""A session that moves as bytes goes on as it would have."""

import contextlib

import numpy as np
import pytest
import torch
from engine_toys import pictures, setup, told, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import close, plainly, shown, sizes

from forcing.engine.saved import dumps, loads
from forcing.engine.session import Session


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
        broken = b"" if kind == "empty" else whole.replace(b'\\"format\\": 1', b'\\"format\\": 7')
        assert broken != whole
    with contextlib.suppress(ValueError):  # which is what it must be, if it is anything
        assert isinstance(loads(made, told(1), broken), Session)
