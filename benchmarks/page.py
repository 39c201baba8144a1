"""How soon a world is on screen, and how soon it answers a key: `forcing play` in a real Chromium.

    python benchmarks/page.py [--rounds 5] [--presses 60] [--viewers 1] [--out FILE.json]

First picture: from the start of the command until the page shows one; the browser runs already. Key to picture: from
the browser's key event until the first picture that was made with it heard is painted. Exit code 1: the median first
picture took 5 s or more, the median key to picture 150 ms or more, or fewer than 10 pictures a second were shown.
"""

import argparse
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from forcing import files
from forcing.eval.machine import machine

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp")
FIRST_S, REACTION_MS, FPS = 5.0, 150.0, 10.0
NEAR = 0.97  # of the pictures a second that are aimed at, for the clock's sake


@contextmanager
def playing(more: list[str]):
    """The address of a server of its own."""
    command = [sys.executable, "-m", "forcing", "play", "--no-browser", "--port", "0", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            raise SystemExit(said + process.stdout.read())
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def opened(browser: Browser, url: str) -> Page:
    page = browser.new_context().new_page()
    page.goto(url)
    while not page.evaluate("(window.forcing?.counts.shown ?? 0) > 0"):
        time.sleep(0.005)
    return page


def pressed(page: Page, presses: int, seed: int) -> tuple[list[float], float]:
    """Milliseconds from each key to its picture, and pictures a second that were shown meanwhile."""
    draws, latencies = np.random.default_rng(seed), []
    page.wait_for_timeout(2000)
    began, before = time.perf_counter(), page.evaluate("window.forcing.counts.shown")
    for _ in range(presses):
        key = KEYS[draws.integers(len(KEYS))]
        page.keyboard.down(key)
        page.wait_for_timeout(int(draws.integers(120, 400)))
        page.keyboard.up(key)
        page.wait_for_timeout(int(draws.integers(120, 400)))
    shown, took = page.evaluate("window.forcing.counts.shown") - before, time.perf_counter() - began
    latencies = page.evaluate("window.forcing.latencies")  # of the last ones
    return latencies, shown / took


def measured(browser: Browser, given: argparse.Namespace) -> dict[str, Any]:
    firsts = []
    for _ in range(given.rounds):
        began = time.perf_counter()
        with playing(given.play) as url:
            opened(browser, url).context.close()
            firsts.append(time.perf_counter() - began)
    with playing(given.play) as url:
        others = [opened(browser, url) for _ in range(given.viewers - 1)]
        latencies, fps = pressed(opened(browser, url), given.presses, given.seed)
        for each in others:
            each.context.close()
    low, middle, high = np.percentile(latencies, (10, 50, 90))
    return {
        "first_s": {"p50": round(statistics.median(firsts), 2), "most": round(max(firsts), 2)},
        "reaction_ms": {"p10": round(low), "p50": round(middle), "p90": round(high), "keys": len(latencies)},
        "shown_fps": round(fps, 2),
        "viewers": given.viewers,
        "seed": given.seed,
        "machine": machine(),
    }


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 5), ("presses", 60), ("viewers", 1), ("seed", 0)):
        asked.add_argument(f"--{name}", type=int, default=default)
    asked.add_argument("--out", type=Path)
    asked.add_argument("play", nargs="*", help="more for forcing play, after --")
    given = asked.parse_args()
    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        found = measured(browser, given)
        browser.close()
    print(json.dumps(found, indent=1))
    if given.out is not None:
        files.write(given.out, json.dumps(found, indent=1).encode() + b"\n")
    kept = found["first_s"]["p50"] < FIRST_S and found["reaction_ms"]["p50"] < REACTION_MS
    return 0 if kept and found["shown_fps"] >= NEAR * FPS else 1


if __name__ == "__main__":
    sys.exit(main())
