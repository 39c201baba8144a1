"""One self-contained page about a run: what was made, how good it is, and what it looks like."""

from collections.abc import Mapping
from pathlib import Path


def report(
    run: Path,
    out: Path | None = None,
    *,
    recording: Path | None = None,
    shipped: Mapping[str, Path] | None = None,
) -> Path:
    """Write the page of the run folder to `out` (default: `run`/report.html) and return where it lies.

    recording: where the run's recording is (default: `run`/recording, else where the evaluation found it); shipped:
    worlds, by recipe name, that the run did not make. What is missing (stages, evaluation, recording) is said so.
    """
    raise NotImplementedError
