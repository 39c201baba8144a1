"""A session's controls as JSON lines: enough to make the same session again.

A line says `what`: the name of an order to the engine, with its fields ("open", "ask", "press", "back", "fork"), in the
order in which the engine gets them; or what the engine made of them: "chunk" (its first latent frame, and the newest
keys that it heard: `event`) and "applied" (from which latent frame a prompt holds); or "end". An image is a PNG beside,
named by its SHA-256. `resumed`: the session went on, in another process, from the chunk that is noted next.
"""

import hashlib
import io
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from forcing import files


class Journal:
    """The file has its name once the session is over; until then it is a draft beside. folder: None for no file."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / f"{name}.jsonl"
        self.file: io.BufferedWriter | None = None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = files.draft_of(self.path).open("wb")

    def note(self, what: str, **said: Any) -> None:
        if self.file is None:
            return
        line = {"at": round(time.time(), 3), "what": what, **said}
        try:
            self.file.write(msgspec.json.encode(line) + b"\n")
            self.file.flush()  # of a gateway that is killed, the draft has all but the last line
        except OSError:  # a full disk ends the journal, which stays a draft, and not the session
            self.file = None

    def image(self, data: bytes | None) -> str | None:
        """The name of an image, which is written."""
        if data is None:
            return None
        name = hashlib.sha256(data).hexdigest()
        if self.path is not None and not (path := self.path.parent / f"{name}.png").exists():
            with suppress(OSError):
                files.write(path, data)
        return name

    def end(self) -> None:
        if self.file is not None and self.path is not None:
            self.file.close()
            self.file = None
            os.replace(files.draft_of(self.path), self.path)
