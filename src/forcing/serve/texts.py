"""Prompts are understood beside the engine: a text encoder may take seconds, and nobody's pictures wait for it."""

import queue
import threading
from collections.abc import Callable, Mapping

from torch import Tensor

Text = Mapping[str, Tensor]
Then = Callable[[Text | Exception], None]


class Texts:
    """One thread encodes, one prompt after another; what is to be done then is done by whoever calls `done`.

    encode: raises ValueError for a prompt that is not known.
    """

    def __init__(self, encode: Callable[[str | None], Text]) -> None:
        self.encode, self.waiting = encode, 0
        self._asked: queue.SimpleQueue[tuple[str | None, Then] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[Then, Text | Exception]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="texts", daemon=True)
        self._thread.start()

    def ask(self, prompt: str | None, then: Then) -> None:
        self.waiting += 1
        self._asked.put((prompt, then))

    def done(self) -> None:
        """Do what waited for texts that are there by now."""
        while not self._made.empty():
            then, made = self._made.get()
            self.waiting -= 1
            then(made)

    def close(self) -> None:
        """A thread that has computed must have ended before the process does; one that still encodes is left behind."""
        self._asked.put(None)
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            prompt, then = asked
            try:
                made: Text | Exception = self.encode(prompt)
            except Exception as wrong:
                made = wrong
            self._made.put((then, made))
