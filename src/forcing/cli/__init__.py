"""The command line. Each command is a module of this package with `run(args, console)`; none is imported before asked.

Exit codes: 0 done, 1 a stage failed its gate or diverged, 2 the user asked for something that cannot be, 130 stopped.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from forcing import __version__

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = {
    "demo": "train a small world with the whole method, measure it, write a report (minutes, no GPU needed)",
    "record": "play an environment and keep what it shows",
    "train": "train one recipe; any of its fields can be changed",
    "pipeline": "train every stage in order; run it again to continue or to skip what is finished",
    "generate": "make clips from prompts and keys, or with Wan from prompts, images and videos",
    "eval": "measure every stage against the world itself",
    "report": "one HTML page: table, curves, clips of every stage",
    "play": "a world in the browser, for one or many",
    "load": "many viewers at once on a server, and what they see of it",
    "replay": "make a played session again from its log",
    "encode": "a folder of videos with captions into latents to train Wan on",
    "convert": "weights of Wan between the names that people use",
    "fixture": "a complete tiny Wan with tiny videos, to try every command on in seconds",
    "bench": "how fast a world streams on this machine, as ratios measured in one run",
    "recipes": "the runs we know, and their settings as JSON",
}
DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130

_USAGE = """usage: forcing COMMAND [options]
       forcing COMMAND --help
       forcing --version

Causal Forcing++: from a bidirectional video diffusion model to a real-time, interactive one.

{commands}

Start with `forcing demo`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Must be set before torch is imported: on busy cores, threads that spin while they wait cost more than they save.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if argv is None else argv)
    console = _console()
    if not args or args[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
        console.print(_USAGE.format(commands="\n".join(lines)))
        return DONE
    if args[0] in ("-V", "--version"):
        console.print(f"forcing {__version__}")
        return DONE
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return _complain(f"unknown command {args[0]!r}; there are {', '.join(COMMANDS)}.{hint}", WRONG)
    try:
        with _terminated_as_interrupted():
            return importlib.import_module(f"forcing.cli.{args[0]}").run(args[1:], console)
    except SystemExit as leaving:  # the parser has said what was wrong, or has shown its help
        return leaving.code if isinstance(leaving.code, int) else DONE
    except KeyboardInterrupt:
        return _complain("stopped; run the same command to go on, or to begin again", STOPPED)
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        return _complain(_told(error), code)


def _code(error: Exception) -> int | None:
    # None: not something to tell the user in a line, but a fault of ours that needs its traceback.
    if isinstance(error, OSError):
        wrong = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
        return WRONG if isinstance(error, wrong) else FAILED
    if isinstance(error, ValueError):
        return WRONG if _raised_here(error) else None
    if _lacks_memory(error) or _lacks_room(error):
        return FAILED
    from forcing.train.gate import GateClosed
    from forcing.train.loop import Diverged
    from forcing.train.run import Interrupted

    if isinstance(error, Interrupted):
        return STOPPED
    return FAILED if isinstance(error, GateClosed | Diverged) else None


def _raised_here(error: Exception) -> bool:
    # Our own messages name the value and what is allowed; a ValueError from within torch or numpy does not.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    home = Path(__file__).resolve().parent.parent
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).resolve().is_relative_to(home)


def _lacks_memory(error: Exception) -> bool:
    # torch has a class for it on a GPU, and none on a CPU
    named = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return named or isinstance(error, MemoryError)


def _lacks_room(error: Exception) -> bool:
    # safetensors has its own class for a disk that is full or fails, and the same for a damaged file
    return type(error).__name__ == "SafetensorError" and "I/O error" in str(error)


def _told(error: Exception) -> str:
    if _lacks_memory(error):
        wanted = re.search(r"allocate (\d+(?:\.\d+)?)\.? (\w+)", str(error))
        asked = f" ({wanted[1]} {wanted[2]} at once)" if wanted else ""
        return f"not enough memory{asked}: try a smaller --size or --batch, or fewer --frames"
    if _lacks_room(error):
        return f"weights cannot be written or read ({error})"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _complain(message: str, code: int) -> int:
    _console(stderr=True).print(f"forcing: {message}" if code == STOPPED else f"error: {message}")
    return code


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # soft_wrap: a path or a message that is cut into lines cannot be copied or searched for
    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that temporary files go. Training has its own handler, which saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
