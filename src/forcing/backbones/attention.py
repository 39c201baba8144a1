"""Attention under a layout: the frame table decides which tokens look at which, the past comes first."""

from collections.abc import Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from forcing.layout import Abreast, Layout, widen
from forcing.shapes import FrameMask

DENSE = 2**20  # entries of a token mask up to which one masked call is cheaper than one call for each group of frames


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout | Abreast, layer: int) -> Tensor:
    """q, k, v [B, frames * tokens, heads, dim] -> [B, frames * tokens, heads, dim]. k must be rotated already.

    q may lack the frames that the layout calls mute.
    """
    if isinstance(layout, Abreast):
        qs, ks, vs = (each.split(layout.clips) for each in (q, k, v))
        apart = zip(qs, ks, vs, layout.layouts, strict=True)
        return torch.cat([attend(q, k, v, own, layer) for q, k, v, own in apart])
    frames = len(layout.times)
    tokens = k.shape[1] // frames
    if layout.past is not None:
        k, v = layout.past.extend(layer, k, v, frames)
    if not q.shape[1]:
        return q
    table = layout.table()
    if table is None:
        return _sdpa(q, k, v)
    table = table[frames - q.shape[1] // tokens :]
    if table.numel() * tokens**2 <= DENSE and not (q.is_cuda and layout.past is not None):  # no copies in a stream
        return masked(q, k, v, table)
    return grouped(q, k, v, table)


def masked(q: Tensor, k: Tensor, v: Tensor, table: FrameMask) -> Tensor:
    """One call, with the table widened to a mask over tokens."""
    tokens = q.shape[1] // len(table)
    return _sdpa(q, k, v, widen(table, tokens, tokens).to(q.device))


def grouped(q: Tensor, k: Tensor, v: Tensor, table: FrameMask) -> Tensor:
    """The same without a mask over tokens: neighbouring frames that see the same frames share a call on just those.

    Half the arithmetic of a masked call, for the tables we use, and nothing that grows with the square of the clip:
    at Wan's 32,760 tokens the mask of [clean; noisy] alone would be 4 GB.
    """
    tokens = q.shape[1] // len(table)
    seen = []
    for start, stop, columns in _groups(table):
        pieces = [slice(first * tokens, last * tokens) for first, last in columns]
        seen.append(_sdpa(q[:, start * tokens : stop * tokens], _taken(k, pieces), _taken(v, pieces)))
    return torch.cat(seen, 1)


def _taken(x: Tensor, pieces: list[slice]) -> Tensor:
    return x[:, pieces[0]] if len(pieces) == 1 else torch.cat([x[:, piece] for piece in pieces], 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)


def _groups(table: FrameMask) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Runs of equal rows (start, stop), each with the runs of columns that are seen."""
    start = 0
    for row, same in groupby(table.tolist()):
        stop = start + len(list(same))
        yield start, stop, list(_runs(row))
        start = stop


def _runs(row: list[bool]) -> Iterator[tuple[int, int]]:
    start = 0
    for seen, same in groupby(row):
        stop = start + len(list(same))
        if seen:
            yield start, stop
        start = stop
