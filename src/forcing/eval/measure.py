"""How much of everything an evaluation in `rooms` measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """Sizes of one evaluation; the figures of two evaluations compare only if they were taken with the same one.

    ahead: held-out clips judged one frame ahead. told: held-out clips played with their recorded keys. starts, forks:
    places that the free regime continues, and continuations of each. nothing: clips begun from nothing. train:
    training clips that the features of the Frechet distance are fitted to.
    clip: frames of the clips that are judged one frame ahead or begun from nothing; a training clip's length.
    start, frames: real frames that a rollout continues (more where a row's chunks ask for it), and frames it then
    generates. bucket: frames averaged into one point of a drift curve; frame pairs of one clip are alike, so fewer than
    16 of 80 clips are too few for a Frechet distance. many, few: sampling steps of the teachers, and of the few-step
    rows.
    keep: features of a frame pair. timed: frames timed for the cost of one. valid: greatest distance at which
    something counts as a tile of the world, root mean square in [0, 1] units: tiles are at least 0.18 apart, and floor
    with a fifth of wall blended in is 0.05 away.
    """

    name: str = "custom"
    ahead: int = 64
    told: int = 48
    starts: int = 40
    forks: int = 2
    nothing: int = 256
    train: int = 256
    clip: int = 12
    start: int = 4
    frames: int = 64
    bucket: int = 16
    many: int = 32
    few: tuple[int, ...] = (4, 2, 1)
    seeds: tuple[int, ...] = (0, 1, 2)
    keep: int = 64
    timed: int = 12
    valid: float = 0.05

    def __post_init__(self) -> None:
        for name in ("ahead", "told", "starts", "train", "start", "bucket", "many", "keep", "timed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("forks", "nothing", "clip"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} must be at least 2 (something is compared within it), got {getattr(self, name)}"
                )
        if self.frames < 1 or self.frames % self.bucket or self.bucket < 2:
            raise ValueError(f"{self.frames} frames do not divide into buckets of {self.bucket} (at least 2) frames")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different and at least one, got {self.seeds}")

    @property
    def free(self) -> int:
        """Clips of the free regime."""
        return self.starts * self.forks


FULL = Measure("full")
QUICK = Measure(
    "quick", ahead=6, told=6, starts=7, nothing=30, train=96, frames=24, bucket=8, many=16, keep=24, timed=6
)
