"""Units of work done by several processes, each with a device and a model of its own."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

import torch

from forcing.data.parts import Tick, Unit

Do = Callable[[Unit, Tick], None]  # one unit


def work(units: Sequence[Unit], start: Callable[[str], Do], devices: Sequence[str], tick: Tick) -> None:
    """Do all units. `start(device)` loads what is needed and gives what does a unit.

    For one device it is done here; for several, by a process each, to which `start` and the units travel. On a CPU each
    has one thread, so that the same comes out however many there are. An error of one is raised here, and ends all.
    """
    devices = devices[: len(units)]
    if len(devices) == 1:
        with _one_thread():
            do = start(devices[0])
            for unit in units:
                do(unit, tick)
        return
    left, crew = deque(units), {}
    spawned = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    try:
        for device in devices:
            here, there = spawned.Pipe()
            process = spawned.Process(target=_member, args=(there, start, device), daemon=True)
            process.start()
            there.close()  # the process holds the other copy: once it is gone, `here` says so
            crew[here] = process
        _led(left, list(crew), tick)
    except (EOFError, ConnectionError) as gone:
        raise RuntimeError("a process that encodes has died; what was finished is kept") from gone
    finally:
        for pipe, process in crew.items():
            pipe.close()
            process.terminate()
            process.join()


def _led(left: deque[Unit], busy: list[Connection], tick: Tick) -> None:
    for pipe in busy:
        pipe.send(left.popleft())
    while busy:
        ready = wait(busy)
        for pipe in [each for each in busy if each in ready]:
            told = pipe.recv()
            if isinstance(told, Exception):
                raise told
            if told is not None:
                tick(told)
            elif left:
                pipe.send(left.popleft())
            else:
                busy.remove(pipe)


def _member(pipe: Connection, start: Callable[[str], Do], device: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that leads
    torch.set_num_threads(1)
    try:
        do = start(device)
        while True:
            do(pipe.recv(), pipe.send)
            pipe.send(None)
    except (EOFError, ConnectionError):
        return  # the process that leads is gone
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(error)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
