"""Wan's VAE is the library's, to the bit: in one piece, and as any number of streams in chunks of any length."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from forcing.codecs import Codec
from forcing.codecs.linear import LinearCodec
from forcing.codecs.wan_vae import CONFIG, WEIGHTS, WanVAE

vaes = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")

TINY = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.5, -1.0, 0.1, 2.0],
    "latents_std": [2.0, 1.5, 0.7, 3.0],
}
SHORT = {"dim_mult": [1, 1, 1], "temperal_downsample": [True, True], "scale_factor_spatial": 4}
SPLITS = [(1,) * 7, (3, 3, 1), (2, 5), (7,)]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wild(**changes):
    """A tiny VAE with all its parameters random, whose pictures are neither flat nor all black and white."""
    vae, rng = vaes.AutoencoderKLWan(**(TINY | changes)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            spread = 0.6 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(1 + 0.1 * noise if name.endswith("gamma") else spread * noise)
        vae.decoder.conv_out.weight *= 3
    return vae


def clip(clips=2, frames=9, height=16, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (clips, frames, height, width, 3), np.uint8)


def library(codec, latents):
    """[B, F, C, h, w] -> float [B, F', 3, H, W], by the library alone."""
    mean, std = (torch.tensor(TINY[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        return codec.vae.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)


def streamed(step, latents, split):
    return [step(part) for part in latents.split(split, 1)]


@pytest.fixture(scope="module", params=[{}, SHORT, {"is_residual": True}], ids=["wan", "short", "residual"])
def codec(request):
    return WanVAE(wild(**request.param))


@pytest.fixture(scope="module")
def plain():
    return WanVAE(wild())


@pytest.fixture
def folder(plain, tmp_path):
    """A pipeline's, with the VAE in it."""
    plain.vae.save_pretrained(tmp_path / "pipeline" / "vae")
    return tmp_path / "pipeline"


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_stream_decodes_as_the_library_does_in_one_piece(codec, split):
    latents = drawn(2, 7, 4, 2, 3)
    whole = library(codec, latents)
    parts = streamed(codec.decoder().step, latents, split)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert [sum(part.shape[1] for part in parts[:i]) for i in range(1, len(parts) + 1)] == [
        codec.frames(sum(split[:i])) for i in range(1, len(parts) + 1)
    ]
    grey = (whole.abs() < 1).float().mean()
    assert grey > 0.5 and whole.std() > 0.2  # a comparison of black with black would say nothing


def test_a_clip_decodes_to_the_nearest_levels(codec):
    latents = drawn(2, 3, 4, 2, 3)
    whole = library(codec, latents).permute(0, 1, 3, 4, 2).double()
    pixels = codec.decode(latents)
    assert pixels.dtype == np.uint8 and pixels.shape == whole.shape
    assert (torch.from_numpy(pixels) - (whole + 1) * 127.5).abs().max() <= 0.5 + 1e-4
    assert (np.concatenate(streamed(codec.decoder(), latents, (2, 1)), 1) == pixels).all()


def test_streams_know_nothing_of_each_other(plain):
    one, two = drawn(1, 5, 4, 2, 3), drawn(3, 5, 4, 4, 2, seed=1)
    wholes = [library(plain, latents) for latents in (one, two)]
    streams, parts = [plain.decoder(), plain.decoder()], ([], [])
    for i in range(5):
        for latents, stream, made in zip((one, two), streams, parts, strict=True):
            made.append(stream.step(latents[:, i : i + 1]))
            library(plain, two[:, :2])
            plain.encode(clip(frames=5))
            plain.vae.clear_cache()
    for whole, made in zip(wholes, parts, strict=True):
        assert torch.equal(torch.cat(made, 1), whole)


def test_a_stream_forks(plain):
    latents = drawn(1, 5, 4, 2, 3)
    here = plain.decoder()
    here.step(latents[:, :2])
    there = here.fork()
    there.step(drawn(1, 2, 4, 2, 3, seed=1))
    assert torch.equal(here.step(latents[:, 2:]), library(plain, latents)[:, plain.frames(2) :])


def test_latents_are_the_normalised_mean(codec):
    video = clip()
    latents = codec.encode(video)
    with torch.no_grad():
        pixels = torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mean = codec.vae.quant_conv(encoded(codec.vae, pixels))[:, : TINY["z_dim"]].transpose(1, 2)
    shift, scale = (torch.tensor(TINY[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (mean - shift) / scale)
    assert latents.shape[2:] == codec.size(16, 24) and codec.frames(latents.shape[1]) == 9
    assert latents.dtype == torch.float32 and not latents.is_inference()  # they may be trained on
    assert latents.std(dim=(0, 1, 3, 4)).min() > 0.01
    assert codec.decode(latents).shape == video.shape


def encoded(vae, pixels):
    """The encoder, first frame and then four by four, without the library's bookkeeping around it."""
    cache = [None] * 100
    parts = [pixels[:, :, :1], *pixels[:, :, 1:].split(4, 2)]
    return torch.cat([vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in parts], 2)


def test_clips_are_encoded_alone(plain):
    video = clip(3, 5)
    alone = torch.cat([plain.encode(each[None]) for each in video])
    assert torch.equal(plain.encode(video), alone)
    assert torch.equal(plain.encode(video[:, :, ::-1, ::-1]), plain.encode(video[:, :, ::-1, ::-1].copy()))


def test_what_comes_later_changes_nothing_before(plain):
    video, other = clip(1, 9), clip(1, 9)
    other[:, 5:] = 255 - other[:, 5:]
    one, two = plain.encode(video), plain.encode(other)
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2], two[:, 2])


@pytest.mark.parametrize("part", ["", "vae"])
def test_a_folder_is_loaded(plain, folder, part, caplog):
    again = WanVAE.load(folder / part)
    assert torch.equal(again.encode(clip()), plain.encode(clip()))
    assert not again.vae.training and not any(each.requires_grad for each in again.vae.parameters())
    assert again.dtype == torch.float32
    assert not caplog.records  # the library says much


def test_half_precision_is_near(plain, folder):
    half = WanVAE.load(folder, dtype=torch.bfloat16)
    assert {each.dtype for each in half.vae.parameters()} == {torch.bfloat16}
    latents = half.encode(clip())
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, plain.encode(clip()), atol=0.05, rtol=0.05)
    latents = drawn(1, 2, 4, 2, 3)
    frames = half.decoder().step(latents)
    assert frames.dtype == torch.float32
    torch.testing.assert_close(frames, plain.decoder().step(latents), atol=0.25, rtol=0)


def test_a_digest_tells_one_vae_from_another(plain, folder):
    assert plain.digest == WanVAE.load(folder).digest == WanVAE.load(folder, dtype=torch.bfloat16).digest
    assert len(plain.digest) == 16
    other, shifted = wild(), wild(latents_mean=[0.0] * 4)
    assert WanVAE(wild()).digest == plain.digest
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 0.1
    assert len({WanVAE(vae).digest for vae in (other, shifted)} | {plain.digest}) == 3


def test_codecs_share_one_protocol(plain):
    linear = LinearCodec.fit(clip(1, 4, 16, 8)[0])
    assert isinstance(plain, Codec) and isinstance(linear, Codec)
    assert plain.stride == (4, 8, 8) and linear.stride == (1, 8, 8)
    assert plain.size(16, 24) == (4, 2, 3) and linear.size(16, 8) == linear.config.latents
    assert [plain.frames(latents) for latents in range(4)] == [0, 1, 5, 9]
    with pytest.raises(ValueError, match="frames are 8 x 16 pixels; this codec takes 16 x 8"):
        linear.size(8, 16)


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (0, 8), (8, -8)])
def test_sides_that_the_stride_does_not_divide(plain, size):
    with pytest.raises(ValueError, match="the height must be a multiple of 8, the width of 8"):
        plain.size(*size)


@pytest.mark.parametrize(
    ("video", "says"),
    [
        (clip(1, 8), r"8 frames are not 1 \+ 4 n: give 5 or 9"),
        (clip(1, 2), "give 1 or 5"),
        (clip(1, 5, 12, 16), "12 x 16"),
        (clip(1, 5).astype(np.float32), "not float32"),
        (clip(1, 5)[0], r"uint8 \[B, F, H, W, 3\]"),
        (clip(1, 5)[..., :2], "2]"),
        (clip(0, 5), r"\[0, 5"),
        (clip(1, 0), r"\[1, 0"),
    ],
)
def test_clips_that_do_not_suit(plain, video, says):
    with pytest.raises(ValueError, match=says):
        plain.encode(video)


def test_latents_that_do_not_suit(plain):
    stream = plain.decoder()
    for shape in ((1, 1, 3, 2, 2), (1, 0, 4, 2, 2), (0, 1, 4, 2, 2)):
        with pytest.raises(ValueError, match=r"need \[B, F, 4, h, w\]"):
            stream(drawn(*shape))
    first = stream.step(drawn(1, 1, 4, 2, 2))
    for shape in ((2, 1, 4, 2, 2), (1, 1, 4, 2, 3)):
        with pytest.raises(ValueError, match=r"began with clips and frames of \[1, 4, 2, 2\], not"):
            stream(drawn(*shape))
    rest = stream.step(drawn(1, 3, 4, 2, 2)[:, 1:])
    both = torch.cat([drawn(1, 1, 4, 2, 2), drawn(1, 3, 4, 2, 2)[:, 1:]], 1)
    assert torch.equal(torch.cat([first, rest], 1), library(plain, both))  # no error left a trace


def test_latents_that_are_not_finite_are_an_error(plain):
    for value in (np.nan, np.inf, -np.inf):
        latents = drawn(1, 2, 4, 2, 2)
        latents[0, 1, 3, 1, 1] = value
        with pytest.raises(ValueError, match="the latents are not finite"):
            plain.decode(latents)


def test_pictures_that_are_not_finite_are_an_error():
    vae = wild()
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 1e38
    with pytest.raises(ValueError, match="the decoded pictures are not finite, though the latents are"):
        WanVAE(vae).decode(drawn(1, 2, 4, 2, 2))


def damage(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / "vae" / name).unlink()
    with pytest.raises(ValueError, match=f"there is no file {folder / 'vae' / name}"):
        WanVAE.load(folder)


def test_a_folder_without_a_vae_is_named(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match=f"there is no file {folder / CONFIG}: give a pipeline's folder"):
        WanVAE.load(folder)


@pytest.mark.parametrize("harm", [lambda data: data[:100], lambda data: b"", lambda data: b"\xff" * 50])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_damaged_file_is_named(folder, name, harm):
    path = folder / "vae" / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{path} is damaged") as error:
        WanVAE.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "AutoencoderKL"}, "describes 'AutoencoderKL'"),
        ({"_class_name": None}, "describes None"),
        ({"patch_size": 2}, "only Wan2.1's"),
        ({"in_channels": 12}, "only Wan2.1's"),
        ({"out_channels": 12}, "only Wan2.1's"),
        ({"scale_factor_spatial": 16}, r"strides of \(4, 16\) in time and space, and has layers for \(4, 8\)"),
        ({"temperal_downsample": [False, True, False]}, r"has layers for \(2, 8\)"),
        ({"temperal_downsample": [True]}, "does not describe"),
        ({"dim_mult": "wide"}, "does not describe"),
        ({"latents_mean": [0.0] * 16}, "must have 4 values"),
        ({"latents_std": [1.0] * 3}, "must have 4 values"),
        ({"latents_std": [1.0, 1.0, 1.0, 0.0]}, "the latter above 0"),
    ],
)
def test_another_vae_is_refused(folder, changes, says):
    path = folder / "vae" / CONFIG
    damage(path, **changes)
    with pytest.raises(ValueError, match=f"^{path} .*{says}"):
        WanVAE.load(folder)


def test_a_config_that_is_no_object_is_named(folder):
    (folder / "vae" / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match=f"{CONFIG} is damaged"):
        WanVAE.load(folder)


def test_weights_of_another_network_are_named(folder):
    damage(folder / "vae" / CONFIG, num_res_blocks=2)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: \d+ weights are missing, .*: \S+, \S+, \S+, \.{{3}}"):
        WanVAE.load(folder)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda value: value.fill_(np.nan), "has values that are NaN, infinite or too large for torch.float32"),
        (lambda value: value.fill_(-np.inf), "has values that are NaN, infinite or too large for torch.float32"),
        (lambda value: value.to(torch.float8_e4m3fn), "is stored as torch.float8_e4m3fn; weights are torch.float32, "),
        (lambda value: value.to(torch.int8), "is stored as torch.int8; weights are torch.float32, "),
    ],
)
def test_weights_that_are_no_numbers_to_compute_with_are_named(folder, harm, says):
    path, name = folder / "vae" / WEIGHTS, "encoder.conv_in.bias"
    weights = load_file(path)
    save_file(weights | {name: harm(weights[name])}, path)
    with pytest.raises(ValueError, match=f"^{path}: {name} {says}"):
        WanVAE.load(folder)


def test_without_the_library_its_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_wan", None)
    with pytest.raises(ValueError, match=r'pip install "forcing\[wan\]"'):
        WanVAE.load(folder)
