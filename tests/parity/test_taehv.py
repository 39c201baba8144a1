"""The tiny decoder: the public network, written down a second time below, and the same frames however it is fed."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from forcing.codecs.taehv import TAEHV

WIDTHS = (8, 6, 5, 4)  # the public ones are 256, 128, 64, 64
CHANNELS = 3  # 16


def shapes(widths=WIDTHS, channels=CHANNELS, growths=(1, 2, 2), patch=1):
    """Names and shapes of the public file's decoder."""
    found = {"1.weight": (widths[0], channels, 3, 3), "1.bias": (widths[0],)}
    for at, width, out, growth in zip((3, 9, 15), widths, widths[1:], growths, strict=False):
        for block in range(at, at + 3):
            for part, inputs in ((0, 2 * width), (2, width), (4, width)):
                found[f"{block}.conv.{part}.weight"] = (width, inputs, 3, 3)
                found[f"{block}.conv.{part}.bias"] = (width,)
        found[f"{at + 4}.conv.weight"] = (width * growth, width, 1, 1)
        found[f"{at + 5}.weight"] = (out, width, 3, 3)
    found |= {"22.weight": (3 * patch**2, widths[3], 3, 3), "22.bias": (3 * patch**2,)}
    return {f"decoder.{name}": shape for name, shape in found.items()}


def wild(seed=0, **changes):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (0.3 if len(shape) == 1 else 1.0 / math.prod(shape[1:]) ** 0.5) * torch.randn(shape, generator=rng)
        for name, shape in shapes(**changes).items()
    }


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def made(tmp_path):
    def load(weights, name="taew2_1.pth", **how):
        path = tmp_path / name
        torch.save(weights, path) if path.suffix == ".pth" else save_file(weights, path)
        return TAEHV.load(path, **how)

    return load


def public(weights, latents, growths=(1, 2, 2), patch=1):
    """[B, F, C, h, w] -> [B, F', 3, H, W] from 0 to 1: every frame at once, in float64."""
    w = {name.removeprefix("decoder."): value.double() for name, value in weights.items()}
    clips, x = len(latents), latents.double().flatten(0, 1)

    def conv(x, at):
        return F.conv2d(x, w[f"{at}.weight"], w.get(f"{at}.bias"), padding=1)

    x = conv(3 * torch.tanh(x / 3), 1).relu()
    for at in (3, 9, 15):
        for block in range(at, at + 3):
            frames = x.reshape(clips, -1, *x.shape[1:])
            past = F.pad(frames, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1].reshape(x.shape)
            inside = conv(conv(torch.cat([x, past], 1), f"{block}.conv.0").relu(), f"{block}.conv.2").relu()
            x = (conv(inside, f"{block}.conv.4") + x).relu()
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        width = x.shape[1]
        x = F.conv2d(x, w[f"{at + 4}.conv.weight"]).reshape(-1, width, *x.shape[2:])
        x = conv(x, at + 5)
    x = F.pixel_shuffle(conv(x.relu(), 22), patch).clamp(0, 1)
    return x.reshape(clips, -1, *x.shape[1:])[:, math.prod(growths) - 1 :]


@pytest.mark.parametrize("kind", [{}, {"growths": (2, 2, 1), "patch": 2}], ids=["wan", "other"])
def test_it_is_the_public_network(made, kind):
    weights = wild(**kind)
    codec = made({**weights, "encoder.0.weight": torch.zeros(2)}, dtype=torch.float64)
    latents = 2 * drawn(2, 5, CHANNELS, 3, 4)
    told, frames = public(weights, latents, **kind), codec.decoder().step(latents)
    torch.testing.assert_close(frames, told.float(), atol=1e-6, rtol=0)
    assert ((told > 0) & (told < 1)).double().mean() > 0.3 and told.std() > 0.1
    pixels = codec.decode(latents)
    side = 8 * kind.get("patch", 1)
    assert pixels.shape == (2, 17, 3 * side, 4 * side, 3) and pixels.dtype == np.uint8
    assert (torch.from_numpy(pixels) - 255 * told.permute(0, 1, 3, 4, 2)).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("split", [(1,) * 7, (3, 3, 1), (2, 5)], ids=str)
def test_a_stream_decodes_as_one_piece(made, split):
    codec, latents = made(wild()), drawn(2, 7, CHANNELS, 2, 3)
    whole, stream = codec.decoder().step(latents), codec.decoder()
    parts = [stream.step(part) for part in latents.split(split, 1)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert [part.shape[1] for part in parts] == [4 * n - 3 * (i == 0) for i, n in enumerate(split)]
    again = codec.decoder()
    pixels = np.concatenate([again(part) for part in latents.split(split, 1)], 1)
    assert (pixels == codec.decode(latents)).all()


def test_streams_know_nothing_of_each_other(made):
    codec, one, two = made(wild()), drawn(1, 4, CHANNELS, 2, 2), drawn(2, 4, CHANNELS, 3, 2, seed=2)
    streams, parts = (codec.decoder(), codec.decoder()), ([], [])
    for i in range(4):
        for latents, stream, frames in zip((one, two), streams, parts, strict=True):
            frames.append(stream.step(latents[:, i : i + 1]))
            codec.decode(two)
    for latents, frames in zip((one, two), parts, strict=True):
        assert torch.equal(torch.cat(frames, 1), codec.decoder().step(latents))


def test_a_stream_forks(made):
    codec, latents = made(wild()), drawn(1, 4, CHANNELS, 2, 2)
    here = codec.decoder()
    here.step(latents[:, :2])
    here.fork().step(drawn(1, 2, CHANNELS, 2, 2, seed=3))
    assert torch.equal(here.step(latents[:, 2:]), codec.decoder().step(latents)[:, 5:])


def test_a_stream_keeps_no_gradients(made):
    stream = made(wild()).decoder()
    frames = stream.step(drawn(1, 2, CHANNELS, 2, 2).requires_grad_())
    assert not frames.requires_grad and not any(each.requires_grad for each in stream.memory)


def test_an_error_leaves_a_stream_as_it_was(made):
    codec, latents, calls = made(wild()), drawn(1, 3, CHANNELS, 2, 2), []
    stream = codec.decoder()
    advance = stream.advance

    def fails_once(latent, memory):
        calls.append(latent)
        if len(calls) == 3:
            raise MemoryError
        return advance(latent, memory)

    stream.advance = fails_once
    first = stream.step(latents[:, :1])
    with pytest.raises(MemoryError):
        stream.step(latents[:, 1:])
    assert torch.equal(torch.cat([first, stream.step(latents[:, 1:])], 1), codec.decoder().step(latents))


def test_latents_that_do_not_suit(made):
    stream = made(wild()).decoder()
    with pytest.raises(ValueError, match=r"\[1, 1, 4, 2, 2\]: need \[B, F, 3, h, w\]"):
        stream(drawn(1, 1, 4, 2, 2))


def test_either_kind_of_file_and_precision(made):
    weights, latents = wild(), drawn(1, 3, CHANNELS, 2, 2)
    one, two = made(weights), made(weights, "taew2_1.safetensors")
    assert torch.equal(one.decoder().step(latents), two.decoder().step(latents))
    assert not any(each.requires_grad for each in one.network.parameters())
    small = {name: value.bfloat16() for name, value in weights.items()}
    half, full = made(small), made(small, dtype=torch.float32)
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    frames = half.decoder().step(latents)
    assert frames.dtype == torch.float32
    torch.testing.assert_close(frames, full.decoder().step(latents), atol=0.1, rtol=0)


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda w: without(w, "decoder.4.conv.2.bias"), "1 weights are missing.*: decoder.4.conv.2.bias$"),
        (lambda w: w | {"decoder.23.weight": torch.zeros(1)}, "too many.*decoder.23.weight$"),
        (lambda w: w | {"vae.x": torch.zeros(1)}, "too many.*vae.x$"),
        (lambda w: w | {"decoder.8.bias": torch.zeros(6)}, "too many.*decoder.8.bias$"),
        (lambda w: w | {"decoder.5.conv.0.weight": torch.zeros(8, 8, 3, 3)}, "another shape: decoder.5.conv.0.weight$"),
        (lambda w: {key: value[:5] for key, value in w.items()}, "weights are missing, too many or of another shape"),
        (lambda w: without(w, "decoder.13.conv.weight"), "holds no TAEHV decoder .*decoder.13.conv.weight"),
        (lambda w: {f"encoder.{i}": torch.zeros(1) for i in range(3)}, "holds no TAEHV decoder"),
        (lambda w: {}, "holds no TAEHV decoder"),
        (lambda w: w | {"decoder.1.weight": torch.tensor(0.0)}, "holds no TAEHV decoder"),
        (lambda w: w | {"decoder.1.weight": torch.zeros(0, 3, 3, 3)}, "holds no TAEHV decoder"),
        (
            lambda w: w | {"decoder.22.weight": torch.zeros(4, 4, 3, 3), "decoder.22.bias": torch.zeros(4)},
            "holds no TAEHV decoder .*ends in 4 channels",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_of_another_network_are_named(made, tmp_path, harm, says):
    with pytest.raises(ValueError, match=f"^{tmp_path / 'taew2_1.pth'}.* {says}"):
        made(harm(wild()))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64])
def test_weights_that_cannot_be_computed_with_are_named(made, tmp_path, kind, suffix):
    weights = wild()
    weights["decoder.7.conv.weight"] = weights["decoder.7.conv.weight"].to(kind)
    says = f"^{tmp_path / 'a'}.{suffix}: decoder.7.conv.weight is stored as {kind}; weights are torch.float32, "
    with pytest.raises(ValueError, match=says):
        made(weights, f"a.{suffix}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(made, tmp_path, value, dtype):
    weights = {name: each.to(dtype) for name, each in wild().items()}
    made(weights)
    weights["decoder.22.bias"][1] = value
    says = f"^{tmp_path / 'taew2_1.pth'}: decoder.22.bias has values that are NaN, infinite or too large for {dtype}$"
    with pytest.raises(ValueError, match=says):
        made(weights)


def test_weights_that_a_dtype_cannot_hold_are_named(made):
    weights = wild()
    weights["decoder.22.bias"][1] = 1e6
    made(weights, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"decoder\.22\.bias has values that .* too large for torch\.float16$"):
        made(weights, dtype=torch.float16)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_decoder_of_no_channels_decodes_nothing(made):
    stream = made(wild() | {"decoder.1.weight": torch.zeros(WIDTHS[0], 0, 3, 3)}).decoder()
    with pytest.raises(ValueError, match=r"need \[B, F, 0, h, w\], none of them 0"):
        stream(drawn(1, 1, 0, 2, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite_are_an_error(made, value):
    codec, latents = made(wild()), drawn(2, 3, CHANNELS, 2, 2)
    stream, harmed = codec.decoder(), latents[:, 1:].clone()
    first = stream.step(latents[:, :1])
    harmed[1, 1, 2, 1, 0] = value
    with pytest.raises(ValueError, match="the latents are not finite"):
        stream(harmed)
    rest = stream.step(latents[:, 1:])
    assert torch.equal(torch.cat([first, rest], 1), codec.decoder().step(latents))  # the error left no trace


@pytest.mark.parametrize("value", [1e38, -1e38])
def test_pictures_that_are_not_finite_are_an_error(made, value):
    weights, latents = wild(), drawn(1, 2, CHANNELS, 2, 2)
    weights["decoder.22.weight"][0] = value  # sums beyond float32: infinite, and within 0..1 if only cut off
    stream = made(weights).decoder()
    with pytest.raises(ValueError, match="the decoded pictures are not finite, though the latents are"):
        stream(latents)
    assert stream.memory == () and stream.shape is None


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"PK\x03\x04", None], ids=["empty", "noise", "zip", "cut"])
def test_a_damaged_file_is_named(made, tmp_path, name, data):
    made(wild(), name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:500] if data is None else data)
    with pytest.raises(ValueError, match=f"^{path} is damaged") as error:
        TAEHV.load(path)
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of a weights file was run",))


@pytest.mark.parametrize(
    ("content", "says"),
    [([1], "something else than tensors"), ({"a": 1}, "something else"), (Trap(), "is damaged, or")],
)
def test_other_contents_are_refused(made, content, says):
    with pytest.raises(ValueError, match=says):
        made(content)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"there is no file {tmp_path / 'a.pth'}"):
        TAEHV.load(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"extension '.bin'; weights are .safetensors, .pth or .pt"):
        TAEHV.load(tmp_path / "a.bin")
