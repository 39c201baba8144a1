"""Attention under a layout: the frame table widened to tokens, the past in front."""

import torch.nn.functional as F
from torch import Tensor

from forcing.layout import Layout, widen


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, layer: int) -> Tensor:
    """q, k, v [B, frames * tokens, heads, dim] -> [B, frames * tokens, heads, dim]. k must be rotated already."""
    tokens = q.shape[1] // len(layout.times)
    if layout.past is not None:
        k, v = layout.past.extend(layer, k, v)
    table = layout.table()
    mask = None if table is None else widen(table, tokens, tokens).to(q.device)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2)
