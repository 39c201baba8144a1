"""Copy the products of a finished run into the package, in half precision, with the curves that made them.

python tools/ship.py runs/rooms base ar cd dmd-2step
"""

import shutil
import sys
from pathlib import Path

import torch

from forcing.world import World

SHIPPED = Path(__file__).parent.parent / "src" / "forcing" / "shipped" / "rooms"


def ship(run: Path, names: list[str]) -> None:
    for name in names:
        home = SHIPPED / name
        World.load(run / name / "world").save(home, dtype=torch.float16)
        shutil.copy(run / name / "metrics.jsonl", home / "metrics.jsonl")
        size = sum(file.stat().st_size for file in home.iterdir())
        sys.stdout.write(f"{name}: {size / 1e6:.1f} MB in {home}\n")


if __name__ == "__main__":
    ship(Path(sys.argv[1]), sys.argv[2:])
