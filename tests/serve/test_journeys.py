"""Journeys in Chromium: page, gateway and engine as they are shipped, and a mock engine whose pictures say whose they
are. What is asserted is what was on the screen."""

import io
import os
import re
import signal
import statistics
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from browsers import (
    PHONE,
    Cable,
    Watched,
    browser,
    change,
    launched,
    missing,
    mocking,
    numbers,
    page,
    rooms,
    watched,
)
from PIL import Image

from forcing.serve.mock import Marks

__all__ = ["browser", "numbers", "page", "rooms"]
pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.timeout(120)]

KEYS = ["left", "right", "forward", "wait"]
CALM = "seed=24&prompt=four+rooms"  # a scene that stays as it is while nobody moves
SAME, OTHER = 6.0, 20.0  # mean change of a picture, of 255: less than this in such a scene, more to another one


# ---- the real engine


def test_it_starts_and_pictures_move(page, rooms):
    page.goto(rooms.url)
    page.until("f.state === 'live' && f.shown?.frame > 15")
    assert page.on("status").inner_text() == "Live" and page.on("veil").is_hidden()
    assert page.on("world").inner_text() == "rooms, dmd-2step"
    seen = page.seen()
    assert [each.frame for each in seen] == sorted({each.frame for each in seen})
    assert len({each.picture for each in seen}) > 5  # no two are quite alike
    assert {each.pixels.shape for each in seen} == {(56, 56, 3)}
    assert float(page.on("hud-model").inner_text()) > 1 and float(page.on("hud-shown").inner_text()) > 1


def test_a_held_key_steers(page, rooms):
    page.live(rooms.url, CALM, least=6)
    still = page.more(4)
    assert page.lanes(4) == [0, 0, 0, 0] and not page.on("hud-reaction").inner_text().isdigit()
    page.keyboard.down("ArrowLeft")
    page.until("f.latencies.length === 1")
    event = page.told("event")
    turning = page.more(6)
    assert page.on("key-left").evaluate("(key) => key.classList.contains('held')")
    page.keyboard.up("ArrowLeft")
    number = "/^[0-9]+$/.test(document.querySelector('[data-testid=hud-reaction]').textContent)"
    page.until(f"f.event > {event} && {number}")
    assert 0 < int(page.on("hud-reaction").inner_text()) < 5000
    assert {each.event for each in turning} == {event}
    assert change(still[0].pixels, still[-1].pixels) < SAME
    assert max(change(still[-1].pixels, each.pixels) for each in turning) > OTHER
    left, *others = page.lanes(4)
    assert left >= 6 and others == [0, 0, 0]


def test_typing_does_not_steer(page, rooms):
    page.live(rooms.url)
    page.on("seed").click()
    event = page.told("event")
    page.keyboard.type("wasd d")
    for key in ("ArrowUp", "ArrowLeft", "Space", "p"):
        page.keyboard.press(key)
    page.more(4)
    assert page.told("event") == event and page.told("state") == "live"
    assert page.lanes(4) == [0, 0, 0, 0]
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.until(f"f.event > {event}")
    page.more(2)
    assert page.lanes(4)[1] > 0
    assert page.told("generation") == 1


@pytest.mark.parametrize("how", ["cut", "blend", "recache"])
def test_a_chip_changes_the_prompt(page, rooms, how):
    page.live(rooms.url, CALM, least=4)
    before = page.seen()[-1]
    page.on(f"switch-{how}").click()
    page.on("prompt-2").click()
    page.until("f.prompt === 'lava crossing' && f.asked === null")
    after = page.more(6)
    assert page.on("prompt-2").get_attribute("aria-pressed") == "true"
    assert page.on("prompt-1").get_attribute("aria-pressed") == "false"
    if how == "cut":
        assert change(before.pixels, after[-1].pixels) > OTHER
    else:  # while nobody moves, what is seen stays
        assert max(change(before.pixels, each.pixels) for each in after) < SAME
    assert {each.generation for each in after} == {before.generation} == {1}  # the same session goes on
    frames = page.came(1)
    assert frames == list(range(len(frames))) and after[-1].frame > before.frame + 4
    assert page.evaluate("[...document.querySelectorAll('#notes .note')].length") == 0


def test_going_back_while_paused_shows_what_was_then(page, rooms):
    page.live(rooms.url, CALM, least=8)
    before = {each.frame: each for each in page.seen()}
    page.on("switch-cut").click()
    page.on("prompt-2").click()
    page.until("f.prompt === 'lava crossing'")
    page.more(6)
    page.on("pause").click()
    page.until("f.state === 'paused'")
    page.wait_for_timeout(500)  # what was under way comes
    there = page.told("shown.frame")
    page.on("back-frames").fill(str(there - 3))
    page.on("back").click()
    page.until("f.generation === 2 && f.shown.generation === 2")
    page.until("f.prompt === 'four rooms'")
    assert page.told("state") == "paused" and page.on("pill").inner_text() == "Paused"
    assert page.on("prompt-1").get_attribute("aria-pressed") == "true"
    page.wait_for_timeout(500)
    (shown,) = (each for each in page.seen() if each.generation == 2)  # one, and no more
    assert shown.frame == 4 and change(shown.pixels, before[max(before)].pixels) < SAME
    page.on("pause").click()
    page.until("f.state === 'live' && f.shown.frame > 7")
    assert page.told("prompt") == "four rooms"


def test_it_starts_from_an_image(page, rooms):
    page.live(rooms.url, CALM, least=4)
    start = page.seen()[-1].pixels.astype(np.uint8)
    page.on("seed").fill("21")
    page.on("seed").press("Enter")
    page.until("f.generation === 2 && f.shown.generation === 2 && f.shown.frame > 2")
    assert change(page.seen()[-1].pixels, start) > OTHER
    data = io.BytesIO()
    Image.fromarray(start).resize((560, 560), Image.Resampling.NEAREST).save(data, "PNG")
    page.on("file").set_input_files({"name": "start.png", "mimeType": "image/png", "buffer": data.getvalue()})
    page.until("f.generation === 3 && f.shown.generation === 3 && f.shown.frame > 2")
    first, *_ = (each for each in page.seen() if each.generation == 3)
    assert first.frame < 3 and change(first.pixels, start) < SAME
    assert page.on("thumb").is_visible()


def test_pausing_holds_the_picture(page, rooms):
    page.live(rooms.url)
    page.keyboard.press("p")
    page.until("f.state === 'paused'")
    page.wait_for_timeout(500)  # what was under way comes
    held = page.evaluate("window.seen.length")
    page.wait_for_timeout(700)
    assert page.evaluate("window.seen.length") == held
    assert page.on("pill").inner_text() == "Paused" and page.on("pause").inner_text() == "Go on"
    page.on("pause").click()
    page.until(f"f.state === 'live' && window.seen.length > {held + 3}")
    seen = page.seen()
    assert seen[held].frame - seen[held - 1].frame <= 2  # it went on from there


def test_seeds_say_how_it_begins(page, rooms):
    page.live(rooms.url, "prompt=multi+room&seed=31")
    for n, seed in ((2, 32), (3, 31)):
        page.on("seed").fill(str(seed))
        page.on("seed").press("Enter")
        page.until(f"f.generation === {n} && f.shown.generation === {n} && f.shown.frame > 3")
    page.on("reset").click()
    page.until("f.generation === 4 && f.shown.generation === 4 && f.shown.frame > 3")
    one, other, again, anew = ({each.frame: each for each in page.seen() if each.generation == n} for n in (1, 2, 3, 4))
    for beside in (again, anew):
        first = min(one.keys() & beside.keys())
        assert first < 3 and one[first].picture == beside[first].picture
    assert change(one[max(one)].pixels, other[max(other)].pixels) > OTHER


def test_a_film_is_saved(page, rooms):
    page.live(rooms.url, "seed=5", least=12)
    with page.expect_download() as saved:
        page.on("film").click()
    data = Path(saved.value.path()).read_bytes()
    assert saved.value.suggested_filename == "forcing-lava-crossing-5.mp4"
    assert data[4:8] == b"ftyp" and len(data) > 1000
    page.more(2)  # and it goes on
    assert page.on("film").is_enabled()


def test_a_session_goes_on_from_its_file(page, rooms, tmp_path):
    page.live(rooms.url, CALM, least=8)
    page.on("pause").click()
    page.until("f.state === 'paused'")
    page.wait_for_timeout(500)  # what was under way comes
    last = page.seen()[-1]
    with page.expect_download() as saved:
        page.on("session").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    page.on("pause").click()
    page.until(f"f.shown.frame > {last.frame + 5}")
    page.on("seed").fill("31")
    page.on("seed").press("Enter")
    page.until("f.generation === 2 && f.shown.generation === 2 && f.shown.frame > 3")
    assert change(page.seen()[-1].pixels, last.pixels) > OTHER
    page.on("file").set_input_files(path)
    page.until(f"f.generation === 3 && f.shown.generation === 3 && f.shown.frame > {last.frame + 5}")
    assert page.told("prompt") == "four rooms" and page.on("seed").input_value() == "24"
    assert page.came(3)[0] == last.frame + 1
    one, again = ({each.frame: each for each in page.seen() if each.generation == n} for n in (1, 3))
    both = [frame for frame in one.keys() & again.keys() if frame > last.frame]
    assert len(both) > 2 and all(one[frame].picture == again[frame].picture for frame in both)


def test_a_session_survives_a_cable_that_is_pulled(page, rooms):
    with closing(Cable(rooms.url)) as cable:
        page.live(cable.url, CALM, least=5)
        session = page.told("session")
        cable.pull()
        page.until("f.state === 'reconnecting'")
        assert page.on("veil-title").inner_text() == "The connection was lost"
        before = page.seen()[-1]
        page.wait_for_timeout(500)
        cable.mend()
        page.until(f"f.state === 'live' && f.counts.sockets > 1 && f.shown.frame > {before.frame + 5}")
        assert page.told("session") == session
        seen = page.seen()
        assert {(each.mark, each.generation) for each in seen} == {(before.mark, before.generation)}
        assert [each.frame for each in seen] == sorted({each.frame for each in seen})
        after = next(each for each in seen if each.frame > before.frame)
        assert change(before.pixels, after.pixels) < SAME


def test_a_session_survives_its_engine(page, rooms):
    page.live(rooms.url, CALM, least=25)  # it can be saved by now
    session, generation = page.told("session"), page.told("generation")
    (engine,) = rooms.engines()
    rooms.warns.append("engine lost")
    os.kill(engine, signal.SIGKILL)
    page.until("f.state === 'recovering'")
    assert page.on("veil-title").inner_text() == "Recovering"
    before = page.seen()[-1]
    page.until(f"f.state === 'live' && f.shown.generation === {generation + 1} && f.shown.frame > {before.frame}")
    assert page.told("session") == session
    assert page.told("prompt") == "four rooms" and page.on("veil").is_hidden()
    after = [each for each in page.seen() if each.generation > generation]
    assert {each.generation for each in after} == {generation + 1}
    assert before.frame - 25 < after[0].frame <= before.frame + 1  # from what was saved, and not from the beginning
    assert change(before.pixels, after[0].pixels) < SAME
    assert rooms.engines() != [engine]


def test_a_fork_goes_on_in_another_page(page, rooms):
    page.live(rooms.url, CALM, least=8)
    with page.context.expect_page() as opened:
        page.on("fork").click()
    before = page.seen()[-1]
    other = Watched(opened.value)
    other.until("f.state === 'live' && window.seen.length > 3")
    first, *_, last = other.seen()
    assert abs(first.frame - before.frame) < 5 and last.frame > first.frame
    assert first.mark != before.mark
    assert change(first.pixels, before.pixels) < SAME
    page.more(2)  # so does the first one
    assert not other.broken


# ---- the mock engine


def own(seen, seed) -> set[int]:
    """What the pixels say is what the page was told, and of this seed; returns the keys that were down, as bits."""
    for each in seen:
        read = each.read
        told = (each.mark, each.generation, each.frame, each.event)
        assert (read.session, read.generation, read.frame, read.event) == told
        assert read.seed == seed and each.generation == each.now  # nothing of what was begun before
    return {each.read.keys for each in seen}


def test_eyes_read_what_was_painted(page, numbers):
    page.live(numbers.url, "seed=77")
    page.keyboard.down("ArrowRight")
    page.until("f.latencies.length === 1")
    seen = page.more(2)[-1]
    assert seen.read == Marks(seen.mark, 1, seen.frame, seen.event, 0, 0b010, 77)


def test_nobody_sees_the_pictures_of_another(browser, page, numbers):
    with launched(browser.browser_type) as second, watched(second) as other:
        page.live(numbers.url, "seed=11")
        other.live(numbers.url, "seed=22")
        page.keyboard.down("ArrowLeft")
        other.keyboard.down("ArrowRight")
        for n in range(2, 9):
            page.on("reset").click()
            other.more(2)
            other.on("back").click()
            page.more(2)
            page.until(f"f.generation === {n} && f.shown.generation === {n}")
            other.until(f"f.generation === {n} && f.shown.generation === {n}")
        page.more(10)
        mine, theirs = page.seen(), other.seen()
    assert own(mine, 11) <= {0b000, 0b001} and own(theirs, 22) <= {0b000, 0b010}
    assert len(mine) > 20 and len(theirs) > 20
    (one,), (another,) = {each.read.session for each in mine}, {each.read.session for each in theirs}
    assert one != another
    for seen in (mine, theirs):
        order = [each.generation for each in seen]
        assert order == sorted(order) and set(order) == {*range(1, 9)}


def test_a_slow_network_shows_fewer_pictures_and_none_is_old(page, numbers):
    page.live(numbers.url, "seed=1")
    network = page.context.new_cdp_session(page.page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 20, "downloadThroughput": 20_000, "uploadThroughput": 20_000}  # bytes a second
    network.send("Network.emulateNetworkConditions", slow)
    page.more(10)  # what comes at once before it is slow
    seen = page.more(30)
    rate = (len(seen) - 1) / (seen[-1].at - seen[0].at)
    assert rate < 15, rate  # of 20: the network is what limits it
    ages = page.ages(seen)
    assert statistics.median(ages) < 0.5 and sorted(ages)[-4] < 0.5, ages
    own(seen, 1)


def test_a_network_that_stalls_goes_on_with_what_is_new(page, numbers):
    page.live(numbers.url, "seed=2")
    session = page.told("session")
    page.context.set_offline(True)
    page.until("f.starved")
    assert "Waiting" in page.on("pill").inner_text()
    page.wait_for_timeout(2000)
    stalled = page.evaluate("window.seen.length")
    page.context.set_offline(False)
    page.until(f"f.state === 'live' && window.seen.length > {stalled + 10}")
    assert page.told("session") == session
    assert sum(age > 0.5 for age in page.ages(page.seen(stalled))) <= 2  # those that were under way


def test_a_frozen_tab_comes_back_to_what_is_new(page, numbers):
    page.live(numbers.url, "seed=4")
    frozen = page.evaluate(
        "() => { const end = performance.now() + 3000; while (performance.now() < end); return window.seen.length; }"
    )
    page.until(f"window.seen.length > {frozen + 10}")
    thawed = page.seen(frozen - 1)
    assert thawed[1].at - thawed[0].at > 2.5
    ages = page.ages(thawed[1:])
    assert sum(age > 0.5 for age in ages) <= 2, ages  # those that were under way; nothing was made for who cannot see
    assert thawed[3].frame - thawed[0].frame < 10
    own(thawed, 4)
    assert page.told("state") == "live" and page.told("counts.sockets") == 1


def test_a_server_that_stops_says_so(browser):
    with mocking(drain_s=1.0) as gateway, watched(browser) as page:
        page.live(gateway.url, "seed=3")
        gateway.process.send_signal(signal.SIGTERM)
        page.until("f.state === 'draining'")
        assert page.on("status").inner_text() == "Server is closing"
        assert re.fullmatch("The gateway stops in [01] s", page.on("pill").inner_text())
        page.more(2)  # it goes on for a while
        page.until("f.state === 'gone'")
        assert page.on("veil-title").inner_text() == "The server was closed"
        page.until("f.counts.sockets > 2")  # tried again, in vain
        assert page.told("state") == "gone"
        out, _ = gateway.process.communicate(timeout=30)
        assert (gateway.process.returncode, out) == (0, "")


def test_fingers_steer_on_a_phone(browser, numbers):
    with watched(browser, **PHONE) as page:
        page.live(numbers.url, "seed=5")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        fingers = page.context.new_cdp_session(page.page)
        box = page.on("key-left").bounding_box()
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        since = page.evaluate("window.seen.length")
        fingers.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
        page.until("f.latencies.length === 1")
        held = page.more(5)
        assert own(held, 5) == {0b001}
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.until("document.querySelectorAll('.pad .held').length === 0")
        page.until(f"f.event > {held[-1].event}")
        assert own(page.more(3), 5) == {0b000}
        page.on("key-forward").tap()
        page.until("f.latencies.length === 2")
        assert own(page.seen(since), 5) <= {0b000, 0b001, 0b100}
