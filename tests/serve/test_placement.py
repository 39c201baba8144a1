"""Workers in a real local Ray cluster: browsers are sent to them, the dead come back, as many as needed are there."""

import contextlib
import os
import signal
import time

import httpx
import pytest

from forcing.serve import mock
from forcing.serve.options import Options
from forcing.serve.placement import Placement, Plan, app

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
OPTIONS = Options(sessions=1, queue=0)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def until(placement: Placement, wanted, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        placement.look()
        if found := wanted():
            return found
        time.sleep(0.2)
    raise AssertionError([each.status for each in placement.workers])


@contextlib.contextmanager
def placed(ray, plan: Plan):
    placement = Placement(ray, OPTIONS, plan, mock.main)
    try:
        yield placement
    finally:
        placement.close()


def test_a_browser_is_sent_to_a_worker_and_one_is_added_when_places_run_short(ray):
    from starlette.testclient import TestClient

    with placed(ray, Plan(1, 2, spare=1, idle_s=2.0, cpus=0.5)) as placement:
        client = TestClient(app(placement), follow_redirects=False)
        assert client.get("/").status_code == 503
        first = until(placement, placement.best)
        answer = client.get("/")
        assert answer.status_code == 307 and answer.headers["location"] == f"{first}/"
        assert "<html" in httpx.get(answer.headers["location"]).text
        ticket = httpx.post(f"{first}/api/sessions", json={}).json()
        assert ticket["ticket"] and len(placement.workers) == 1
        second = until(placement, placement.best)  # the first is full
        assert second != first and len(placement.workers) == 2
        assert len(client.get("/readyz").json()["workers"]) == 2
        until(placement, lambda: len(placement.workers) == 1)  # once the ticket has expired and nobody came


def test_a_worker_that_dies_is_started_again(ray):
    with placed(ray, Plan(1, 1, cpus=0.5)) as placement:
        before = until(placement, placement.best)
        (worker,) = placement.workers
        with contextlib.suppress(Exception):
            ray.get(worker.actor.__ray_call__.remote(lambda _: os.kill(os.getpid(), signal.SIGKILL)))
        after = until(placement, lambda: placement.best() not in (None, before) and placement.best())
        assert "<html" in httpx.get(after).text


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="workers are 3 to 2"):
        Plan(3, 2)
    with pytest.raises(ValueError, match="gpus is -1"):
        Plan(gpus=-1.0)
