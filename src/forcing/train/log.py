"""metrics.jsonl, the source of truth about a run, and what a person sees meanwhile."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from forcing import files


class Journal:
    """One JSON object a line, each with the step that it describes."""

    def __init__(self, path: Path, step: int) -> None:
        """Continue at `step`: lines beyond it, left by a run that died after its last checkpoint, are dropped."""
        kept = [line for line in read(path) if line["step"] <= step]
        self.path = files.write(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last line cut short by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Interrupt:
    """Within it, SIGINT and SIGTERM set `asked` instead of killing; a second one kills."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name


class Meter:
    """A progress bar with elapsed time and ETA; where nobody watches, a line now and then."""

    def __init__(self, name: str, steps: int, done: int, console: Console) -> None:
        self.name, self.steps, self.console, self._said = name, steps, console, -1
        self._bar = Progress(
            TextColumn("[bold]{task.description:>10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, note="")

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int, note: str) -> None:
        self._bar.update(self._task, completed=step, note=note)
        tenth = 10 * step // self.steps
        if not self.console.is_terminal and tenth > self._said:
            self._said = tenth
            left = self._bar.tasks[0].time_remaining
            eta = f", about {left:.0f} s left" if left else ""
            self.console.print(f"{self.name}: step {step}/{self.steps} {note}{eta}", highlight=False)
