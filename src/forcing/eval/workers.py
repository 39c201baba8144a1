"""Several jobs at once, each on one core: batches as small as an evaluation's gain nothing from more.

A rollout of a few dozen clips of a small model takes as long on two cores as on one; two rollouts side by side take
half the time.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

Tick = Callable[[int], None]  # told how much work was just done
Job = Callable[[Tick], None]
POLL = 0.5  # seconds between two looks at the jobs


class StoppedError(RuntimeError):
    """Raised within a job by its next tick, because another failed or the user asked to stop."""


def side_by_side(jobs: Sequence[tuple[str, Job]], watch: Callable[[str, int], None]) -> None:
    """Do all jobs, in order, as many at a time as torch has threads, each with one thread of its own.

    `watch(name, done)` is called from here with the newest job that ticked and the work done by all. If a job fails
    or this is interrupted, the others stop at their next tick and the error is raised.
    """
    board = _Board()
    with _one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        pending: set[Future[None]] = {pool.submit(board.run, name, job) for name, job in jobs}
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
                watch(board.newest, board.done)
                for each in done:
                    each.result()
        finally:
            board.stopped = True
            for each in pending:
                each.cancel()


class _Board:
    """What the workers write on: the work done, by whom last, and whether to stop."""

    def __init__(self) -> None:
        self.newest, self.done, self.stopped = "", 0, False
        self._lock = threading.Lock()

    def run(self, name: str, job: Job) -> None:
        torch.set_num_threads(1)  # counts for the thread that says so

        def tick(work: int) -> None:
            if self.stopped:
                raise StoppedError(name)
            with self._lock:
                self.newest, self.done = name, self.done + work

        tick(0)
        job(tick)


@contextmanager
def _one_thread() -> Iterator[int]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
