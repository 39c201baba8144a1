"""The page: its pure parts in node, its table of the protocol against `wire`, and journeys in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from looking import READ, browser, fake, live, needs_chromium, on_screen, page, server, until

from forcing.serve import wire

__all__ = ["browser", "page", "server"]
HERE = Path(__file__).parent
PAGE = Path(wire.__file__).parent / "page"

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def node(*arguments: str) -> str:
    done = subprocess.run([str(NODE), *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def module(code: str) -> object:
    """What the last line of `code`, which may use `p` (protocol.js), says as JSON."""
    url = (PAGE / "protocol.js").as_uri()
    return json.loads(node("--input-type=module", "-e", f"import * as p from {url!r};\n{code}"))


# ---- without a browser


@needs_node
def test_pure_parts():
    node("--test", *map(str, sorted(HERE.glob("*.test.mjs"))))


def fields(kind: type) -> list[str]:
    return list(kind.__struct_fields__)


@needs_node
def test_the_page_and_the_gateway_mean_the_same():
    table = module("console.log(JSON.stringify(p))")
    assert (table["PROTOCOL"], table["VERSION"]) == (wire.PROTOCOL, wire.VERSION)
    assert table["MOST"] == {
        "control": wire.MOST_CONTROL,
        "prompt": wire.MOST_PROMPT,
        "keys": wire.MOST_KEYS,
        "grant": msgspec.json.schema(wire.Grant)["$defs"]["Grant"]["properties"]["chunks"]["maximum"],
    }
    assert table["SWITCHES"] == list(get_args(wire.Switch))
    assert table["STATES"] == list(get_args(wire.State))
    assert table["CODES"] == list(get_args(wire.Code))
    assert table["CLOSE"] == {name: getattr(wire, name) for name in table["CLOSE"]}
    assert table["CODECS"] == {str(wire.JPEG): "image/jpeg", str(wire.PNG): "image/png"}
    assert table["SAID"] == {kind.__struct_config__.tag: fields(kind) for kind in get_args(wire.Control)}
    told = [kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, wire.Told)]
    assert table["TOLD"] == {kind.__struct_config__.tag: fields(kind) for kind in told if kind is not wire.Told}
    assert table["WORLD"] == fields(wire.World)
    assert "<" + "".join(letter for _, letter in table["HEADER"]) == wire._HEADER.format
    assert table["HEADER_BYTES"] == wire.HEADER_BYTES


@needs_node
def test_pictures_are_read_as_they_were_written():
    picture = wire.Picture(3, 2**32 - 1, 7, 2**50 + 1, 2**53 - 1, 9, 11, b"image", b"reality", wire.PNG)
    code = "const own = Uint8Array.from(%s).buffer; const read = p.unpack(own);"
    code += "const text = (bytes) => String.fromCharCode(...bytes);"
    code += "const packed = [...new Uint8Array(p.pack(read))];"
    code += "console.log(JSON.stringify({...read, image: text(read.image), reality: text(read.reality), packed}))"
    read = module(code % list(picture.pack()))
    for name in ("generation", "frame", "latent", "made_us", "event", "took_us", "mark", "codec"):
        assert read[name] == getattr(picture, name), name
    assert (read["image"], read["reality"]) == ("image", "reality")
    assert wire.Picture.unpack(bytes(read["packed"])) == picture


def test_the_page_needs_nothing_from_elsewhere():
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://", text), path.name
        assert not re.search(r"\sstyle=|\son\w+=\"", text), (
            f"{path.name} has styles or code that a strict policy forbids"
        )
        assert len(text.splitlines()) <= 500, path.name


def test_every_control_can_be_found_by_a_test():
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    controls = re.findall(r"<(?:button|input|textarea)\b[^>]*>", text)
    assert controls
    assert not [control for control in controls if "data-testid=" not in control]
    names = re.findall(r'data-testid="([^"]+)"', text)
    assert len(set(names)) == len(names)


# ---- in a browser


@needs_chromium
def test_pictures_come_and_are_the_ones_that_were_sent(page, server):
    live(page, server, "seed=3&prompt=four+rooms&steps=2")
    assert server.said(wire.Begin) == [wire.Begin("four rooms", 3, 2)]
    seen, told = page.evaluate(f"[({READ})('picture'), window.forcing.shown]")
    assert seen == [told["generation"], told["frame"], told["event"], told["mark"]]
    assert page.get_by_test_id("status").inner_text() == "Live"
    assert page.get_by_test_id("veil").is_hidden()
    canvas = page.get_by_test_id("picture")
    assert canvas.bounding_box()["width"] % 56 == 0
    assert canvas.evaluate("(canvas) => getComputedStyle(canvas).imageRendering") == "pixelated"
    until(page, "f.fps.shown > 3 && f.age !== null")
    counts = page.evaluate("window.forcing.counts")
    assert counts["granted"] <= counts["shown"] + 2
    assert counts["stale"] == counts["broken"] == 0


@needs_chromium
def test_keys_reach_the_world_and_typing_does_not(page, server):
    live(page, server)
    page.keyboard.down("ArrowUp")
    page.wait_for_timeout(250)
    assert server.said(wire.Press)[-1].held == ["forward"]
    assert page.get_by_test_id("key-forward").evaluate("(key) => key.classList.contains('held')")
    page.keyboard.up("ArrowUp")
    page.wait_for_timeout(100)
    last = server.said(wire.Press)[-1]
    assert last.held == []
    until(page, f"f.event === {last.id} && f.latencies.length === 1")  # of a key that goes down, not up
    assert on_screen(page)["event"] == last.id
    assert 0 < page.evaluate("window.forcing.latencies[0]") < 2000
    before = len(server.said(wire.Press))
    page.get_by_test_id("seed").click()
    page.keyboard.type("wasd 5")
    assert len(server.said(wire.Press)) == before
    page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.wait_for_timeout(150)
    assert server.said(wire.Press)[-2].held == ["right"]


@needs_chromium
def test_whoever_leaves_lets_go_of_all_keys(page, server):
    live(page, server)
    page.keyboard.down("ArrowLeft")
    page.wait_for_timeout(100)
    assert server.said(wire.Press)[-1].held == ["left"]
    page.evaluate("dispatchEvent(new Event('blur'))")
    page.wait_for_timeout(100)
    assert server.said(wire.Press)[-1].held == []


@needs_chromium
def test_keys_on_the_screen(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    live(page, server)
    box = page.get_by_test_id("key-left").bounding_box()
    assert min(box["width"], box["height"]) >= 44
    page.get_by_test_id("key-left").tap()
    page.wait_for_timeout(150)
    assert [press for press in server.said(wire.Press) if "left" in [*press.held, *press.tapped]]
    assert server.said(wire.Press)[-1].held == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


@needs_chromium
def test_a_prompt_is_asked_for_accepted_and_applied(page, server):
    live(page, server)
    page.get_by_test_id("switch-cut").click()
    page.get_by_test_id("prompt-2").click()
    until(page, "f.prompt === 'lava crossing' && f.asked === null")
    (asked,) = server.said(wire.Ask)
    assert (asked.text, asked.switch) == ("lava crossing", "cut")
    assert page.get_by_test_id("prompt-2").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowUp")  # after a click, keys are the world's
    page.wait_for_timeout(100)
    assert server.said(wire.Press)


@needs_chromium
def test_any_text_where_any_will_do(page):
    world = msgspec.structs.replace(fake.ROOMS, prompts=[], keys=[], reality=False, steps=[4], frames=4, fps=16)
    with fake.Fake(world) as server:
        live(page, server)
        assert server.said(wire.Begin)[0].prompt is None
        box = page.get_by_test_id("prompt")
        for text in ("a red ball", "a wasd square"):
            box.fill(text)
            box.press("Enter")
            until(page, f"f.prompt === '{text}'")
        assert page.get_by_test_id("prompt-1").inner_text() == "a red ball"
        box.focus()
        box.fill("")
        box.press("ArrowUp")
        assert box.input_value() == "a wasd square"
        assert page.get_by_test_id("compare").is_hidden()
        assert page.get_by_test_id("pad").is_hidden()


@needs_chromium
def test_reality_beside_it(page, server):
    live(page, server)
    assert page.get_by_test_id("reality").is_hidden()
    page.get_by_test_id("compare").click()
    until(page, "f.generation === 2 && f.shown.generation === 2")
    assert server.said(wire.Begin)[-1].reality
    made, beside = (page.get_by_test_id(name).bounding_box() for name in ("picture", "reality"))
    assert (made["width"], made["height"], made["y"]) == (beside["width"], beside["height"], beside["y"])
    assert page.evaluate(READ, "reality")[0] == 2**14 - 1 - 2  # the fake one is the other's negative


@needs_chromium
def test_beginning_anew_and_going_back(page, server):
    live(page, server)
    page.get_by_test_id("seed").fill("77")
    page.get_by_test_id("seed").press("Enter")
    until(page, "f.generation === 2 && f.shown.generation === 2 && f.shown.frame > 6")
    assert server.said(wire.Begin)[-1].seed == 77
    page.get_by_test_id("back-frames").fill("4")
    page.get_by_test_id("back").click()
    until(page, "f.generation === 3 && f.shown.generation === 3")
    assert server.said(wire.Back)[0].frame >= 3
    assert on_screen(page)["generation"] == 3
    page.get_by_test_id("dice").click()
    until(page, "f.shown.generation === 4")
    assert server.said(wire.Begin)[-1].seed != 77
    page.get_by_test_id("steps-4").click()
    until(page, "f.shown.generation === 5")
    assert server.said(wire.Begin)[-1].steps == 4


@needs_chromium
def test_pausing(page, server):
    live(page, server)
    page.keyboard.press("p")
    until(page, "f.state === 'paused'")
    assert page.get_by_test_id("pill").inner_text() == "Paused"
    frame = page.evaluate("window.forcing.shown.frame")
    page.wait_for_timeout(400)
    assert page.evaluate("window.forcing.shown.frame") == frame
    page.get_by_test_id("pause").click()
    until(page, f"f.state === 'live' && f.shown.frame > {frame}")


@needs_chromium
def test_a_fork_goes_on_in_a_second_tab(page, server):
    live(page, server, "seed=12")
    with page.context.expect_page() as opened:
        page.get_by_test_id("fork").click()
    other = opened.value
    until(other, "f.state === 'live' && f.shown !== null")
    assert "ticket" not in other.url
    assert other.evaluate("window.forcing.shown.mark") != page.evaluate("window.forcing.shown.mark")
    assert other.get_by_test_id("seed").input_value() == "12"
    assert len(server.said(wire.Begin)) == 1


def pressed(page) -> list[int]:
    """Which prompts are."""
    return [n for n in range(3) if page.get_by_test_id(f"prompt-{n}").get_attribute("aria-pressed") == "true"]


@needs_chromium
def test_a_fork_knows_how_it_was_begun(page, server):
    live(page, server, "seed=12&reality=true")
    page.get_by_test_id("prompt-2").click()
    until(page, "f.prompt === 'lava crossing' && f.shown.latent > 4")
    with page.context.expect_page() as opened:
        page.get_by_test_id("fork").click()
    other = opened.value
    until(other, "f.generation === 1")  # before its first picture
    assert other.evaluate("window.forcing.prompt") == "lava crossing" and pressed(other) == [2]
    until(other, "f.shown !== null")
    assert other.get_by_test_id("timeline").evaluate(
        "(canvas) => canvas.getContext('2d').getImageData(18, 4, 2, 4).data.some((value) => value > 0)"
    )  # the band of its prompt
    other.get_by_test_id("reset").click()
    until(other, "f.generation === 2")
    begun = server.said(wire.Begin)[-1]
    assert (begun.prompt, begun.seed) == ("lava crossing", 12)


@needs_chromium
def test_a_fork_without_a_prompt_has_none(page):
    with fake.Fake(msgspec.structs.replace(fake.ROOMS, prompts=[])) as server:
        live(page, server)
        with page.context.expect_page() as opened:
            page.get_by_test_id("fork").click()
        until(opened.value, "f.shown !== null")
        assert opened.value.evaluate("window.forcing.prompt") is None


@needs_chromium
def test_a_fork_from_before_a_switch_has_the_prompt_of_then(page, server):
    live(page, server)
    page.get_by_test_id("prompt-1").click()
    until(page, "f.prompt === 'four rooms'")
    at = page.evaluate("window.forcing.shown.latent")
    until(page, f"f.shown.latent > {at + 3}")
    page.get_by_test_id("back-frames").fill("500")
    with page.context.expect_page() as opened:
        page.get_by_test_id("back-fork").click()
    until(opened.value, "f.shown !== null && f.generation === 2")
    assert opened.value.evaluate("window.forcing.prompt") == "multi room" and pressed(opened.value) == [0]
    assert page.evaluate("window.forcing.prompt") == "four rooms" and pressed(page) == [1]
    page.evaluate("window.open = () => null")  # where no second tab may be opened, there is a link
    page.get_by_test_id("back-fork").click()
    href = page.get_by_test_id("notes").get_by_role("link").get_attribute("href")
    assert "prompt=multi+room" in href and "ticket=" in href


@needs_chromium
def test_going_back_over_a_switch_goes_back_to_its_prompt(page, server):
    live(page, server)
    page.get_by_test_id("prompt-2").click()
    until(page, "f.prompt === 'lava crossing'")
    at = page.evaluate("window.forcing.shown.latent")
    until(page, f"f.shown.latent > {at + 3}")
    server.deaf = wire.Back
    page.get_by_test_id("back-frames").fill("500")
    page.get_by_test_id("back").click()
    assert page.evaluate("window.forcing.prompt") == "multi room" and pressed(page) == [0]  # as it seems
    server.tell(wire.Wrong("not_kept", "frame 0 is not kept any more"))
    until(page, "f.prompt === 'lava crossing'")  # but it does not
    assert pressed(page) == [2]
    server.deaf = ()
    page.get_by_test_id("back").click()
    until(page, "f.generation === 2 && f.shown.generation === 2 && f.prompt === 'multi room'")
    assert pressed(page) == [0]
    server.tell(wire.Went(3, "four rooms", 2))  # whatever the gateway says is so
    until(page, "f.prompt === 'four rooms'")
    server.tell(wire.Went(3, "lava crossing", 1))  # but for what was before
    page.get_by_test_id("reset").click()
    until(page, "f.generation === 3")
    assert server.said(wire.Begin)[-1].prompt == "four rooms"


@needs_chromium
def test_going_back_while_paused_shows_where(page, server):
    live(page, server)
    until(page, "f.shown.frame > 12")
    page.keyboard.press("p")
    until(page, "f.state === 'paused'")
    page.get_by_test_id("back-frames").fill("6")
    page.get_by_test_id("back").click()
    until(page, "f.generation === 2 && f.shown.generation === 2")
    went = server.said(wire.Back)[0].frame
    page.wait_for_timeout(400)
    assert (on_screen(page)["generation"], on_screen(page)["frame"]) == (2, went)  # one, and no more
    assert page.evaluate("window.forcing.state") == "paused"
    page.get_by_test_id("pause").click()
    until(page, f"f.state === 'live' && f.shown.frame > {went + 2}")


@needs_chromium
def test_a_fork_can_begin_earlier(page, server):
    live(page, server)
    until(page, "f.shown.latent > 12")
    page.get_by_test_id("back-frames").fill("5")
    with page.context.expect_page():
        page.get_by_test_id("back-fork").click()
    with page.context.expect_page():
        page.get_by_test_id("timeline").click(position={"x": 50, "y": 30}, modifiers=["Shift"])
    first, second = server.said(wire.Fork)
    assert second.frame < 12 < first.frame + 8 and not server.said(wire.Back)


@needs_chromium
def test_a_film_is_saved(page, server):
    live(page, server)
    with page.expect_download() as saved:
        page.get_by_test_id("film").click()
    assert saved.value.suggested_filename == "forcing-multi-room-3.mp4"
    assert Path(saved.value.path()).read_bytes() == b"a film"
    assert page.get_by_test_id("film").is_enabled()


@needs_chromium
def test_a_session_is_saved_and_opened(page, server, tmp_path):
    live(page, server)
    with page.expect_download() as saved:
        page.get_by_test_id("session").click()
    assert saved.value.suggested_filename == "forcing-multi-room-3.forcing"
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    page.get_by_test_id("file").set_input_files(path)
    until(page, "f.generation === 2 && f.state === 'live'")
    begun = server.said(wire.Begin)[-1]
    assert (begun.save, begun.prompt, begun.seed, begun.steps) == ("save-1", "four rooms", 77, 2)
    assert page.get_by_test_id("seed").input_value() == "77"
    assert page.get_by_test_id("steps-2").get_attribute("aria-pressed") == "true"
    page.get_by_test_id("reset").click()
    until(page, "f.generation === 3")
    assert server.said(wire.Begin)[-1].save is None
    path.write_bytes(b"another")
    page.get_by_test_id("file").set_input_files(path)
    page.get_by_test_id("notes").get_by_text("The session was not opened: not a session").wait_for()


@needs_chromium
def test_a_picture_to_start_from(page, server):
    live(page, server)
    page.get_by_test_id("file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": fake.encoded(fake.numbers(1))}
    )
    until(page, "f.generation === 2")
    assert server.images == [fake.encoded(fake.numbers(1))]
    assert server.said(wire.Begin)[-1].image == "image-1"
    assert page.get_by_test_id("thumb").is_visible()
    page.get_by_test_id("clear-image").click()
    until(page, "f.generation === 3")
    assert server.said(wire.Begin)[-1].image is None


def drag(page, path: Path, testid: str) -> None:
    """A file from the desktop, as far as Chromium can tell; its own way with it, which is to open it, is prevented."""
    page.evaluate("addEventListener('drop', (event) => { window.kept = event.defaultPrevented; })")
    box = page.get_by_test_id(testid).bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    hand = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
        if kind == "dragOver":
            page.locator("#stage.dropping").wait_for()
    assert page.evaluate("window.kept")


@needs_chromium
def test_a_picture_is_dropped(page, server, tmp_path):
    live(page, server)
    path = tmp_path / "start.png"
    path.write_bytes(fake.encoded(fake.numbers(7)))
    drag(page, path, "picture")
    until(page, "f.generation === 2 && f.shown.generation === 2")
    assert server.images == [path.read_bytes()]
    assert server.said(wire.Begin)[-1].image == "image-1"
    assert page.get_by_test_id("thumb").is_visible()
    assert page.locator("#stage.dropping").count() == 0


@needs_chromium
def test_a_session_is_dropped(page, server, tmp_path):
    live(page, server)
    path = tmp_path / "earlier.forcing"
    path.write_bytes(b"a session")
    drag(page, path, "hud")  # anywhere will do
    until(page, "f.generation === 2 && f.shown.generation === 2")
    assert server.said(wire.Begin)[-1].save == "save-1" and not server.images
    assert page.evaluate("window.forcing.prompt") == "four rooms" and pressed(page) == [1]


# Which rows of the panel are in more than one line, or wider than it.
RAGGED = """() => [...document.querySelectorAll(".panel .row")].filter((row) => {
  const boxes = [...row.children].map((each) => each.getBoundingClientRect()).filter(({ width }) => width);
  const middles = boxes.map(({ top, bottom }) => Math.round((top + bottom) / 2));
  const most = document.querySelector(".panel").getBoundingClientRect().right + 1;
  return Math.max(...middles) - Math.min(...middles) > 2 || boxes.some(({ right }) => right > most);
}).map((row) => row.textContent.trim())"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_a_row_is_a_row(page, server, width):
    page.set_viewport_size({"width": width, "height": 800})
    live(page, server)
    page.get_by_test_id("file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": fake.encoded(fake.numbers(1))}
    )
    page.get_by_test_id("thumb").wait_for()
    assert page.evaluate(RAGGED) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@needs_chromium
def test_themes(page, server):
    live(page, server)
    paper = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):
        page.get_by_test_id("theme").click()
        seen.add(page.evaluate(paper))
    assert len(seen) == 2
    assert page.get_by_test_id("theme").inner_text() == "Theme: auto"
