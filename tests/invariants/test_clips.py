"""Clips: which action leads to which frame, and how often a clip goes without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import FRAMES, KEYS, PALETTE, PROMPTS, episode, toy_material

from forcing.cond import Cond
from forcing.data.clips import Clips, Sampler
from forcing.data.withhold import Withhold


@pytest.fixture(scope="module")
def data():
    return toy_material()


def first_tiles(data, latents):
    """Which tile of the palette the first of each frame is: what the recording says led there."""
    tiles = data.codec.decode(latents)[:, :, :8, :8].astype(int)
    return np.abs(tiles[:, :, None] - PALETTE.astype(int)).sum((3, 4, 5)).argmin(2)


def test_action_t_leads_to_frame_t_plus_1(data):
    latents, cond = data.train.cut(np.arange(len(data.train)))
    action = cond.per_frame["action"]
    assert action.shape == (len(data.train), FRAMES, len(KEYS)) and (action[:, 0] == 0).all()
    assert (action[:, 1:].sum(-1) == 1).all()
    assert (first_tiles(data, latents)[:, 1:] == 1 + action[:, 1:].argmax(-1).numpy()).all()


def test_every_window_of_every_episode_is_a_clip(data):
    assert len(data.train) == 6 * (12 - FRAMES + 1) and len(data.heldout) == 3 * (12 - FRAMES + 1)
    latents, cond = data.train.cut(np.arange(len(data.train)))
    whole = data.codec.encode(episode(2, 12, "train").frames[None])[0]
    mine = latents[2 * 9 : 3 * 9]
    assert all(torch.equal(mine[start], whole[start : start + FRAMES]) for start in range(9))
    assert cond.static["text"].argmax(-1).tolist() == [i % 2 for i in range(6) for _ in range(9)]


def test_an_action_that_is_not_known_is_not_told(data):
    odd = episode(0, 12, "train")
    odd = replace(odd, actions=np.where(np.arange(12) == 1, -1, odd.actions))
    clips = Clips([odd], data.codec, PROMPTS, len(KEYS), frames=12)
    told = clips.cut(np.array([0]))[1].per_frame["action"][0].sum(-1)
    assert told.tolist() == [0, 1, 0] + [1] * 9


def test_short_episodes_are_left_out(data):
    short, long = episode(0, 3, "train"), episode(1, 12, "train")
    assert len(Clips([short, long], data.codec, PROMPTS, len(KEYS), frames=4)) == 9
    with pytest.raises(ValueError, match="as long as"):
        Clips([short], data.codec, PROMPTS, len(KEYS), frames=4)


def test_withheld_shares(data):
    sampler = Sampler(data.train, 500, 0, Withhold(actions=0.35, everything=0.1))
    batches = [sampler.batch_at(step, update) for step in range(4) for update in (0, 1)]
    acts = torch.cat([batch.cond.per_frame["action"][:, 1:].sum(-1) for batch in batches])
    named = torch.cat([batch.cond.static["text"].sum(-1) for batch in batches])
    assert ((acts == 0) | (acts == 1)).all() and (acts == acts[:, :1]).all()  # a clip is told all or nothing
    assert abs((acts[:, 0] == 0).float().mean() - 0.45) < 0.03 and abs((named == 0).float().mean() - 0.1) < 0.02
    assert (acts[named == 0] == 0).all()
    for batch in batches:
        assert all(value.abs().max() == 0 for value in (batch.uncond.static["text"], batch.uncond.per_frame["action"]))
        assert batch.uncond.names() == batch.cond.names()


def test_nothing_withheld_and_everything(data):
    told = Sampler(data.train, 50, 0, Withhold(0.0, 0.0)).batch_at(0, 0).cond
    assert (told.static["text"].sum(-1) == 1).all() and (told.per_frame["action"][:, 1:].sum(-1) == 1).all()
    none = Sampler(data.train, 50, 0, Withhold(0.0, 1.0)).batch_at(0, 0).cond
    assert none.static["text"].abs().max() == 0 and none.per_frame["action"].abs().max() == 0
    for wrong in ((0.6, 0.6), (-0.1, 0.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match="withheld shares"):
            Withhold(*wrong)


def test_a_batch_is_a_function_of_step_and_update(data):
    def same(a, b):
        return torch.equal(a.latents, b.latents) and torch.equal(a.cond.per_frame["action"], b.cond.per_frame["action"])

    sampler, again = (Sampler(data.train, 8, 1) for _ in range(2))
    assert same(sampler.batch_at(5, 1), again.batch_at(5, 1))
    others = [sampler.batch_at(5, 0), sampler.batch_at(6, 1), Sampler(data.train, 8, 2).batch_at(5, 1)]
    assert not any(same(sampler.batch_at(5, 1), other) for other in others)


def test_conditions_are_cut_into_chunks():
    cond = Cond({"text": torch.ones(2, 3)}, {"action": torch.arange(12.0).reshape(2, 6, 1)})
    pieces = list(cond.chunks(6, 2))
    assert [piece.per_frame["action"][0, :, 0].tolist() for piece in pieces] == [[0, 1], [2, 3], [4, 5]]
    assert all(piece.static["text"] is cond.static["text"] for piece in pieces)
    with pytest.raises(ValueError, match="do not divide"):
        list(cond.chunks(6, 4))
