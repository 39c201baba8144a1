"""A progress bar with elapsed time and ETA; where nobody watches, a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 10.0  # seconds between lines


class Bar:
    """`label`: what is going on. `unit`: what is counted."""

    def __init__(self, label: str, unit: str, console: Console) -> None:
        self.label, self.unit, self.console = label, unit, console
        self._began = self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=None, note=unit)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total`, and anything worth saying beside it."""
        self._progress.update(self._task, completed=done, total=total, note=note or self.unit)
        now = time.monotonic()
        if self.console.is_terminal or now - self._said < _EVERY:
            return
        self._said = now
        left = f", about {(now - self._began) / done * (total - done):.0f} s left" if done else ""
        said = f"{self.unit}, {note}" if note else self.unit
        self.console.print(f"{self.label}: {done} of {total} {said}{left}")
