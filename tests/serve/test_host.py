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
from forcing.engine.session import Session, Setup, Shared, Told
from forcing.envs.gym import replay
from forcing.serve import host, orders, wire
from forcing.serve.viewer import Viewer
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
    viewer = Viewer(1, 1, None, ("left", "right", "wait"), 1)
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


def test_who_is_forked_and_leaves_or_goes_back_disturbs_nobody(hosted):
    one = hosted(fps=1000.0)
    for number in range(1, 73, 3):
        one.tell(orders.Open(number, 1, "four rooms", 5), orders.Grant(number, 40))
        one.frames(number, 4)
        what = (
            [orders.Close(number)],
            [orders.Open(number, 2, "four rooms", 6), orders.Grant(number, 2)],
            [orders.Back(number, 2, 1), orders.Grant(number, 2)],
        )[number // 3 % 3]
        one.tell(orders.Fork(number, number + 1), *what, orders.Grant(number + 1, 2))
        one.frames(number + 1, 2)
        if len(what) == 2:
            while (made := one.frames(number, 1)[0]).generation == 1:
                pass
            assert made.latent == (1 if isinstance(what[0], orders.Back) else 0)
            one.tell(orders.Close(number))
        one.tell(orders.Close(number + 1))
        one.said.clear()


def test_a_fork_of_who_is_gone_has_failed(hosted):
    one = hosted(sessions=1)
    one.tell(orders.Fork(7, 8))
    assert "is over" in one.until(orders.Failed, 8).message
    one.tell(orders.Open(1, 1, None, 0), orders.Fork(1, 2))
    assert one.until(orders.Failed, 2).code == "busy"
    one.tell(orders.Grant(1, 1))
    one.frames(1, 1)


def test_going_back_while_paused_shows_where_and_says_the_prompt(hosted):
    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Grant(1, 6))
    one.frames(1, 3)
    one.tell(orders.Ask(1, 5, "lava crossing", "cut"))
    one.until(orders.Applied)
    one.tell(orders.Pause(1, True), orders.Back(1, 2, 1))
    went = one.until(orders.Went)
    assert (went.generation, went.frame, went.prompt) == (2, 1, "four rooms")
    one.tell(orders.Grant(1, 3))
    while (made := one.frames(1, 1)[0]).generation == 1:
        pass
    assert made.latent == 1
    time.sleep(0.2)
    one.tell(orders.Back(1, 3, 0))
    assert one.until(orders.Went).frame == 0
    assert not [each for each in one.said if isinstance(each, orders.Frames) and each.generation == 2]
    one.tell(orders.Pause(1, False), orders.Ask(1, 6, "multi room", "blend"), orders.Grant(1, 2))
    one.until(orders.Applied)
    one.tell(orders.Pause(1, True), orders.Back(1, 4, 0))
    assert one.until(orders.Went).prompt == "four rooms"


def test_a_slow_text_stops_nobody(hosted, monkeypatch):
    cond = World.cond

    def slow(self, prompts, *rest):
        time.sleep(2.5 if threading.current_thread().name == "texts" else 0.0)
        return cond(self, prompts, *rest)

    one = hosted()
    one.tell(orders.Open(1, 1, "four rooms", 5), orders.Grant(1, 4))
    one.frames(1, 4)
    monkeypatch.setattr(World, "cond", slow)
    monkeypatch.setattr(Shared, "knows", lambda self, prompt: False)
    one.tell(orders.Ask(1, 7, "lava crossing", "blend"), orders.Ask(1, 8, "multi room", "blend"))
    one.tell(orders.Open(2, 1, "multi room", 6), orders.Press(2, 1, ["left"], []), orders.Grant(2, 2))
    began = time.monotonic()
    one.tell(orders.Grant(1, 20))
    one.frames(1, 20)
    assert time.monotonic() - began < 2.0  # and not seven seconds
    assert not [each for each in one.said if isinstance(each, orders.Applied)]
    one.tell(orders.Grant(1, 600))
    assert [one.until(orders.Applied, 1).event for _ in range(2)] == [7, 8]
    assert [made.event for made in one.frames(2, 2)] == [1, 1]  # what was said meanwhile was heard


def test_a_long_pass_is_no_silence(hosted, monkeypatch):
    one, show = hosted(), Session._show

    def slow(self, *args, **more):
        time.sleep(1.5)
        return show(self, *args, **more)

    monkeypatch.setattr(Session, "_show", slow)
    one.said.clear()
    one.tell(orders.Open(1, 1, None, 0), orders.Grant(1, 1))
    one.frames(1, 1)
    beats = [each for each in one.said if isinstance(each, orders.Beat)]
    assert len(beats) > 4 and any(each.busy for each in beats)


def test_what_cannot_be_served_is_said(tmp_path):
    for wrong, told in (
        ({"world": str(tmp_path)}, "is not a world"),
        ({"world": str(SHIPPED), "batch": 0}, "batch is 0"),
        ({"world": str(SHIPPED), "device": "nonsense"}, "nonsense"),
        ({"world": str(SHIPPED.parent / "base")}, "bidirectional"),
    ):
        ours, theirs = multiprocessing.Pipe()
        host.main(theirs, {"fps": 10.0, **wrong}, plans_of)
        assert told in orders.report(ours.recv_bytes()).message


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
    one.tell(
        orders.Open(1, 1, "lava crossing", 11, beside=orders.Walk("lava crossing", 11)),
        orders.Press(1, 1, ["forward"], []),
    )
    one.tell(orders.Grant(1, 5))
    seen = one.frames(1, 5)
    real = replay("lava crossing", 11, [2] * 4)
    for made, expected in zip(seen, real, strict=True):
        assert np.array_equal(picture(made.reality[0]), expected)
    assert np.array_equal(picture(seen[0].images[0]), real[0])  # it begins there
    one.tell(orders.Back(1, 2, 2), orders.Grant(1, 3))
    for made, expected in zip(one.frames(1, 3), real[2:], strict=True):  # it goes back with the session
        assert np.array_equal(picture(made.reality[0]), expected)
    one.tell(orders.Fork(1, 2), orders.Press(2, 1, ["forward"], []), orders.Grant(2, 2))
    far = replay("lava crossing", 11, [2] * 6)
    for made, expected in zip(one.frames(2, 2), far[5:], strict=True):
        assert np.array_equal(picture(made.reality[0]), expected)
    saved = [each for each in one.said if isinstance(each, orders.Saved) and each.session == 1][-1]
    one.tell(orders.Open(3, 1, "lava crossing", 11, saved=saved.data, beside=saved.beside), orders.Grant(3, 1))
    (made,) = one.frames(3, 1)
    assert np.array_equal(picture(made.reality[0]), far[saved.frame - 1])  # nothing was pressed
    other = hosted(reality="")
    other.tell(orders.Open(1, 1, "lava crossing", 11, beside=orders.Walk("lava crossing", 11)))
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
    one.tell(orders.Open(1, 1, "four rooms", 5, steps=4), orders.Press(1, 1, ["forward"], []), orders.Grant(1, 6))
    one.frames(1, 6)  # what has left the window is not known any more
    for request in range(4):  # before a chunk, in the middle of it, or after it
        one.tell(orders.Grant(1, 1))
        time.sleep(0.004 * request)
        one.tell(orders.Export(1, request, "session"))
        saved = one.until(orders.Exported).data
    one.tell(orders.Grant(1, 8))
    shown = {made.latent: made.images for made in one.frames(1, 12)}
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
