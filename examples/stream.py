"""Stream from a world without a socket: a viewer who changes their mind, and a fork that takes another way.

python examples/stream.py [WORLD] [OUT.gif]
"""

import sys
from pathlib import Path

import numpy as np

from forcing import media
from forcing.engine.session import Session, Setup, Told
from forcing.world import World

SHIPPED = Path(__file__).parents[1] / "src/forcing/shipped/rooms/dmd-2step"


def viewer(frame: int) -> Told:
    """Asked when a frame is about to be made: what should be seen, and which key is held."""
    prompt = "four rooms" if frame < 24 else "lava crossing"
    return Told(prompt, ["left" if frame % 8 == 7 else "forward"], switch="recache")


def main() -> None:
    path, out = [*map(Path, sys.argv[1:]), *([SHIPPED, Path("stream.gif")][len(sys.argv) - 1 :])]
    setup = Setup.of(World.load(path))
    session = Session(setup, viewer, seed=3)
    seen = [session.next().pictures for _ in range(24)]
    other = session.fork(lambda _: Told("four rooms", ["right"]))
    both = [np.concatenate([each.next().pictures for each in (session, other)], 2) for _ in range(24)]
    with media.writer(out, fps=8, scale=4) as film:
        for pictures in seen:
            film.add(np.concatenate([pictures, pictures], 2))
        for pictures in both:
            film.add(pictures)
    sys.stdout.write(f"wrote {out}: one stream of {len(seen)} frames, then the same and a fork of it side by side\n")


if __name__ == "__main__":
    main()
