"""The engine process does what it is told, reports what it makes, and can be taken over by another."""

import io
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from forcing.cli.play import plans_of
from forcing.engine.session import Session, Setup, Told
from forcing.envs.gym import replay
from forcing.serve import host, orders, wire
from forcing.world import World

SHIPPED = Path(host.__file__).parents[1] / "shipped/rooms/dmd-2step"


class Hosted:
    """An engine process's work in a thread, and its pipe."""

    def __init__(self, **options) -> None:
        self.pipe, other = multiprocessing.Pipe()
        given = {"world": str(SHIPPED), "fps": 200.0, "reality": "rooms", **options}
        self.thread = threading.Thread(target=host.main, args=(other, given, plans_of), daemon=True)
        self.thread.start()
        self.said: list = []
        self.ready = self.until(orders.Ready)

    def tell(self, *told) -> None:
        for order in told:
            self.pipe.send_bytes(orders.pack(order))

    def until(self, kind, number: int | None = None):
        """The next report of a kind; the others are kept for those who ask for them."""

        def wanted(report) -> bool:
            return isinstance(report, kind) and (number is None or report.session == number)

        late = time.monotonic() + 30
        while not any(wanted(report) for report in self.said):
            assert time.monotonic() < late and self.pipe.poll(30), f"no {kind.__name__} came"
            self.said.append(orders.report(self.pipe.recv_bytes()))
        found = next(report for report in self.said if wanted(report))
        self.said.remove(found)
        return found

    def frames(self, number: int, count: int) -> list[orders.Frames]:
        return [self.until(orders.Frames, number) for _ in range(count)]

    def close(self) -> None:
        self.tell(orders.Stop())
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.pipe.close()


@pytest.fixture
def hosted():
    made = []

    def start(**options) -> Hosted:
        made.append(Hosted(**options))
        return made[-1]

    yield start
    for each in made:
        if each.thread.is_alive():
            each.close()


def picture(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def plainly(prompt: str, keys: list, seed: int) -> list[np.ndarray]:
    """Pictures of a session that presses so."""
    session = Session(Setup.of(World.load(SHIPPED)), lambda frame: Told(prompt, [keys[frame]]), seed=seed)
    return [session.next().pictures[0] for _ in keys]


def test_it_says_what_can_be_seen(hosted):
    world = hosted(sessions=3).ready.world
    assert (world.width, world.height, world.frames, world.chunk) == (56, 56, 1, 1)
    assert world.prompts == ["multi room", "four rooms", "lava crossing"] and world.steps == [1, 2, 4]
    assert world.keys == ["left", "right", "forward", "wait"] and world.reality


def test_pictures_are_those_of_a_session_that_is_told_the_same(hosted):
    one = hosted()
    one.tell(orders.Open(7, 1, "four rooms", 5), orders.Press(7, 3, ["forward"], []), orders.Grant(7, 4))
    first = one.frames(7, 4)
    one.tell(orders.Press(7, 4, [], ["left", "right"]), orders.Grant(7, 4))
    seen = [*first, *one.frames(7, 4)]
    keys = ["forward"] * 4 + ["left", "right", "wait", "wait"]
    for made, expected in zip(seen, plainly("four rooms", keys, 5), strict=True):
        assert made.codec == wire.PNG and np.array_equal(picture(made.images[0]), expected)
    assert [made.frame for made in seen] == list(range(8)) == [made.latent for made in seen]
    assert [made.event for made in seen] == [3] * 4 + [4] * 4 and {made.generation for made in seen} == {1}


def test_a_key_that_was_down_between_two_chunks_was_tapped():
    viewer = host.Viewer(1, 1, None, ("left", "right", "wait"), 1)
    viewer.press(orders.Press(1, 1, ["left"], []))
    viewer.press(orders.Press(1, 2, [], []))
    assert [viewer.listen(frame).actions for frame in range(2)] == [["left"], ["wait"]]
    viewer.press(orders.Press(1, 3, ["right"], []))
    assert viewer.listen(2).actions == ["right"]
    viewer.press(orders.Press(1, 4, [], []))
    assert viewer.listen(3).actions == ["wait"]
    viewer.press(orders.Press(1, 5, ["left"], ["right"] * 9))
    assert [viewer.listen(frame).actions[0] for frame in range(5)] == ["right"] * 4 + ["left"]


def test_no_more_is_made_than_was_granted(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, None, 0), orders.Grant(1, 3))
    one.frames(1, 3)
    one.tell(orders.Open(2, 1, None, 0), orders.Grant(2, 20))
    one.frames(2, 20)
    assert not [each for each in one.said if isinstance(each, orders.Frames)]
    one.tell(orders.Pause(2, True), orders.Grant(2, 5), orders.Grant(1, 1))
    one.frames(1, 1)
    one.tell(orders.Pause(2, False))
    one.frames(2, 5)


def test_prompts_are_applied_one_after_another_and_bad_ones_refused(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 0), orders.Grant(1, 2))
    one.frames(1, 2)
    one.tell(
        orders.Ask(1, 5, "lava crossing", "cut"),
        orders.Ask(1, 6, "no such", "cut"),
        orders.Ask(1, 7, "multi room", "recache"),
        orders.Grant(1, 4),
    )
    refused = one.until(orders.Refused)
    assert (refused.code, refused.event) == ("bad_prompt", 6) and "no such" in refused.message
    applied = [one.until(orders.Applied) for _ in range(2)]
    assert [(each.event, each.frame) for each in applied] == [(5, 2), (7, 3)]


def test_it_begins_anew_goes_back_and_forks(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Grant(1, 6))
    first = one.frames(1, 6)
    one.tell(orders.Back(1, 2, 3), orders.Grant(1, 3))
    again = one.frames(1, 3)
    assert [each.images for each in again] == [each.images for each in first[3:]] and again[0].generation == 2
    one.tell(orders.Fork(1, 9), orders.Grant(1, 3), orders.Grant(9, 3))
    pairs = one.frames(1, 3), one.frames(9, 3)
    assert [each.images for each in pairs[0]] == [each.images for each in pairs[1]]
    one.tell(orders.Open(1, 3, "four rooms", 5), orders.Grant(1, 6))
    assert [each.images for each in one.frames(1, 6)] == [each.images for each in first]
    one.tell(orders.Grant(1, 2), orders.Pause(1, True), orders.Back(1, 4, 4), orders.Pause(1, False))
    one.tell(orders.Fork(1, 10), orders.Close(1), orders.Grant(10, 1))
    assert one.frames(10, 1)[0].latent == 4
    one.tell(orders.Open(2, 1, None, 0), orders.Back(2, 2, 77))
    refused = one.until(orders.Refused)
    assert refused.code == "not_kept" and "frame 77" in refused.message


def test_it_goes_on_from_an_image(hosted):
    one, given = hosted(), replay("four rooms", 3, [])[0]
    data = io.BytesIO()
    Image.fromarray(given).resize((112, 112), Image.Resampling.NEAREST).save(data, "PNG")
    one.tell(orders.Open(1, 1, "four rooms", 0, start=data.getvalue()), orders.Grant(1, 2))
    shown = picture(one.frames(1, 1)[0].images[0]).astype(int)
    assert np.abs(shown - given).mean() < 12  # fitted and coded
    one.tell(orders.Open(2, 1, "four rooms", 0, start=b"no image"))
    assert one.until(orders.Failed, 2).session == 2


def test_reality_is_stepped_by_the_same_keys(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "lava crossing", 11, reality=True), orders.Press(1, 1, ["forward"], []))
    one.tell(orders.Grant(1, 5))
    seen = one.frames(1, 5)
    real = replay("lava crossing", 11, [2] * 4)
    for made, expected in zip(seen, real, strict=True):
        assert np.array_equal(picture(made.reality[0]), expected)
    assert np.array_equal(picture(seen[0].images[0]), real[0])  # it begins there
    other = hosted(reality="")
    other.tell(orders.Open(1, 1, "lava crossing", 11, reality=True))
    assert "no environment" in other.until(orders.Failed).message


def test_another_process_can_take_over(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Press(1, 1, ["forward"], []), orders.Grant(1, 1))
    one.frames(1, 1)
    saved = one.until(orders.Saved, 1)
    one.tell(orders.Grant(1, 5))
    expected = one.frames(1, 5)
    one.close()
    other = hosted()
    other.tell(orders.Open(1, 2, "four rooms", 5, saved=saved.data), orders.Press(1, 1, ["forward"], []))
    other.tell(orders.Grant(1, 5))
    seen = other.frames(1, 5)
    assert [each.images for each in seen] == [each.images for each in expected]
    assert seen[0].generation == 2 and seen[0].latent == 1
    other.tell(orders.Open(3, 1, "four rooms", 5, saved=saved.data[:99]))
    assert "no session that can go on here" in other.until(orders.Failed, 3).message


def test_films(hosted):
    pytest.importorskip("av")
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Export(1, 1))
    assert one.until(orders.Exported).message == "nothing has been shown yet"
    one.tell(orders.Grant(1, 12))
    one.frames(1, 12)
    one.tell(orders.Export(1, 2))
    film = one.until(orders.Exported)
    assert film.request == 2 and film.data[4:8] == b"ftyp"


def test_a_session_is_exported_and_goes_on_elsewhere(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5, steps=4), orders.Press(1, 1, ["forward"], []), orders.Grant(1, 30))
    one.frames(1, 9)  # what has left the window is not known any more
    one.tell(orders.Export(1, 1, "session"), orders.Grant(1, 6))
    saved = one.until(orders.Exported).data
    shown = {made.latent: made.images for made in one.frames(1, 27)}
    one.tell(orders.Open(2, 1, "four rooms", 5, saved=saved), orders.Press(2, 1, ["forward"], []), orders.Grant(2, 5))
    seen = one.frames(2, 5)
    assert [made.images for made in seen] == [shown[made.latent] for made in seen]
    one.tell(orders.Back(2, 2, 3), orders.Grant(2, 1))
    assert one.frames(2, 1)[0].latent == 3  # all that is kept was in it


def test_a_session_that_fails_is_alone(hosted, monkeypatch):
    one, show = hosted(), Session._show

    def sick(self, *args, **more):
        if self.seed == 6 and self.frame == 2:
            raise torch.OutOfMemoryError("no room for this frame")
        return show(self, *args, **more)

    monkeypatch.setattr(Session, "_show", sick)
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Open(2, 1, "four rooms", 6))
    one.tell(orders.Grant(1, 6), orders.Grant(2, 6))
    failed = one.until(orders.Failed)
    assert (failed.session, failed.code) == (2, "busy") and "no room" in failed.message
    for made, expected in zip(one.frames(1, 6), plainly("four rooms", ["wait"] * 6, 5), strict=True):
        assert np.array_equal(picture(made.images[0]), expected)


def test_sessions_beyond_those_it_has_are_refused(hosted):
    one = hosted(sessions=1)
    one.tell(orders.Open(1, 1, None, 0), orders.Open(2, 1, None, 0))
    failed = one.until(orders.Failed, 2)
    assert failed.code == "busy" and "1 sessions" in failed.message
    one.tell(orders.Close(1), orders.Open(3, 1, None, 0), orders.Grant(3, 1))
    one.frames(3, 1)


def test_it_leaves_when_nobody_listens(hosted):
    one = hosted()
    one.pipe.close()
    one.thread.join(20)
    assert not one.thread.is_alive()
