"""The tile codec loses nothing of a world drawn from few tiles."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toys import PALETTE, episode

from forcing.codecs.linear import LinearCodec


def drawn(palette, frames, height, width, seed=0):
    """Frames of random tiles, every tile of the palette among them."""
    ids = np.random.default_rng(seed).integers(0, len(palette), (frames, height, width))
    ids.flat[: len(palette)] = np.arange(len(palette))
    tiles = palette[ids].swapaxes(2, 3)
    return np.ascontiguousarray(tiles.reshape(frames, height * 8, width * 8, 3))


@pytest.mark.parametrize(("height", "width", "multiple"), [(2, 2, 2), (7, 7, 4), (3, 5, 4), (1, 1, 1)])
def test_frames_of_few_tiles_come_back_exactly(height, width, multiple):
    video = drawn(PALETTE, 20, height, width)
    codec = LinearCodec.fit(video, multiple=multiple)
    latents = codec.encode(video[None])
    assert (codec.decode(latents)[0] == video).all()
    assert latents.shape[2:] == codec.config.latents and not any(side % multiple for side in latents.shape[3:])
    kinds = len(PALETTE) + (
        multiple > 1 and (height % multiple > 0 or width % multiple > 0)
    )  # and the black of padding
    assert codec.config.channels <= kinds - 1 and latents.dtype == torch.float32
    assert 0.3 < latents.square().mean().sqrt() < 3


def test_the_rooms_world_is_coded_exactly():
    pytest.importorskip("minigrid")
    from forcing.envs.rooms import palette

    tiles = palette()[1]
    video = drawn(tiles, 30, 7, 7)
    codec = LinearCodec.fit(video, multiple=4)
    assert (codec.decode(codec.encode(video[None]))[0] == video).all()
    assert codec.config.latents == (len(tiles), 8, 8)  # a channel less than tiles, and one for the black of padding
    other = drawn(tiles, 30, 7, 7, seed=1)
    assert (codec.decode(codec.encode(other[None]))[0] == other).all()


def test_encoding_what_was_decoded_changes_nothing():
    video = drawn(PALETTE, 20, 4, 4)
    codec = LinearCodec.fit(video)
    latents = codec.encode(video[None])
    assert torch.allclose(codec.encode(codec.decode(latents)), latents, rtol=0, atol=1e-5)
    inside = torch.allclose(codec.axes.T @ codec.axes, torch.eye(codec.config.channels), rtol=0, atol=1e-5)
    assert inside and codec.decode(latents + 0.001).shape == video[None].shape


def test_a_rare_tile_is_coded_as_well_as_a_common_one():
    video = np.broadcast_to(PALETTE[0], (500, 8, 8, 3)).copy()
    video[7] = PALETTE[1]
    codec = LinearCodec.fit(video, multiple=1)
    assert (codec.decode(codec.encode(video[None]))[0] == video).all()


def test_frames_decode_alone_and_in_a_stream():
    video = episode(0, 12, "train").frames
    codec = LinearCodec.fit(video)
    latents, decode = codec.encode(video[None]), codec.decoder()
    streamed = np.concatenate([decode(latents[:, f : f + 1]) for f in range(12)], 1)
    assert (streamed == codec.decode(latents)).all()


def test_a_codec_survives_its_file(tmp_path):
    video = drawn(PALETTE, 9, 3, 5)
    codec = LinearCodec.fit(video, multiple=4)
    codec.save(tmp_path / "codec.safetensors")
    again = LinearCodec.load(tmp_path / "codec.safetensors")
    assert again.config == codec.config and again.scale == codec.scale
    assert torch.equal(again.encode(video[None]), codec.encode(video[None]))
    save_file({"mean": codec.mean}, tmp_path / "other.safetensors", metadata={"codec": "wan"})
    with pytest.raises(ValueError, match=r"not a linear codec .*'wan'"):
        LinearCodec.load(tmp_path / "other.safetensors")


def test_frames_of_another_size_are_refused():
    codec = LinearCodec.fit(drawn(PALETTE, 9, 2, 2))
    with pytest.raises(ValueError, match="this codec takes"):
        codec.encode(np.zeros((1, 1, 24, 16, 3), np.uint8))
