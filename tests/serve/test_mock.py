"""The mock engine: its pictures can be read, and it behaves like one that makes frames."""

import io
import multiprocessing
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serve_toys import read

from forcing.serve import mock, orders

NUMBER = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(st.builds(mock.Marks, *[NUMBER] * 7))
def test_pictures_can_be_read_after_jpeg(marks):
    data = io.BytesIO()
    Image.fromarray(mock.paint(marks, 256, 64)).save(data, "JPEG", quality=60)
    assert read(data.getvalue()) == marks


def test_other_pictures_are_not_read():
    picture = mock.paint(mock.Marks(1, 2, 3, 4, 5, 6, 7))
    picture[:8, :8] = 255 - picture[:8, :8]
    with pytest.raises(ValueError, match="damaged"):
        mock.read(picture)
    with pytest.raises(ValueError, match="at least 256x64"):
        mock.paint(mock.Marks(1, 2, 3, 4, 5, 6, 7), 255, 64)


def test_the_layout_is_as_it_is_told():
    picture = mock.paint(mock.Marks(1, 2, 3, 4, 5, 6, 2**31))
    assert picture[0, 31 * 8 + 4].tolist() == [255] * 3 and not picture[:8, : 31 * 8].any()
    assert picture[8 + 4, 30 * 8 + 4].tolist() == [255] * 3 and picture[6 * 8, 4].tolist() == [255] * 3
    check = 0xFFFFFFFF ^ 1 ^ 2 ^ 3 ^ 4 ^ 5 ^ 6 ^ 2**31
    bits = picture[7 * 8 + 4, 4 : 32 * 8 : 8, 0] > 127
    assert int("".join("1" if bit else "0" for bit in bits), 2) == check


class Told:
    """A mock in a thread, and what it has reported."""

    def __init__(self, **scene):
        self.connection, theirs = multiprocessing.Pipe()
        self.thread = threading.Thread(target=mock.main, args=(theirs, scene))
        self.thread.start()
        self.reports = []

    def say(self, *several):
        for order in several:
            self.connection.send_bytes(orders.pack(order))

    def hear(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.connection.poll(left):
                self.reports.append(orders.report(self.connection.recv_bytes()))
        return self.reports

    def close(self):
        self.say(orders.Stop())
        with suppress(EOFError):
            self.hear(5.0)
        self.thread.join()
        self.connection.close()


@pytest.fixture
def told():
    made = []

    def make(**scene):
        made.append(Told(**scene))
        return made[-1]

    yield make
    for each in made:
        each.close()


def frames(reports, session):
    return [each for each in reports if isinstance(each, orders.Frames) and each.session == session]


def test_nothing_is_made_that_was_not_granted(told):
    engine = told(fps=100.0, pass_s=0.001)
    engine.say(orders.Open(1, 1, None, 0), orders.Open(2, 1, None, 0), orders.Grant(1, 3))
    reports = engine.hear(0.5)
    assert [each.frame for each in frames(reports, 1)] == [0, 1, 2] and not frames(reports, 2)


def test_overload_stretches_all_alike(told):
    engine = told(fps=20.0, pass_s=0.03)  # 33 chunks a second for 80
    for n in range(1, 5):
        engine.say(orders.Open(n, 1, None, 0), orders.Grant(n, 1000))
    counts = [len(frames(engine.hear(0.01 if n > 1 else 1.5), n)) for n in range(1, 5)]
    assert max(counts) - min(counts) <= 2 and min(counts) > 5


def test_keys_prompts_and_going_back(told):
    engine = told(fps=None, chunk=2)
    engine.say(orders.Open(1, 1, "a", 7), orders.Press(1, 5, ["left"], ["forward"]), orders.Grant(1, 2))
    engine.hear(0.2)
    engine.say(orders.Ask(1, 6, "b", "cut"), orders.Back(1, 2, 2), orders.Grant(1, 1))
    engine.hear(0.2)
    engine.say(orders.Back(1, 3, 99))
    reports = engine.hear(0.2)
    seen = [read(image) for each in frames(reports, 1) for image in each.images]
    assert [(mark.generation, mark.frame, mark.keys) for mark in seen] == [
        (1, 0, 0b101),
        (1, 1, 0b101),
        (1, 2, 0b1),
        (1, 3, 0b1),
        (2, 2, 0b1),
        (2, 3, 0b1),
    ]
    assert len({mark.prompt for mark in seen[:4]}) == 1 and seen[4].prompt != seen[0].prompt
    assert [each for each in reports if isinstance(each, orders.Applied)] == [orders.Applied(1, 6, 2, 2)]
    assert [each.code for each in reports if isinstance(each, orders.Refused)] == ["not_kept"]


def test_what_was_saved_goes_on(told):
    one, other = told(fps=None, save=2), told(fps=None)
    one.say(orders.Open(1, 1, "a", 7), orders.Grant(1, 4))
    saved = [each for each in one.hear(0.2) if isinstance(each, orders.Saved)][-1]
    other.say(orders.Open(9, 2, None, 0, saved=saved.data), orders.Grant(9, 1))
    mark = read(frames(other.hear(0.2), 9)[0].images[0])
    assert (mark.frame, mark.seed, mark.generation, mark.session) == (4, 7, 2, 9)


def test_a_fault_must_be_known():
    with pytest.raises(ValueError, match="'explode': choose from raise"):
        mock.Scene(faults={1: "explode"})


def test_pictures_are_what_is_encoded():
    assert mock.paint(mock.Marks(*[0] * 7)).dtype == np.uint8
