"""Take the pictures of the page that the documentation shows, while somebody walks through the shipped world.

    python tools/screenshots.py docs/images [NAME ...]

Needs Chromium (or its path in CHROMIUM) and Playwright.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE = 60.0  # seconds
DESK: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
ARROWS = {"left": "ArrowLeft", "right": "ArrowRight", "forward": "ArrowUp", "wait": "Space"}


@dataclass(frozen=True)
class Shot:
    """begin: how the session begins; walk: keys one after another, the last one held; cut: a prompt to go to before."""

    begin: str
    walk: str
    size: dict[str, Any]
    scheme: str = "light"
    cut: str = ""


SHOTS = {
    "play-reality": Shot("prompt=lava+crossing&seed=15&reality=true", "forward forward", DESK),
    "play-dark": Shot("prompt=four+rooms&seed=24", "left forward forward right wait", DESK, "dark", "lava crossing"),
    "play-phone": Shot("prompt=lava+crossing&seed=31", "forward forward", PHONE),
    "play-phone-dark": Shot("prompt=four+rooms&seed=22", "right forward", PHONE, "dark"),
}


@contextmanager
def playing() -> Iterator[str]:
    """The address of the shipped world."""
    command = [sys.executable, "-m", "forcing", "play", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise RuntimeError(f"forcing play said {line!r}")
        yield found[0]
        process.terminate()


def until(page: Page, condition: str) -> None:
    """Asked from outside: the page's policy forbids code that comes as text."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(f"(() => {{ const f = window.forcing; return f && ({condition}); }})()"):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition}: {page.evaluate('window.forcing')}")
        page.wait_for_timeout(20)


def more(page: Page, count: int) -> None:
    """Wait for so many pictures."""
    until(page, f"f.counts.shown >= {page.evaluate('window.forcing.counts.shown') + count}")


def walk(page: Page, shot: Shot) -> None:
    """Press the keys; the last one stays down."""
    *keys, last = shot.walk.split()
    for key in keys:
        page.keyboard.press(ARROWS[key])
        more(page, 3)
    page.keyboard.down(ARROWS[last])
    more(page, 2)


def taken(browser: Browser, url: str, shot: Shot) -> bytes:
    """A PNG of the page."""
    context = browser.new_context(color_scheme=shot.scheme, **shot.size)
    page = context.new_page()
    page.goto(f"{url}#{shot.begin}")
    until(page, "f.state === 'live' && f.shown?.frame > 12")
    if shot.cut:
        page.get_by_test_id("switch-cut").click()
        page.get_by_test_id("prompts").get_by_text(shot.cut).click()
        until(page, f"f.prompt === '{shot.cut}'")
        page.evaluate("scrollTo(0, 0)")
        more(page, 12)
    walk(page, shot)
    data = page.screenshot(animations="disabled")
    context.close()
    return data


def small(data: bytes) -> bytes:
    """The same picture in 256 colours or fewer."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    picture.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(arguments: list[str]) -> None:
    """Take those that are named, or all of them."""
    folder, *names = arguments
    with playing() as url, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in names or SHOTS:
            data = small(taken(browser, url, SHOTS[name]))
            path = Path(folder) / f"{name}.png"
            path.write_bytes(data)
            print(f"{path}: {len(data) / 1000:.0f} kB")  # noqa: T201
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
