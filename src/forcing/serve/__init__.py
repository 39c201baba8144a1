"""Letting people in: a gateway without torch, engine processes beside it, and a page."""

from multiprocessing.connection import Connection
from typing import Any


def engine(connection: Connection, told: dict[str, Any]) -> None:
    """The real engine, for a process of its own: torch is loaded there, and not by the gateway."""
    from forcing.serve.host import main

    main(connection, told)
