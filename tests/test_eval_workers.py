"""Jobs side by side: all are done, the work adds up, and an error or Ctrl-C stops the rest."""

import threading
import time

import pytest
import torch

from forcing.eval import workers
from forcing.eval.workers import side_by_side


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(workers, "POLL", 0.01)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_jobs_run_two_at_a_time_each_on_one_thread():
    meeting, threads, watched = threading.Barrier(2, timeout=30), [], []

    def job(tick):
        meeting.wait()  # a job alone would wait for ever
        threads.append(torch.get_num_threads())
        tick(3)

    side_by_side([(f"job {i}", job) for i in range(4)], lambda name, done: watched.append((name, done)))
    assert threads == [1] * 4 and torch.get_num_threads() == 2
    assert watched[-1][1] == 12 and watched[-1][0].startswith("job ")
    assert [done for _, done in watched] == sorted(done for _, done in watched)
    side_by_side([], lambda name, done: None)


def endless(tick):
    while True:
        time.sleep(0.01)
        tick(1)


def test_an_error_stops_the_others():
    def wrong(tick):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([("endless", endless), ("wrong", wrong), ("more", endless)], lambda name, done: None)
    assert torch.get_num_threads() == 2


def test_ctrl_c_stops_them_all():
    def interrupt(name, done):
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([(str(i), endless) for i in range(5)], interrupt)
    assert not [each for each in threading.enumerate() if each.name.startswith("ThreadPool")]
