"""What happens in a server is said, as lines that a program reads or as words; and nothing that is secret."""

import asyncio
import io
import json
import logging

import pytest
from serve_toys import serving, until, viewing

from forcing.serve import events


@pytest.fixture
def heard():
    """What is said from here on, as JSON lines."""
    loggers = [logging.getLogger(name) for name in ("forcing.serve", "uvicorn")]
    before = [(each, each.handlers, each.level, each.propagate) for each in loggers]
    stream, stops = io.StringIO(), []

    def listen(*, lines: bool) -> io.StringIO:
        stops.append(events.show(lines=lines, stream=stream))
        return stream

    yield listen
    for stop in stops:
        stop()
    for each, handlers, level, propagate in before:
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def test_the_life_of_a_session_is_said(heard, tmp_path):
    async def main(served):
        async with viewing(served, seed=9, prompt="a secret prompt") as viewer:
            await viewer.say("keys", id=4, held=["left"])
            await viewer.look(3)
            served.desk.engines[0].life.body.kill()
            await viewer.until("state", state="live", generation=2)
            return viewer

    stream = heard(lines=True)
    with serving(logs=tmp_path) as served:
        viewer = asyncio.run(main(served))
        until(lambda: "session over" in stream.getvalue())
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [each["event"] for each in said]
    for event in ("listening", "engine starting", "engine ready", "session asked for", "session placed", "socket"):
        assert event in told
    lost = said[told.index("engine lost")]
    assert (lost["level"], lost["engine"], lost["sessions"]) == ("warning", 0, 1) and "ended" in lost["why"]
    over = said[told.index("session over")]
    assert over["session"] == viewer.ready["session"] and over["pictures"] >= 3 and over["why"]
    for secret in ("a secret prompt", "left", viewer.ready["resume"]):
        assert secret not in stream.getvalue()


def test_words_are_for_what_is_wrong(heard):
    stream = heard(lines=False)
    events.tell("socket", session="one")
    events.warn("engine lost", engine=0, why="signal 9")
    until(lambda: stream.getvalue() == "warning: engine lost (engine 0, why signal 9)\n", stream.getvalue)
    logging.getLogger("uvicorn.error").error("it broke", exc_info=ValueError("a trace"))
    until(lambda: "error: it broke" in stream.getvalue() and "ValueError: a trace" in stream.getvalue())
