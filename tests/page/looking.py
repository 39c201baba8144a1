"""A browser that looks at a fake gateway, for tests of the page."""

import time
from collections.abc import Iterator

import pytest
from chromium import CHROMIUM, FLAGS

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
fake = pytest.importorskip("fake", reason="starlette and uvicorn are not installed") if CHROMIUM else None


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator["fake.Fake"]:
    with fake.Fake() as served:
        yield served


@pytest.fixture
def page(browser) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda line: broken.append(line.text) if "Security Policy" in line.text else None)
    yield page
    context.close()
    assert not broken


READ = """(id) => {
  const canvas = document.querySelector(`[data-testid="${id}"]`);
  const brush = canvas.getContext("2d");
  const white = (x, y) => brush.getImageData(4 * x + 2, 4 * y + 2, 1, 1).data[0] > 127;
  return [0, 3, 6, 9].map((y) => [...Array(14).keys()].reduce((sum, x) => 2 * sum + white(x, y), 0));
}"""


def on_screen(page) -> dict[str, int]:
    return dict(zip(("generation", "frame", "event", "mark"), page.evaluate(READ, "picture"), strict=True))


def until(page, condition: str) -> None:
    """Asked from outside: the page's policy forbids code that comes as text."""
    end = time.monotonic() + 10
    while not page.evaluate(f"(() => {{ const f = window.forcing; return f && ({condition}); }})()"):
        assert time.monotonic() < end, (condition, page.evaluate("window.forcing"))
        page.wait_for_timeout(20)


def live(page, server, how: str = "seed=3") -> None:
    page.goto(f"{server.url}#{how}")
    until(page, "f.state === 'live' && f.shown?.frame > 0")
