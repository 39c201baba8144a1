"""Clips as files: every format shows the frames it was given, whole or not at all."""

import io
import struct
import sys

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from forcing import media


def clip(frames: int = 6, height: int = 12, width: int = 18, colours: int = 40, seed: int = 0) -> np.ndarray:
    """Blocks of random colours."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (colours, 3)).astype(np.uint8)
    return palette[rng.integers(0, colours, (frames, height // 6, width // 6))].repeat(6, 1).repeat(6, 2)


def decoded(path) -> np.ndarray:
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_mp4_shows_the_frames(tmp_path):
    made = clip()
    shown = decoded(media.save(tmp_path / "deep" / "a.mp4", made, fps=12.5, scale=4))
    assert shown.shape == (6, 48, 72, 3)
    # chroma is blurred at the edges of blocks only
    centres = np.s_[:, 12::24, 12::24]
    assert np.abs(shown[centres].astype(int) - media.enlarge(made, 4)[centres]).max() < 12
    with av.open(str(tmp_path / "deep" / "a.mp4")) as file:
        assert file.streams.video[0].average_rate == 12.5


def test_odd_sides_are_made_even(tmp_path):
    odd = clip()[:, :7, :9]
    assert decoded(media.save(tmp_path / "a.mp4", odd)).shape == (6, 8, 10, 3)


def test_mp4_is_the_same_bytes_also_beside_another(tmp_path):
    made = [clip(4, 96, 96, seed=seed) for seed in range(2)]
    alone = [media.save(tmp_path / f"{n}.mp4", each).read_bytes() for n, each in enumerate(made)]
    for _ in range(10):
        paths = [tmp_path / f"both-{n}.mp4" for n in range(2)]
        with media.writer(paths[0]) as first, media.writer(paths[1]) as second:
            for one, two in zip(*made, strict=True):
                first.add(one[None])
                second.add(two[None])
        assert [path.read_bytes() for path in paths] == alone


def test_gif_is_exact_and_loops(tmp_path):
    made = clip(colours=256)
    made[3] = made[2]  # stored once, shown for longer
    with Image.open(media.save(tmp_path / "a.gif", made, fps=10.0, scale=2)) as image:
        parts = [(np.array(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert [time for _, time in parts] == [100, 100, 200, 100, 100]
    shown = np.stack([frame for frame, _ in parts])
    assert (shown == media.enlarge(made[[0, 1, 2, 4, 5]], 2)).all()


def test_gif_of_many_colours_is_close():
    noisy = np.random.default_rng(0).integers(100, 160, (4, 32, 32, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(media.gif(noisy))) as image:
        shown = np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    assert shown.shape == noisy.shape and np.abs(shown.astype(int) - noisy).mean() < 8


def test_sheet_keeps_reading_order(tmp_path):
    made = clip(5)
    sheet = media.image(media.save(tmp_path / "a.png", made))
    assert sheet.shape == (2 * 16 + 4, 3 * 22 + 4, 3)
    assert (sheet[4:16, 26:44] == made[1]).all() and (sheet[20:32, 4:22] == made[3]).all()
    assert media.sheet(made, columns=1).shape[1] == 26


@pytest.mark.parametrize("turned", range(1, 9))
def test_an_image_is_read_upright(turned, tmp_path):
    shown = clip(1)[0]
    held = {  # the pixels as stored, for each way to hold a camera
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown, -1),
    }[turned]
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(np.ascontiguousarray(held)).save(tmp_path / "a.png", exif=exif)
    assert (media.image(tmp_path / "a.png") == shown).all()


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_are_scaled_to_eight(name, tmp_path):
    grey = np.array([[0, 257, 128 * 257 + 100], [200 * 257 - 100, 65535, 300]], np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    seen = media.image(tmp_path / name)
    assert seen.dtype == np.uint8 and (seen == np.array([[0, 1, 128], [200, 255, 1]])[..., None]).all()
    assert seen.shape == (2, 3, 3)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_that_do_not_say_what_is_white_are_refused(kind, tmp_path):
    Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff has pixels of (int|float)32: an image has 8 or 16 bits"):
        media.image(tmp_path / "a.tiff")


def test_an_image_whose_turn_is_damaged_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")

    def odd(_) -> None:
        raise struct.error("required argument is not an integer")  # what a damaged one makes the library say

    monkeypatch.setattr(media.ImageOps, "exif_transpose", odd)
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read"):
        media.image(tmp_path / "a.png")


def test_keys_are_drawn_and_frames_left_alone():
    frame = np.full((48, 48, 3), 90, np.uint8)
    arrows = [media.with_key(frame, key) for key in (None, "left", "right", "forward", "back", "pick up")]
    assert all(arrow.shape == (64, 48, 3) and (arrow[:48] == 90).all() for arrow in arrows)  # in a strip below
    assert len(np.unique(arrows[0][48:])) == 1
    assert all((a != b).any() for a, b in zip(arrows, arrows[1:], strict=False))


def fail_after(out) -> None:
    out.add(clip())
    raise ZeroDivisionError


@pytest.mark.parametrize("suffix", media.FORMATS)
def test_nothing_is_left_where_something_went_wrong(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), media.writer(path) as out:
        fail_after(out)
    with (
        pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\], not float32 \[6, 12, 18, 3\]"),
        media.writer(path) as out,
    ):
        out.add(clip().astype(np.float32))
    with media.writer(path):
        pass
    assert path.read_bytes() == b"before" and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'pip install "forcing\[video\]"'):
        media.writer(tmp_path / "a.mp4")
    media.save(tmp_path / "a.gif", clip())
