"""Control and validity: frames read as tiles, and compared with what they must show."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from forcing.envs.rooms import AGENT, TILES, UNSEEN, classify
from forcing.eval.truth import expect_batch


@dataclass(frozen=True)
class Views:
    """Frames read as tiles [N, T, 7, 7]: `ids`, int64, of the nearest tiles, and `valid`, whether they are near."""

    ids: np.ndarray
    valid: np.ndarray

    @staticmethod
    def read(frames: np.ndarray, within: float) -> "Views":
        """Views of frames [N, T, 56, 56, 3]; valid up to a distance of `within`, in [0, 1] units."""
        ids, distance = classify(frames)
        return Views(ids, distance < within)

    def after(self, other: "Views") -> "Views":
        """`other`, then these."""
        return Views(np.concatenate([other.ids, self.ids], 1), np.concatenate([other.valid, self.valid], 1))


@dataclass(frozen=True)
class Judged:
    """Tiles [N, T, 7, 7]: which are determined by what came before (`known`), and which of those are `right`.

    seen: determined tiles that must show something. Darkness and the agent itself are easy to keep: a model that
    forgot everything would be right about them.
    """

    known: np.ndarray
    seen: np.ndarray
    right: np.ndarray
    valid: np.ndarray

    def control(self, part: slice) -> float:
        """Share of determined tiles with something to see that are right, among frames `part`."""
        return share(self.right[:, part], self.seen[:, part])

    def control_frames(self, part: slice) -> float:
        """Share of frames `part` in which every determined tile is right."""
        known, right = self.known[:, part], self.right[:, part]
        return share(np.all(right | ~known, (-2, -1)), np.any(known, (-2, -1)))

    def validity(self, part: slice, *, determined: bool) -> float:
        """Share of tiles that are tiles of the world, among those that are determined, or those that are not."""
        known = self.known[:, part]
        return share(self.valid[:, part], known if determined else ~known)


def against_truth(made: Views, true: Views, led: np.ndarray, memory: int | None) -> Judged:
    """Frames predicted one ahead, against what the true frames before each determine. led [N, T]: the keys."""
    ids, known = expect_batch(true.ids, led[:, 1:], memory)
    seen = known & (ids != UNSEEN) & (ids != AGENT)
    return Judged(known, seen, known & made.valid & (made.ids == ids), made.valid)


def against_itself(made: Views, led: np.ndarray, memory: int | None) -> Judged:
    """A rollout, against what its own frames before each determine."""
    return against_truth(made, made, led, memory)


def recognised(made: Views, real: Views, prompts: Sequence[str]) -> float:
    """Share of clips that look like their own prompt's more than like any other's; NaN if there is but one prompt.

    `made` and `real` hold clips of the same `prompts`. A clip is told by how much of each kind of tile it shows, over
    how much that varies between real clips of one prompt.
    """
    names = sorted(set(prompts))
    if len(names) < 2:
        return float("nan")
    own = np.array([names.index(prompt) for prompt in prompts])
    found, true = _kinds(made.ids), _kinds(real.ids)
    means = np.stack([true[own == number].mean(0) for number in range(len(names))])
    spread = np.cov(true - means[own], rowvar=False, bias=True)
    # a kind that real clips of a prompt never show varies by nothing: as if by a little, or it alone would decide
    spread += max(0.01 * np.trace(spread) / len(spread), 1e-6) * np.eye(len(spread))
    gaps = found[:, None] - means
    distances = np.einsum("npk,npk->np", gaps @ np.linalg.inv(spread), gaps)
    return float((distances.argmin(1) == own).mean())


def _kinds(ids: np.ndarray) -> np.ndarray:
    # of each clip, the share of its tiles that are of each kind
    return np.stack([(ids == kind).mean((1, 2, 3)) for kind in range(len(TILES))], 1)


def share(hit: ArrayLike, among: ArrayLike) -> float:
    """Share of `hit` where `among`; NaN if that is nowhere."""
    hit, among = np.asarray(hit), np.asarray(among)
    count = int(np.sum(among))
    return float(np.sum(hit & among)) / count if count else float("nan")
