"""Chromium with eyes of ours, gateways in processes of their own for it to look at, and a cable that can be pulled."""

import base64
import importlib.util
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from chromium import CHROMIUM, FLAGS
from PIL import Image

from forcing.serve import mock, wire

SOON = 30.0  # seconds until something must have happened, on a busy machine
DESK = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
PLAY = ["-m", "forcing", "play", "--no-browser", "--port", "0", "--threads", "1"]
MOCKED = """
import json, sys
from forcing.serve.gateway import run
from forcing.serve.mock import main
from forcing.serve.options import Options
sys.exit(run(Options(port=0, **json.loads(sys.argv[1])), main, lambda url: print(url, flush=True)))
"""

# Runs before the page does. Keeps what is on the canvas after each painting: small pictures as they are, of larger ones
# the numbers that the mock engine paints.
EYES = """(() => {
  window.seen = [];
  const draw = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (...told) {
    draw.apply(this, told);
    if (this.canvas.id !== "picture") return;
    const at = performance.timeOrigin + performance.now();
    const now = window.forcing.generation;
    const { width, height } = this.canvas;
    const pixels = this.getImageData(0, 0, width, height).data;
    const white = (x, y) => pixels[4 * (y * width + x)] > 127;
    const number = (row) => [...Array(32).keys()].reduce((sum, n) => 2 * sum + white(8 * n + 4, 8 * row + 4), 0);
    const small = width < 256;
    const picture = small ? this.canvas.toDataURL() : "";
    const marks = small ? [] : [0, 1, 2, 3, 4, 5, 6, 7].map(number);
    queueMicrotask(() => window.seen.push({ at: at / 1000, now, ...window.forcing.shown, picture, marks }));
  };
})();"""

# How many columns of the timeline's row at `y` have the accent's colour.
COLUMNS = """(y) => {
  const canvas = document.querySelector('[data-testid="timeline"]');
  const pencil = new OffscreenCanvas(1, 1).getContext("2d");
  pencil.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
  pencil.fillRect(0, 0, 1, 1);
  const accent = pencil.getImageData(0, 0, 1, 1).data.slice(0, 3).join();
  const row = canvas.getContext("2d").getImageData(0, Math.round(y * devicePixelRatio), canvas.width, 1).data;
  let count = 0;
  for (let at = 0; at < row.length; at += 4) count += row.slice(at, at + 3).join() === accent;
  return count;
}"""


def missing() -> str:
    """Why there can be no journeys here, if there cannot."""
    if CHROMIUM is None:
        return "chromium is not installed (or say where it is in CHROMIUM)"
    return "" if importlib.util.find_spec("playwright") else "playwright is not installed"


@dataclass(frozen=True)
class Seen:
    """A picture as it was on the screen. at: seconds since the epoch; now: the generation that was to be shown then.

    mark: of the session, as the page was told.
    """

    at: float
    now: int
    generation: int
    frame: int
    latent: int
    event: int
    mark: int
    picture: str
    marks: list[int]

    @property
    def pixels(self) -> np.ndarray:
        """Of a small picture: [height, width, 3]."""
        data = base64.b64decode(self.picture.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)

    @property
    def read(self) -> mock.Marks:
        """What the mock engine painted. AssertionError for what it did not paint."""
        *numbers, check = self.marks
        marks = mock.Marks(*numbers)
        assert check == np.bitwise_xor.reduce([*numbers, 0xFFFFFFFF]), marks
        return marks


def change(one: np.ndarray, other: np.ndarray) -> float:
    """Between two pictures: the mean over their values, of 255."""
    return float(np.abs(one - other).mean())


class Watched:
    """A page and what was seen on it; made: when each picture was made, by (session, generation, frame), in seconds."""

    def __init__(self, page) -> None:
        self.page = page
        self.page.set_default_timeout(1000 * SOON)
        self.broken: list[str] = []
        self.made: dict[tuple[int, int, int], float] = {}
        page.on("pageerror", lambda error: self.broken.append(str(error)))
        page.on("console", lambda line: self.broken.append(line.text) if "Security Policy" in line.text else None)
        page.on("websocket", lambda socket: socket.on("framereceived", self._received))

    def _received(self, data) -> None:
        if isinstance(data, bytes):
            told = wire.Picture.unpack(data)
            self.made[told.mark, told.generation, told.frame] = told.made_us / 1e6

    def __getattr__(self, name):
        return getattr(self.page, name)

    def on(self, testid):
        return self.page.get_by_test_id(testid)

    def told(self, what=""):
        """What the page says of itself."""
        return self.page.evaluate(f"window.forcing{what and '.' + what}")

    def until(self, condition: str, seconds: float = SOON) -> None:
        """Asked from outside: the page's policy forbids code that comes as text."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"(() => {{ const f = window.forcing; return f && ({condition}); }})()"):
            assert time.monotonic() < end, (condition, self.told())
            self.page.wait_for_timeout(20)

    def live(self, url: str, how: str = "seed=3", least: int = 2) -> "Watched":
        self.page.goto(f"{url}#{how}")
        self.until(f"f.state === 'live' && f.shown?.frame >= {least}")
        return self

    def seen(self, since: int = 0) -> list[Seen]:
        return [Seen(**each) for each in self.page.evaluate("(since) => window.seen.slice(since)", since)]

    def more(self, count: int) -> list[Seen]:
        """So many pictures from now on, at least."""
        since = self.page.evaluate("window.seen.length")
        self.until(f"window.seen.length >= {since + count}")
        return self.seen(since)

    def ages(self, seen: list[Seen]) -> list[float]:
        """Seconds from when it was made until it was on the screen, of each. All clocks are this machine's."""
        began = time.time() - time.monotonic()
        return [each.at - began - self.made[each.mark, each.generation, each.frame] for each in seen]

    def came(self, generation: int) -> list[int]:
        """Which pictures were sent, by their numbers."""
        return [frame for _, own, frame in self.made if own == generation]

    def lanes(self, count: int, height: int = 84, band: int = 24) -> list[int]:
        """How much of the timeline says that a key was down, for each of `count` keys."""
        rows = [band + (height - band) / count * (row + 0.5) for row in range(count)]
        return [self.page.evaluate(COLUMNS, row) for row in rows]


@contextmanager
def launched(kind):
    """A browser of this kind."""
    browser = kind.launch(executable_path=CHROMIUM, args=FLAGS)
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def watched(browser, **how):
    """A page of a browser that has nothing else in it."""
    context = browser.new_context(**(how or DESK))
    context.add_init_script(EYES)
    one = Watched(context.new_page())
    try:
        yield one
    finally:
        context.close()
    assert not one.broken


class Gateway:
    """`python` with these arguments, which says its address first. warns: words of what it may say after that."""

    def __init__(self, *arguments: str) -> None:
        self.warns: list[str] = []
        command, piped = [sys.executable, *arguments], subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdout=piped, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + self.process.communicate(timeout=SOON)[0]
        self.url = found[0]
        end = time.monotonic() + SOON
        while httpx.get(self.url + "/readyz").status_code != 200:
            assert time.monotonic() < end, self.url
            time.sleep(0.05)

    def engines(self) -> list[int]:
        """Its children, but for the one that python keeps to tidy up."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and self._ours(folder):
                    found.append(int(folder.name))
        return found

    def _ours(self, folder: Path) -> bool:
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == self.process.pid and b"spawn_main" in (folder / "cmdline").read_bytes()

    def end(self) -> None:
        """As a terminal or a service does it."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=SOON)
        said = out.removesuffix("stopped\n").splitlines()
        assert self.process.returncode == 0
        assert [line for line in said if not any(words in line for words in self.warns)] == []


@contextmanager
def serving(*arguments: str):
    gateway = Gateway(*arguments)
    try:
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.end()


def playing():
    """What `forcing play` serves."""
    return serving(*PLAY)


def mocking(**options):
    """A gateway with the mock engine."""
    return serving("-c", MOCKED, json.dumps(options))


class Cable:
    """What lies between a browser and a gateway."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.there, self.whole = (host, int(port)), True
        self.ends: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self._thread(self._accept)

    def pull(self) -> None:
        """Everything that is connected is cut off, and nothing can be connected."""
        self.whole = False
        for end in self.ends:
            _cut(end)

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self.pull()
        _cut(self.listening)
        for thread in self.threads:
            thread.join(SOON)
        for each in (self.listening, *self.ends):
            each.close()

    def _thread(self, run, *told) -> None:
        self.threads.append(threading.Thread(target=run, args=told, daemon=True))
        self.threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                if self.whole:
                    far = socket.create_connection(self.there)
                    self.ends += near, far
                    self._thread(_pump, near, far)
                    self._thread(_pump, far, near)
                else:
                    near.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    _cut(other)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started, launched(started.chromium) as one:
        yield one


@pytest.fixture
def page(browser):
    with watched(browser) as one:
        yield one


@pytest.fixture(scope="module")
def rooms():
    """The shipped world and its real engine."""
    with playing() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def numbers():
    """The mock engine, 20 pictures a second."""
    with mocking(engine={"fps": 20.0, "pass_s": 0.01}) as gateway:
        yield gateway
