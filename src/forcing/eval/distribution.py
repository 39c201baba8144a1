"""Distances between distributions of clips: what an open outcome can be judged by.

Clips are uint8 [N, F, H, W, 3]. Features are of frame pairs (x_t, x_{t+1}), so that both looks and motion count.
"""

from dataclasses import dataclass

import numpy as np

POOL = 4  # pixels a side averaged into one feature
PAIRS = 80  # frame pairs a feature is fitted to, at most: more move the axes little and take time


@dataclass(frozen=True)
class Features:
    """Principal axes of real frame pairs: mean [D], axes [D, k]."""

    mean: np.ndarray
    axes: np.ndarray

    @staticmethod
    def fit(clips: np.ndarray, keep: int = 64) -> "Features":
        pairs = _pairs(clips)
        mean = pairs.mean(0)
        _, _, axes = np.linalg.svd((pairs - mean)[: PAIRS * keep], full_matrices=False)
        return Features(mean, axes[:keep].T)

    def of(self, clips: np.ndarray) -> np.ndarray:
        """Features [N * (F - 1), k] of every neighbouring pair of frames."""
        return (_pairs(clips) - self.mean) @ self.axes


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between Gaussians fitted to features a [N, k] and b [M, k]."""
    gap = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr sqrt(A B) = sum of square roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap)


def motion(clips: np.ndarray) -> float:
    """Mean absolute change of a pixel from frame to frame, in [0, 1] units."""
    return float(np.abs(np.diff(clips.astype(np.float32) / 255, axis=1)).mean())


def diversity(clips: np.ndarray) -> float:
    """Mean absolute difference between different clips [N, F, H, W, 3] at the same frame, in [0, 1] units."""
    n = len(clips)
    if n < 2:
        raise ValueError(f"diversity needs at least 2 clips, got {n}")
    # sum over pairs of |a - b| = sum over sorted values of value * (2 rank - n + 1): one sort instead of n^2 / 2 pairs
    values = np.sort(clips.reshape(n, -1).astype(np.float32) / 255, axis=0)
    weight = 2 * np.arange(n, dtype=np.float32) - n + 1
    return float((weight @ values).mean() * 2 / (n * (n - 1)))


def _pairs(clips: np.ndarray) -> np.ndarray:
    n, f, h, w, c = clips.shape
    if f < 2:
        raise ValueError(f"frame pairs need clips of at least 2 frames, got {f}")
    high, wide = h - h % POOL, w - w % POOL
    small = clips[:, :, :high, :wide].reshape(n, f, high // POOL, POOL, wide // POOL, POOL, c)
    small = small.mean((3, 5), dtype=np.float32).reshape(n, f, -1) / 255
    return np.concatenate([small[:, :-1], small[:, 1:]], -1).reshape(n * (f - 1), -1)
