"""Clips of latents cut from a recording, with actions and prompts, some of them withheld."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forcing.codecs import Codec
from forcing.cond import Cond
from forcing.data.order import indices, seeded
from forcing.data.shards import Episode
from forcing.data.withhold import Withhold
from forcing.stages import Batch

BLOCK = 4096  # frames allocated at once


class Clips:
    """All windows of `frames` frames of the episodes, encoded once and held in memory.

    Action t of an episode leads to frame t + 1: the condition of frame t + 1 is action t, and the first frame of a
    clip has none, because what led to it is not in the clip.
    """

    def __init__(
        self, episodes: Iterable[Episode], codec: Codec, prompts: Sequence[str], actions: int, *, frames: int
    ) -> None:
        self.frames, self.n_actions = frames, actions
        self.latents, self.actions, named = [], [], []
        block = torch.empty(0)
        for episode in episodes:  # one at a time: a recording's pixels need not fit in memory, its latents do
            length = len(episode.frames)
            if length >= frames:
                made = codec.encode(episode.frames[None])[0]
                if len(block) < length:
                    # many small tensors that outlive the large temporaries of encoding would leave holes in the heap
                    block = torch.empty(max(BLOCK, length), *made.shape[1:])
                self.latents.append(block[:length].copy_(made))
                block = block[length:]
                self.actions.append(torch.from_numpy(np.array(episode.actions)))
                named.append(list(prompts).index(episode.prompt))
        if not self.latents:
            raise ValueError(f"no episode is as long as a clip of {frames} frames")
        self.text = torch.eye(len(prompts))[named]
        starts = [len(latents) - frames + 1 for latents in self.latents]
        episode_of = np.repeat(np.arange(len(starts)), starts)
        self.windows = np.stack([episode_of, np.concatenate([np.arange(n) for n in starts])], 1)

    def __len__(self) -> int:
        return len(self.windows)

    def cut(self, which: np.ndarray) -> tuple[torch.Tensor, Cond]:
        """Latents [B, F, C, h, w] and full conditions of the windows `which`."""
        pieces = [(int(e), int(s)) for e, s in self.windows[which]]
        latents = torch.stack([self.latents[e][s : s + self.frames] for e, s in pieces])
        led = torch.stack([self.actions[e][s : s + self.frames - 1] for e, s in pieces])
        told = torch.nn.functional.one_hot(led.clamp(min=0), self.n_actions) * (led >= 0)[..., None]
        none = torch.zeros(len(pieces), 1, self.n_actions)
        text = self.text[[e for e, _ in pieces]]
        return latents, Cond({"text": text}, {"action": torch.cat([none, told.float()], 1)})


@dataclass(frozen=True)
class Sampler:
    """Batches of clips as a function of the step. Clips differ between the updates of one step."""

    clips: Clips
    batch: int
    seed: int
    withhold: Withhold = Withhold()

    def batch_at(self, step: int, update: int) -> Batch:
        latents, cond = self.clips.cut(indices(self.seed * 1000 + update, step, self.batch, len(self.clips)))
        rng = seeded(self.seed, "withhold", step, update)
        draw = torch.rand(self.batch, generator=rng)
        told = (draw >= self.withhold.actions + self.withhold.everything).float()
        named = (draw >= self.withhold.everything).float()
        cond = Cond(
            {"text": cond.static["text"] * named[:, None]}, {"action": cond.per_frame["action"] * told[:, None, None]}
        )
        return Batch(latents, cond, cond.blank())
