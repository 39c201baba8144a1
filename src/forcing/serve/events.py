"""What happens in a server, for whoever operates it: warnings as sentences, or everything as JSON lines.

No prompt, key, token or ticket is ever said; sessions have the names of their logs.
"""

import io
import json
import logging
import queue
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any

_log = logging.getLogger("forcing.serve")
_log.addHandler(logging.NullHandler())  # whoever embeds a gateway decides


def tell(event: str, **fields: Any) -> None:
    """Something that is as it should be."""
    _log.info(event, extra={"fields": fields})


def warn(event: str, **fields: Any) -> None:
    """Something that an operator should look at."""
    _log.warning(event, extra={"fields": fields})


class Lines(logging.Formatter):
    """One JSON object a line: at (UTC), level, event, and what belongs to the event."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), **_fields(record)}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


class Words(logging.Formatter):
    """A sentence."""

    def format(self, record: logging.LogRecord) -> str:
        told = ", ".join(f"{name} {value}" for name, value in _fields(record).items())
        text = f"{record.levelname.lower()}: {record.getMessage()}{f' ({told})' if told else ''}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class Posted(QueueHandler):
    """Handed to another thread: a terminal or a pipe that takes nothing must not stop the server. What is too much is
    dropped.
    """

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # as it is: it stays in this process


def show(*, lines: bool, stream: io.TextIOBase | None = None) -> Callable[[], None]:
    """From now on, for this process, until what is returned is called. lines: all as JSON; else warnings, in words."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(Lines() if lines else Words())
    posted = Posted(queue.Queue(10_000))
    listener = QueueListener(posted.queue, handler)
    listener.start()
    for logger in (_log, logging.getLogger("uvicorn")):
        logger.handlers = [posted]
        logger.propagate = False
        logger.setLevel(logging.INFO if lines and logger is _log else logging.WARNING)
    return listener.stop


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return record.__dict__.get("fields", {})
