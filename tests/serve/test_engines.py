"""Engines that fail, hang, die or cannot start: sessions go on, or are told why they do not."""

import asyncio
import os
import signal
import time

import httpx
import pytest
from serve_toys import SOON, Served, pid_of, serving, until, viewing

from forcing.serve import mock, orders, supervisor, wire
from forcing.serve.gateway import run
from forcing.serve.options import Options

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(("fault", "code"), [("raise", "failed"), ("memory", "busy"), ("nan", "failed")])
def test_a_session_that_fails_fails_alone(fault, code):
    async def main(served):
        async with viewing(served, seed=1) as other:
            async with viewing(served, bye=False, seed=13) as viewer:
                assert await viewer.closed() == wire.FAILED
                error = next(told for told in viewer.told if told["type"] == "error")
                assert error["code"] == code and error["message"] and viewer.told[-1]["state"] == "closed"
            await other.look(5)
            assert other.generation == 1

    with serving(engine={"faults": {13: fault}}) as served:
        asyncio.run(main(served))
        assert served.metric("session_failures_total", code=code) == 1
        assert served.metric("oom_total") == (fault == "memory")
        assert served.desk.engines[0].slots == (1 if fault == "memory" else 8)
        assert served.metric("engine_restarts_total") == 0
        served.settled()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_is_replaced_and_sessions_go_on(number):
    async def main(served):
        async with viewing(served, seed=1, prompt="a") as one, viewing(served, seed=2) as two:
            await one.say("keys", id=5, held=["left"])
            await one.say("prompt", id=6, text="b")
            await asyncio.gather(one.look(12), two.look(12))
            before = one.frame
            os.kill(pid_of(served), number)
            for viewer in (one, two):
                await viewer.until("state", state="recovering", generation=1)
                await viewer.until("state", state="live", generation=2)
            assert served.get("/readyz").status_code == 200
            seen = await one.look(before + 3)
            assert 4 <= seen[0].frame <= before + 1  # from what was saved, not from the start
            assert {(mark.keys, mark.event, mark.seed) for mark in seen} == {(1, 5, 1)}
            assert len({mark.prompt for mark in seen}) == 1 and seen[0].prompt == one.pictures[11].prompt
            await two.look(3)

    with serving(in_process=False, silent_s=1.0, stall_s=60.0) as served:
        asyncio.run(main(served))
        assert served.metric("engine_restarts_total") == 1
        assert served.metric("engine_stalls_total") == (number == signal.SIGSTOP)
        until(lambda: not served.desk.visits)
        until(lambda: len(served.gateway.supervisor.lives) == 1)
        served.settled()


def test_an_engine_that_is_busy_without_progress_is_replaced():
    async def main(served):
        async with viewing(served, seed=13) as viewer, viewing(served, seed=1) as other:
            await viewer.until("state", state="live", generation=2)
            await other.until("state", state="live", generation=2)
            await viewer.look(8)

    with serving(in_process=False, stall_s=0.6, engine={"faults": {13: "hang"}, "after": 5}) as served:
        asyncio.run(main(served))
        assert served.metric("engine_stalls_total") == 1
        served.settled()


def test_without_anything_saved_it_begins_anew_and_says_so():
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            await viewer.look(2)
            os.kill(pid_of(served), signal.SIGKILL)
            await viewer.until("warning")
            assert (await viewer.look(1))[0].frame == 0 and viewer.generation == 2

    with serving(in_process=False, engine={"save": 1000}) as served:
        asyncio.run(main(served))
        served.settled()


def test_a_session_that_kills_its_engine_again_and_again_is_given_up():
    async def main(served):
        async with viewing(served, seed=1) as other:
            await other.look(2)
            async with viewing(served, bye=False, seed=13) as viewer:
                assert await viewer.closed() == wire.FAILED
                error = next(told for told in viewer.told if told["type"] == "error")
                assert error["code"] == "engine"

    with serving(in_process=False, engines=2, sessions=1, engine={"faults": {13: "poison"}}) as served:
        until(lambda: all(engine.state == "warm" for engine in served.desk.engines))
        asyncio.run(main(served))
        until(lambda: all(engine.state == "warm" for engine in served.desk.engines))
        assert served.metric("engine_restarts_total") == 3


def test_who_shares_an_engine_with_a_session_that_kills_it_is_not_to_blame():
    async def main(served):
        async with viewing(served, seed=1) as one, viewing(served, seed=2) as two:
            await asyncio.gather(one.look(2), two.look(2))
            async with viewing(served, bye=False, seed=13) as viewer:
                assert await viewer.closed() == wire.FAILED
            for other in (one, two):
                await other.until("state", state="live")
                while other.pictures[-1].frame < 12:  # after the last engine was lost
                    await other.look(1)
                assert not [told for told in other.told if told["type"] == "error"]

    with serving(in_process=False, sessions=3, engine={"faults": {13: "poison"}}) as served:
        asyncio.run(asyncio.wait_for(main(served), 60))
        served.settled()


def test_places_that_memory_took_come_back():
    async def main(served):
        async with viewing(served, seed=1) as other:
            await other.look(2)
            async with viewing(served, bye=False, seed=13) as viewer:
                assert await viewer.closed() == wire.FAILED
            assert served.desk.engines[0].slots == 1
            until_ = asyncio.get_running_loop().time() + SOON
            while served.desk.engines[0].slots < 4:
                assert asyncio.get_running_loop().time() < until_
                await asyncio.sleep(0.05)
            await other.look(2)

    with serving(sessions=4, steady_s=0.5, engine={"faults": {13: "memory"}}) as served:
        asyncio.run(main(served))


def test_an_engine_that_cannot_be_started_now_is_started_later(monkeypatch):
    with serving(in_process=False) as served:
        body, failed = supervisor.Spawned, []

        def spawned(*args):
            if len(failed) < 2:
                failed.append(1)
                raise OSError(12, "Cannot allocate memory")
            return body(*args)

        monkeypatch.setattr(supervisor, "Spawned", spawned)
        os.kill(pid_of(served), signal.SIGKILL)
        until(lambda: len(failed) == 2 and served.desk.engines[0].state == "warm")


def leaves(_connection, _options):
    """An engine that leaves at once."""


def unfit(connection, _options):
    """An engine whose world is damaged."""
    connection.send_bytes(orders.pack(orders.Unfit("the world is damaged")))


@pytest.mark.parametrize(
    ("target", "told"),
    [(leaves, "given up after 3 failures in a row"), (unfit, "^the world cannot be served: the world")],
)
def test_where_no_engine_ever_starts_the_server_ends_and_says_why(target, told):
    with pytest.raises(ValueError, match=told):
        run(Options(port=0, backoff_s=0.02, crashes=3, in_process=True), target)


def once(connection, options):
    """An engine that is ready once, and leaves at once ever after."""
    if not once.lives:
        once.lives.append(1)
        mock.main(connection, options)


once.lives = []


def test_an_engine_that_ends_again_and_again_is_given_up_and_told():
    served = Served(once, backoff_s=0.02, crashes=3).warm()
    try:
        served.desk.engines[0].life.body.kill()
        until(lambda: served.get("/readyz").json()["engines"][0]["state"] == "broken")
        answer = served.get("/readyz")
        assert answer.status_code == 503 and "given up after 3 failures in a row" in answer.json()["engines"][0]["why"]
        answer = served.post("/api/sessions")
        assert answer.status_code == 503 and "no engine works" in answer.json()["message"]
        assert served.get("/healthz").status_code == 200
    finally:
        served.close()


def is_silent(connection, _options):
    """An engine that is ready, and never says a word again."""
    connection.send_bytes(orders.pack(orders.Ready(mock.Scene().world, 1)))
    connection.poll(None)


def test_a_gateway_that_slept_blames_no_engine():
    with serving(is_silent, silent_s=1.5, backoff_s=60.0) as served:
        served.loop.call_soon_threadsafe(time.sleep, 2.5)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.5), served.loop).result(SOON)
        assert served.metric("engine_stalls_total") == 0
        until(lambda: served.metric("engine_stalls_total") == 1)


def test_who_waits_for_an_engine_that_is_slow_to_start_is_queued():
    async def main(served):
        async with httpx.AsyncClient(base_url=served.url) as client:
            place = (await client.post("/api/sessions")).json()
            assert place["position"] == 1 and (await client.get("/readyz")).status_code == 503
            async with asyncio.timeout(SOON):
                while "url" not in place:
                    await asyncio.sleep(0.05)
                    place = (await client.get(f"/api/sessions/{place['ticket']}")).json()
        async with viewing(served, place["ticket"], seed=1):
            pass

    served = Served(engine={"start_s": 0.7})
    try:
        asyncio.run(main(served))
    finally:
        served.close()


def test_a_slow_prompt_does_not_stop_the_old_one():
    async def main(served):
        async with viewing(served, seed=1, prompt="a") as viewer:
            at = time.monotonic()
            await viewer.say("prompt", id=5, text="b")
            await viewer.until("accepted", id=5)
            assert time.monotonic() - at < 0.5
            before = len(viewer.pictures)
            await viewer.until("applied", id=5)
            assert time.monotonic() - at >= 1.0 and len(viewer.pictures) - before > 5

    with serving(engine={"prompt_s": 1.0}) as served:
        asyncio.run(main(served))
        assert served.metric("prompt_apply_seconds_sum") >= 1.0
        served.settled()
