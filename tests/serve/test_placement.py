"""Workers on many machines: browsers are sent to them, the dead come back, as many as needed are there.

Most of it with a Ray whose workers say what a test wants; the last tests with a real one on this machine.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from placement_toys import ActorDiedError, RayError, Threads, Told, ready
from serve_toys import SOON, until, viewing
from starlette.testclient import TestClient

from forcing.serve import events, mock, orders, placement, wire
from forcing.serve.options import Options
from forcing.serve.placement import ARRIVE_S, AWAY_S, LEAVE_S, LOOK_S, SILENT_S, Placement, Plan, Status, Worker, app

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]
OPTIONS = Options(sessions=1, queue=0, ticket_s=5.0)
TOYS = Path(__file__).with_name("placement_toys.py")


def leaves(connection, told):
    """An engine that cannot begin."""


def ends(connection, told):
    """An engine that could serve, and ends."""
    connection.send_bytes(orders.pack(orders.Ready(mock.Scene().world, 2)))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(events, "show", lambda **_: lambda: None)


@pytest.fixture
def said(monkeypatch):
    """What is said from here on: names of events and their fields."""
    heard = []
    for how in ("tell", "warn"):
        monkeypatch.setattr(events, how, lambda event, how=how, **fields: heard.append((how, event, fields)))
    return heard


def made(workers=1, **rest):
    """A placement of so many ready workers with 4 places each, and its Ray."""
    ray = Told()
    plan = Plan(**{"least": workers, "most": workers, **rest})
    placement = Placement(ray, Options(**{"send_s": 1.0}), plan, mock.main, clock=ray.clock)
    placement.look()
    for number, actor in enumerate(ray.actors):
        actor.says = ready(number)
    placement.look()
    return placement, ray


def where(placement):
    """To which workers browsers are sent, by their numbers."""
    return int(placement.send().removeprefix("http://10.0.0.").removesuffix(":8000"))


def asked(placement, path="/", **rest):
    return TestClient(app(placement), follow_redirects=False).get(path, **rest)


def states(placement):
    return [each.state for each in placement.workers]


# ---- where browsers are sent


def test_who_was_just_sent_counts():
    placement, ray = made(3)
    ray.actors[2].says = ready(2, free=2)
    placement.look()
    assert sorted(where(placement) for _ in range(10)) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_who_arrives_is_not_counted_twice_and_who_does_not_is_forgotten():
    placement, ray = made(1)
    (worker,) = placement.workers
    for _ in range(3):
        placement.send()
    assert worker.room == 1
    ray.actors[0].says = ready(0, free=2, taken=2, newest=2)
    placement.look()
    assert len(worker.sent) == 1 and worker.room == 1
    ray.actors[0].says = ready(0, free=4, newest=0)  # they have left, which does not bring the third
    placement.look()
    assert len(worker.sent) == 1
    placement.send()
    ray.actors[0].says = ready(0, free=3, taken=1, newest=3)  # one has come
    placement.look()
    assert len(worker.sent) == 1
    ray.now += ARRIVE_S + 0.1
    placement.look()
    assert worker.room == 3


def test_where_all_are_full_the_shortest_queue_is_the_best():
    placement, ray = made(3)
    for number, queue in enumerate((3, 1, 2)):
        ray.actors[number].says = ready(number, free=0, taken=4, queue=queue)
    placement.look()
    assert [where(placement) for _ in range(4)] == [1, 1, 2, 0]
    assert asked(placement).status_code == 307


def test_a_browser_is_sent_with_what_it_asked():
    placement, _ = made(1)
    answer = asked(placement, "/?seed=3&x=%20y")
    assert answer.status_code == 307 and answer.headers["location"] == "http://10.0.0.0:8000/?seed=3&x=%20y"
    assert answer.headers["cache-control"] == "no-store"
    assert asked(placement).headers["location"] == "http://10.0.0.0:8000/"


def test_where_no_worker_can_be_reached_a_page_says_so_and_tries_again():
    placement, ray = made(1)
    ray.actors[0].says = Status()
    placement.look()
    answer = asked(placement)
    text = answer.text
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert re.search(r'<meta http-equiv="refresh" content="\d+">', text) and "color-scheme: light dark" in text
    assert not re.search(r"src=|href=|url\(|@import|<script", text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    (told,) = re.findall(r"<p[^>]*>(.*)</p>", text)
    assert told.count(".") == 1 and told.endswith(".")


# ---- how workers are heard


def test_all_are_asked_at_once_and_the_silent_are_away(said):
    placement, ray = made(4)
    for actor in ray.actors[:3]:
        actor.says = None
    ray.actors[3].says, began, before = ready(3, free=1), ray.now, ray.actors[0].asked
    placement.look()
    assert ray.now - began == LOOK_S and placement.workers[3].status.free == 1
    while ray.now - began <= SILENT_S + LOOK_S:
        placement.look()
    assert states(placement) == ["away"] * 3 + ["ready"]
    assert ray.actors[0].asked == before + 1  # one question is enough
    assert [fields["worker"] for how, event, fields in said if (how, event) == ("warn", "worker away")] == [1, 2, 3]
    assert {where(placement) for _ in range(5)} == {3}
    ray.actors[0].says = ready(0)
    placement.look()
    assert states(placement) == ["ready", "away", "away", "ready"] and where(placement) == 0
    assert asked(placement, "/readyz").json()["workers"][1]["state"] == "away"


def test_a_short_silence_is_nothing():
    placement, ray = made(1)
    ray.actors[0].says, end = None, ray.now + SILENT_S - 2 * LOOK_S
    while ray.now < end:
        placement.look()
    assert states(placement) == ["ready"]


def test_an_error_in_answering_is_away_at_once():
    placement, ray = made(2)
    ray.actors[0].says = RayError("temporarily unavailable\nSocket closed")
    placement.look()
    assert states(placement) == ["away", "ready"] and placement.workers[0].why == "Socket closed"
    ray.actors[0].says = ready(0)
    placement.look()
    assert states(placement) == ["ready", "ready"]


def test_who_is_silent_for_long_is_replaced():
    placement, ray = made(1)
    ray.actors[0].says, end = None, ray.now + AWAY_S
    while ray.now <= end:
        assert not ray.actors[0].killed
        placement.look()
    assert states(placement) == ["pausing"]
    ray.now += 1
    placement.look()
    assert ray.actors[0].killed and len(ray.actors) == 2
    assert placement.workers[0].failures == 1


def test_ray_may_take_long_to_find_room():
    ray = Told()
    placement = Placement(ray, OPTIONS, Plan(1, 2), mock.main, clock=ray.clock)
    end = ray.now + 100 * AWAY_S
    while ray.now < end:
        placement.look()
        ray.now += 30
    assert states(placement) == ["starting"] and len(ray.actors) == 1 and not ray.actors[0].killed
    assert asked(placement, "/readyz").json()["workers"][0]["why"] == "Ray has not started it yet"


# ---- workers that fail


@pytest.mark.parametrize("says", [Status("failed", why="no folder"), ActorDiedError("a trace\n  of it\nno folder")])
def test_who_fails_is_replaced_with_growing_pauses_and_given_up_in_the_end(said, says):
    placement, ray = made(2)
    worker = placement.workers[0]
    pauses, options = [], placement.options
    for tried in range(1, options.crashes):
        ray.actors[-1 if tried > 1 else 0].says = says
        placement.look()
        assert states(placement) == ["pausing", "ready"] and worker.why == "no folder"
        pauses.append(worker.again_at - ray.now)
        ray.now = worker.again_at - 0.01
        placement.look()
        assert worker.actor is None
        ray.now = worker.again_at
        placement.look()
        assert states(placement) == ["starting", "ready"]
    assert pauses == [options.backoff_s * 2**n for n in range(options.crashes - 1)]
    ray.actors[-1].says = says
    ray.now += 3600
    for _ in range(3):
        placement.look()
        ray.now += 3600
    assert len(ray.actors) == 2 + options.crashes - 1
    assert [actor.killed for actor in ray.actors] == [True, False] + [True] * (options.crashes - 1)
    answer = asked(placement, "/readyz")
    assert answer.status_code == 200 and answer.json()["ready"]
    broken = answer.json()["workers"][0]
    assert broken["state"] == "broken" and broken["worker"] == 1 and broken["address"] == "" and broken["free"] == 0
    assert broken["why"] == "given up after 5 failures in a row; the last: no folder"
    assert [(how, fields["why"]) for how, event, fields in said if event == "worker given up"] == [
        ("warn", broken["why"])
    ]
    assert [fields["again_s"] for how, event, fields in said if event == "worker failed"] == pauses
    assert {where(placement) for _ in range(3)} == {1}


def test_the_next_worker_begins_anew():
    placement, ray = made(1)
    (worker,) = placement.workers
    ray.actors[0].says = ready(0, free=3, taken=1, newest=7)
    placement.look()
    placement.send()
    ray.actors[0].says = Status("failed", why="no")
    placement.look()
    ray.now = worker.again_at
    placement.look()
    ray.actors[1].says = ready(1)
    placement.look()
    assert worker.room == 4 and where(placement) == 1
    ray.actors[1].says = ready(1, free=3, taken=1, newest=1)
    placement.look()
    assert worker.room == 3


def test_pauses_have_an_end():
    ray = Told()
    placement = Placement(ray, Options(crashes=99), Plan(), mock.main, clock=ray.clock)
    placement.look()
    for _ in range(20):
        ray.actors[-1].says = Status("failed", why="no")
        placement.look()
        ray.now = placement.workers[0].again_at
        placement.look()
    ray.actors[-1].says = Status("failed", why="no")
    placement.look()
    assert placement.workers[0].again_at - ray.now == 30.0


def test_where_all_are_given_up_it_says_so():
    ray = Told()
    placement = Placement(ray, Options(crashes=1), Plan(), mock.main, clock=ray.clock)
    placement.look()
    ray.actors[0].says = Status("stopped", why="its gateway has ended")
    placement.look()
    assert states(placement) == ["broken"] and asked(placement).status_code == 503
    answer = asked(placement, "/readyz")
    assert answer.status_code == 503 and not answer.json()["ready"]
    assert answer.json()["workers"][0]["why"].endswith("its gateway has ended")


def test_who_was_well_for_long_has_not_failed_before():
    placement, ray = made(1)
    (worker,) = placement.workers
    ray.actors[0].says = Status("failed", why="no")
    placement.look()
    ray.now = worker.again_at
    placement.look()
    ray.actors[1].says = ready(1)
    placement.look()
    ray.now += placement.options.steady_s
    placement.look()
    assert worker.failures == 1
    ray.now += 1
    placement.look()
    assert worker.failures == 0


def test_who_failed_does_not_keep_others_from_being_added():
    placement, ray = made(1, most=3)
    ray.actors[0].says = Status("failed", why="no")
    placement.look()
    assert states(placement) == ["pausing", "starting"]
    ray.actors[1].says = Status("failed", why="no")
    ray.now += 1
    placement.look()  # the first is tried again, and not waited for
    assert states(placement) == ["starting", "pausing", "starting"] and len(ray.actors) == 4
    ray.now += 1
    placement.look()
    assert len(placement.workers) == 3


# ---- as many as are needed


def test_places_that_run_short_add_one_at_a_time_up_to_the_most(said):
    placement, ray = made(1, most=3, spare=2)
    assert len(ray.actors) == 1
    for _ in range(3):  # one is left, and nobody has arrived yet
        placement.send()
    placement.look()
    assert states(placement) == ["ready", "starting"]
    placement.look()
    assert len(ray.actors) == 2  # one that starts is waited for
    ray.actors[1].says = ready(1, free=0)
    placement.look()
    assert len(ray.actors) == 3
    ray.actors[2].says = ready(2, free=0)
    for _ in range(3):
        placement.look()
    assert len(ray.actors) == 3
    assert [fields["worker"] for how, event, fields in said if (how, event) == ("tell", "worker added")] == [1, 2, 3]
    assert [fields["worker"] for how, event, fields in said if (how, event) == ("tell", "worker ready")] == [1, 2, 3]
    assert {event for _, event, _ in said} == {"worker added", "worker ready"}  # and nothing of who was sent


def test_places_that_are_away_are_not_counted():
    placement, ray = made(1, most=2)
    ray.actors[0].says = RayError("unavailable")
    placement.look()
    assert states(placement) == ["away", "starting"]


def test_one_that_nobody_needs_is_drained_and_not_chosen_and_then_killed(said):
    placement, ray = made(1, most=2, idle_s=50.0)
    ray.actors[0].says = ready(0, free=0, taken=4)
    placement.look()
    ray.actors[1].says = ready(1, free=3, taken=1)
    placement.look()
    ray.actors[0].says = ready(0, free=4)
    ray.actors[1].says = ready(1, free=4)
    placement.look()
    ray.now += 50
    placement.send()  # to the first, which is in use therefore
    placement.look()
    assert len(placement.workers) == 2
    ray.now += 1
    placement.look()
    (left,) = placement.workers
    assert left.number == 1 and ray.actors[1].drained and not ray.actors[1].killed and not ray.actors[0].drained
    assert {where(placement) for _ in range(9)} == {0}
    assert [each["state"] for each in asked(placement, "/readyz").json()["workers"]] == ["ready", "leaving"]
    ray.actors[1].over = True
    placement.look()
    assert ray.actors[1].killed and placement.leaving == []
    ray.now += 1000
    placement.look()
    assert len(placement.workers) == 1  # the least
    assert [event for how, event, _ in said if how == "warn"] == []
    assert ("tell", "worker leaves", {"worker": 2, "sessions": 0}) in said


@pytest.mark.parametrize(("spare", "left"), [(0, 2), (5, 2), (9, 3)])
def test_no_more_leave_than_can_be_spared(spare, left):
    placement, ray = made(2, most=3, spare=spare, idle_s=50.0)
    if len(ray.actors) < 3:
        placement._add()
    ray.actors[2].says = ready(2)
    placement.look()
    ray.now += 49
    placement.look()
    assert len(placement.workers) == 3
    ray.now += 2
    placement.look()
    assert len(placement.workers) == left and sum(actor.drained for actor in ray.actors) == 3 - left


def test_one_that_leaves_takes_a_place_until_it_has():
    placement, ray = made(1, most=2, idle_s=50.0)
    placement._add()
    placement.look()
    ray.actors[1].says = ready(1)
    placement.look()
    ray.now += 51
    placement.look()
    assert len(placement.leaving) == 1
    rest = 1 - [each.drained for each in ray.actors].index(True)
    ray.actors[rest].says = ready(rest, free=0, taken=4)
    placement.look()
    assert len(ray.actors) == 2
    ray.actors[1 - rest].over = True
    placement.look()
    assert len(ray.actors) == 3


def test_one_that_took_long_to_start_is_not_idle_at_once():
    placement, ray = made(1, most=2, idle_s=50.0)
    ray.actors[0].says = ready(0, free=0, taken=4)
    placement.look()
    ray.now += 500
    ray.actors[0].says, ray.actors[1].says = ready(0, taken=1), ready(1)
    placement.look()
    assert len(placement.workers) == 2
    ray.now += 51
    placement.look()
    assert len(placement.workers) == 1


def test_the_least_are_those_that_work():
    placement, ray = made(1, most=2, spare=0, idle_s=50.0)
    placement._add()
    ray.actors[1].says = ready(1)
    placement.look()
    placement.workers[0].failures = placement.options.crashes
    ray.actors[0].says = Status("failed", why="no")
    ray.now += 1000
    placement.look()
    assert states(placement) == ["broken", "ready"] and not ray.actors[1].drained


# ---- stopping


def test_closing_drains_all_and_waits_for_them(said):
    placement, ray = made(3)
    ray.actors[0].says = ready(0, free=2, taken=2)  # since the last look
    ray.at[ray.now + 3.0] = lambda: [setattr(actor, "over", True) for actor in ray.actors[:2]]
    ray.at[ray.now + 5.0] = lambda: [placement_state(placement, ray), setattr(ray.actors[2], "over", True)]
    began, leaving = ray.now, []
    placement.close(threading.Event(), lambda *told: leaving.append(told))
    assert all(actor.drained and actor.killed for actor in ray.actors) and 5.0 <= ray.now - began < 5.5
    assert leaving == [(2, 10.0)]
    assert ("tell", "draining", {"workers": 3, "sessions": 2, "at_most_s": 10.0}) in said
    assert not [each for each in said if each[0] == "warn"]


def placement_state(placement, ray):
    assert [actor.killed for actor in ray.actors] == [True, True, False]
    assert placement.send() is None and asked(placement).status_code == 503
    told = asked(placement, "/readyz")
    assert told.status_code == 503 and told.json()["draining"]
    assert [each["state"] for each in told.json()["workers"]] == ["leaving"]


def test_closing_has_an_end(said):
    placement, ray = made(2)
    ray.actors[0].over, began, leaving = True, ray.now, []
    placement.close(threading.Event(), lambda *told: leaving.append(told))
    assert leaving == []
    patience = placement.options.drain_s + 2 * placement.options.send_s + LEAVE_S
    assert patience < ray.now - began < patience + 0.5 and all(actor.killed for actor in ray.actors)
    assert [(event, fields["worker"]) for how, event, fields in said if how == "warn"] == [("worker killed", 2)]


def test_told_twice_it_does_not_wait():
    placement, ray = made(2)
    hurry, began = threading.Event(), ray.now
    ray.at[ray.now + 2.0] = hurry.set
    placement.close(hurry)
    assert 2.0 <= ray.now - began < 2.5 and all(actor.killed for actor in ray.actors)


def test_who_was_never_there_is_not_waited_for():
    ray = Told()
    placement = Placement(ray, OPTIONS, Plan(), mock.main, clock=ray.clock)
    placement.look()
    placement.look()
    began = ray.now
    placement.close(threading.Event())
    assert ray.now == began + LOOK_S and ray.actors[0].killed and not ray.actors[0].drained


# ---- one worker


@contextlib.contextmanager
def working(options=OPTIONS, target=mock.main):
    worker = Worker(options, target)
    try:
        yield worker
    finally:
        stopped = threading.Thread(target=worker.drain)
        stopped.start()
        stopped.join(SOON)
        assert not stopped.is_alive()


def is_ready(worker):
    until(lambda: worker.status().state == "ready", worker.status)
    return worker.status()


def test_a_worker_says_how_it_is_and_stops_when_it_is_drained():
    with working(Options(sessions=2, in_process=True, drain_s=0.2, port=9)) as worker:
        first = is_ready(worker)
        assert (first.taken, first.free, first.queue, first.newest) == (0, 2, 0, 0)
        for _ in range(3):
            assert httpx.post(f"{first.address}/api/sessions", json={}).status_code in (201, 202)
        told = worker.status()
        assert (told.taken, told.free, told.queue, told.newest) == (3, 0, 1, 3)
    assert worker.status() == Status("stopped", why="its gateway has ended")


def test_a_worker_that_drains_is_not_ready():
    async def main():
        async with viewing(SimpleNamespace(url=worker.address, ws=f"ws{worker.address[4:]}/ws"), bye=False) as viewer:
            draining = threading.Thread(target=worker.drain)
            draining.start()
            await viewer.until("state", state="draining")
            told = await asyncio.to_thread(worker.status)
            assert (told.state, told.free) == ("stopping", 0) and draining.is_alive()
            assert await viewer.closed() == wire.GOING_AWAY
            await asyncio.to_thread(draining.join, SOON)
            assert not draining.is_alive()

    with working(Options(sessions=2, in_process=True, drain_s=0.3)) as worker:
        is_ready(worker)
        asyncio.run(main())


def test_a_worker_whose_gateway_cannot_begin_says_why(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with working(Options(logs=tmp_path / "logs", in_process=True)) as worker:
        until(lambda: worker.status().state == "failed", worker.status)
        assert "logs" in worker.status().why and "Error: " in worker.status().why


def test_what_failed_within_a_group_is_told_itself():
    inner = ExceptionGroup("within", [OSError("no space")])
    assert placement._cause(ExceptionGroup("in all", [inner])) == "OSError: no space"


@pytest.mark.parametrize(("engine", "why"), [(leaves, "the world cannot be served: "), (ends, "no engine works: ")])
def test_a_worker_whose_engines_all_fail_has_failed(engine, why):
    with working(Options(in_process=True, crashes=2, backoff_s=0.05), engine) as worker:
        until(lambda: f"{why}given up after 2 failures in a row" in worker.status().why, worker.status)
        assert worker.status().state == "failed"


def test_a_worker_that_starts_says_what_it_waits_for():
    with working(Options(in_process=True, backoff_s=60.0), leaves) as worker:
        until(lambda: worker.status().why == "it ended: the thread ended", worker.status)
        assert worker.status().state == "starting"


def test_a_worker_that_hangs_does_not_answer(monkeypatch):
    monkeypatch.setattr(placement, "SILENT_S", 0.2)
    with working(Options(in_process=True)) as worker:
        until(lambda: worker.server is not None)
        worker.server.loop.call_soon_threadsafe(time.sleep, 1.0)
        with pytest.raises(TimeoutError):
            worker.status()


# ---- addresses


@pytest.mark.parametrize("local", [True, False])
def test_workers_of_a_cluster_listen_everywhere_and_others_where_they_are_told(local):
    ray = Told()
    Placement(ray, OPTIONS, Plan(), mock.main, local=local, clock=ray.clock).look()
    assert ray.actors[0].args[0].host == ("127.0.0.1" if local else "0.0.0.0")


def test_a_worker_that_listens_everywhere_is_reached_where_others_can(monkeypatch):
    monkeypatch.setattr(placement, "_reachable", lambda host: {"0.0.0.0": "127.0.0.3"}[host])
    with working(Options(in_process=True, host="0.0.0.0")) as worker:
        address = is_ready(worker).address
        assert address.startswith("http://127.0.0.3:") and "<html" in httpx.get(address).text
        # a page that came from there may begin a session, and no other
        origins = [(address, 201), ("http://example.org", 403)]
        for origin, code in origins:
            answer = httpx.post(f"{address}/api/sessions", json={}, headers={"Origin": origin})
            assert answer.status_code == code


def test_a_worker_keeps_to_the_host_it_was_given():
    with working(Options(in_process=True, host="127.0.0.2")) as worker:
        address = is_ready(worker).address
        assert address.startswith("http://127.0.0.2:") and "<html" in httpx.get(address).text


@pytest.mark.parametrize(
    ("host", "known", "reached"),
    [
        ("0.0.0.0", "10.1.2.3", "10.1.2.3"),
        ("0.0.0.0", "127.0.0.1", "sent from AF_INET"),
        ("0.0.0.0", "fd00::1", "sent from AF_INET"),
        ("::", "fd00::1", "fd00::1"),
        ("::", "10.1.2.3", "sent from AF_INET6"),
        ("::", "::1", "sent from AF_INET6"),
    ],
)
def test_the_address_for_others_is_what_ray_knows_or_what_would_be_sent_from(monkeypatch, host, known, reached):
    @contextlib.contextmanager
    def sends(family, _kind):
        yield SimpleNamespace(connect=lambda _: None, getsockname=lambda: (f"sent from {family.name}", 0))

    util = SimpleNamespace(get_node_ip_address=lambda: known)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(util=util))
    monkeypatch.setattr(placement.socket, "socket", sends)
    assert placement._reachable(host) == reached


def test_without_any_network_it_is_this_machine(monkeypatch):
    def fails(*_):
        raise OSError("network is unreachable")

    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(util=util))
    monkeypatch.setattr(placement.socket, "socket", fails)
    assert [placement._reachable(host) for host in ("0.0.0.0", "::")] == ["127.0.0.1", "::1"]


# ---- the command


class Reached(Exception):
    pass


@pytest.fixture
def begun(monkeypatch):
    """`run` up to where workers are placed: what it told Ray, and the placement."""
    told = {}

    def init(**where):
        told.update(where)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    def place(*_args, **rest):
        raise Reached(rest)

    ray = SimpleNamespace(init=init, shutdown=lambda: told.update(over=True))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(placement, "Placement", place)
    return told


@pytest.mark.parametrize(("address", "local"), [("local", True), ("auto", False), ("10.0.0.1:6379", False)])
def test_only_local_is_this_machine_alone(begun, address, local):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Reached) as reached:
        placement.run(address, Options(port=0), Plan(), mock.main, print)
    assert reached.value.args == ({"local": local},)
    assert begun["address"] == address and begun["over"] and ("include_dashboard" in begun) == local
    assert signal.getsignal(signal.SIGTERM) == before  # Ray's leaves with 15, without a word


@pytest.mark.parametrize("wrong", [ConnectionError, RuntimeError, ValueError])
def test_where_there_is_no_cluster_it_says_so(begun, monkeypatch, wrong):
    def init(**_):
        raise wrong("nobody there")

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    with pytest.raises(ValueError, match="there is no Ray cluster at 'auto': nobody there"):
        placement.run("auto", Options(port=0), Plan(), mock.main, print)


def test_told_to_stop_while_ray_begins_it_stops(begun, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    init = sys.modules["ray"].init

    def told(**where):
        init(**where)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sys.modules["ray"], "init", told)
    with pytest.raises(KeyboardInterrupt):
        placement.run("local", Options(port=0), Plan(), mock.main, print)
    assert begun["over"] and signal.getsignal(signal.SIGTERM) == before


def test_a_port_that_is_taken_is_found_before_ray_begins(begun):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as told:
            placement.run("local", Options(port=port), Plan(), mock.main, print)
    assert told.value.filename == f"127.0.0.1:{port}" and "address" not in begun


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"forcing\[ray\]"):
        placement.run("local", Options(port=0), Plan(), mock.main, print)


def test_a_look_that_fails_ends_it_and_is_not_hidden():
    ray, said = Threads(), []
    failing = Placement(ray, Options(in_process=True, drain_s=0.2), Plan(), mock.main)
    failing._shrink = lambda now: 1 / 0
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(ZeroDivisionError):
        asyncio.run(placement._serve(failing, listening, said.append, lambda *_: None))
    assert said[0].startswith("http://127.0.0.1:") and failing.draining


class Command:
    """The command in a process of its own, with Ray ("ray"), or workers in threads of it ("toy")."""

    def __init__(self, kind, drain_s):
        arguments = [sys.executable, TOYS, kind, str(drain_s)]
        self.process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.front = self.process.stdout.readline().strip()
        until(lambda: httpx.get(self.front).status_code == 307, seconds=60.0)
        self.url = httpx.get(self.front).headers["location"].rstrip("/")
        self.ws = f"ws{self.url[4:]}/ws"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def end(self):
        """The exit code, the events that were said, and what was said of leaving."""
        out, told = self.process.communicate(timeout=60)
        lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        leaving = [line for line in out.splitlines() if line.startswith("leaving")]
        return self.process.returncode, [line["event"] for line in lines], leaving


@pytest.mark.parametrize("kind", ["toy", "ray"])
def test_a_command_that_is_told_to_stop_lets_viewers_finish(kind):
    if kind == "ray":
        pytest.importorskip("ray")

    async def main():
        async with viewing(command, bye=False, seed=1) as viewer:
            await viewer.look(3)
            began = time.monotonic()
            how = os.kill if kind == "ray" else os.killpg
            how(command.process.pid, signal.SIGTERM if kind == "ray" else signal.SIGINT)
            await viewer.until("state", state="draining")
            await viewer.look(3)
            async with httpx.AsyncClient() as client:
                assert (await client.get(command.front)).status_code == 503
                told = await client.get(command.front + "/readyz")
                assert told.status_code == 503 and told.json()["workers"][0]["state"] == "leaving"
            assert await viewer.closed() == wire.GOING_AWAY
            assert time.monotonic() - began > 1.4

    with Command(kind, drain_s=1.5) as command:
        asyncio.run(main())
        code, told, leaving = command.end()
    assert code == 0 and leaving == ["leaving 1 1.5"]
    ours = [event for event in told if event.startswith(("worker", "draining"))]
    ours = ours if kind == "ray" else list(dict.fromkeys(ours))  # where workers are threads, they say it as well
    assert ours == ["worker added", "worker ready", "draining", "worker leaves"]


def test_told_twice_the_command_stops_at_once():
    async def main():
        async with viewing(command, bye=False, seed=1) as viewer:
            await viewer.look(1)
            command.process.send_signal(signal.SIGTERM)
            await viewer.until("state", state="draining")
            command.process.send_signal(signal.SIGINT)
            await viewer.closed()

    with Command("toy", drain_s=60.0) as command:
        began = time.monotonic()
        asyncio.run(main())
        assert command.end()[0] == 0 and time.monotonic() - began < 15


# ---- a real cluster on this machine


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def looked(placement, wanted, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        placement.look()
        if found := wanted():
            return found
        time.sleep(0.2)
    raise AssertionError([each.told for each in placement.workers])


@contextlib.contextmanager
def placed(ray, plan):
    placement = Placement(ray, OPTIONS, plan, mock.main)
    try:
        yield placement
    finally:
        placement.close(threading.Event())


def test_a_browser_is_sent_to_a_worker_and_one_is_added_when_places_run_short(ray):
    with placed(ray, Plan(1, 2, spare=1, idle_s=2.0, cpus=0.5)) as placement:
        assert asked(placement).status_code == 503
        first = looked(placement, placement.best).status.address
        answer = asked(placement)
        assert answer.status_code == 307 and answer.headers["location"] == f"{first}/"
        assert "<html" in httpx.get(answer.headers["location"]).text
        ticket = httpx.post(f"{first}/api/sessions", json={}).json()
        assert ticket["ticket"] and len(placement.workers) == 1
        second = looked(placement, lambda: placement.best().room > 0 and placement.best()).status.address
        assert second != first and len(placement.workers) == 2
        assert len(asked(placement, "/readyz").json()["workers"]) == 2
        looked(placement, lambda: len(placement.workers) == 1)  # nobody has come to the second
        looked(placement, lambda: not placement.leaving)


def test_a_worker_that_dies_is_started_again(ray):
    with placed(ray, Plan(1, 1, cpus=0.5)) as placement:
        before = looked(placement, placement.best).status.address
        (worker,) = placement.workers
        with contextlib.suppress(Exception):
            ray.get(worker.actor.__ray_call__.remote(lambda _: os.kill(os.getpid(), signal.SIGKILL)))
        looked(placement, lambda: worker.failures == 1)
        assert "worker process has died" in worker.why
        after = looked(placement, placement.best).status.address
        assert after != before and "<html" in httpx.get(after).text


def test_a_worker_that_ray_cannot_make_says_why(ray):
    class Unmade:  # as where another version of us is on that machine
        def __init__(self, *_):
            raise ImportError("no such version")

        def status(self):
            raise NotImplementedError

    with placed(ray, Plan(1, 1, cpus=0.5)) as placement:
        placement._actor = ray.remote(Unmade)
        looked(placement, lambda: states(placement) == ["pausing"])
        assert placement.workers[0].why == "ImportError: no such version"


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="workers are 3 to 2"):
        Plan(3, 2)
    with pytest.raises(ValueError, match="gpus is -1"):
        Plan(gpus=-1.0)
