"""Encoding: the right frames at the right size, what is broken told and nothing else lost, and resumed exactly."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import CUT, Letters, Pooled, contents, film, models, pooled, record, shoot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from forcing import media
from forcing.cli import main
from forcing.codecs.wan_vae import WanVAE
from forcing.data import captions, lmdb, parts, sources
from forcing.data.captions import Problem, UnusableError, find
from forcing.data.encode import Models, encode
from forcing.data.latents import LatentSet
from forcing.data.videos import Cut, clips
from forcing.fixture import fixture, videos
from forcing.text.umt5 import UMT5

ONE = Cut((16, 24), frames=1, fps=8.0)  # every frame a clip


def shown(path: Path, cut: Cut) -> np.ndarray:
    """All frames that clips of one frame show."""
    return np.concatenate([pixels for _, pixels in clips(path, cut)])


def nearest(times: list[float], end: float, fps: float) -> list[int]:
    """The frame to be seen at each tick, the long way round."""
    ticks, chosen = 0, []
    while ticks / fps <= (times[-1] + end) / 2:
        far = [abs(each - ticks / fps) for each in times]
        chosen.append(int(np.argmin(np.round(far, 9))))
        ticks += 1
    return chosen


# videos


@pytest.mark.parametrize("rate", [8, 12, 15, 24, 30, 50])
@pytest.mark.parametrize("fps", [8.0, 12.5])
def test_the_frames_nearest_in_time_are_taken(tmp_path, rate, fps):
    frames = film(40)
    path = record(tmp_path / "v.mp4", frames, rate)
    if rate < 0.9 * fps:
        with pytest.raises(UnusableError, match=f"has only {rate} fps"):
            shown(path, replace(ONE, fps=fps))
        return
    chosen = nearest([number / rate for number in range(40)], 40 / rate, fps)
    assert (shown(path, replace(ONE, fps=fps)) == frames[chosen]).all()


def test_a_rate_that_varies_is_followed(tmp_path):
    times = [0, 40, 100, 300, 330, 340, 600, 1000, 1010, 1020, 1030]
    frames = film(len(times))
    path = record(tmp_path / "v.mkv", frames, 10, times=times)
    seen = shown(path, replace(ONE, fps=8.0))
    chosen = nearest([each / 1000 for each in times], 1.03 + 0.09, 8.0)
    assert len(set(chosen)) > 4 and (seen == frames[chosen[: len(seen)]]).all() and len(seen) == len(chosen)


def test_a_slightly_slow_source_repeats_a_frame(tmp_path):
    frames = film(30)
    path = record(tmp_path / "v.mp4", frames, 15)
    seen = shown(path, replace(ONE, fps=16.0))
    assert len(seen) == 32 and len(np.unique(seen[:, 0, 0, 0])) == len(np.unique(frames[:, 0, 0, 0]))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mp4", "libx264"),
        ("v.MOV", "libx264"),
        ("v.mkv", "libx264"),
        ("v.m4v", "libx264"),
        ("v.avi", "libx264"),
        ("v.webm", "libvpx-vp9"),
        ("v.gif", ""),
    ],
)
def test_every_kind_of_video_is_read(tmp_path, name, codec):
    frames = film(20)
    if codec:
        record(tmp_path / name, frames, 8, codec=codec)
    else:
        media.save(tmp_path / name, frames, fps=8.0)
    seen = shown(tmp_path / name, replace(ONE, fps=7.0 if name == "v.gif" else 8.0))
    if name == "v.gif":  # counts time in hundredths
        seen, frames = seen[:3], frames[:3]
    assert seen.shape == frames.shape and np.abs(seen.astype(int) - frames).max() <= 12
    assert (np.diff(seen.mean((1, 2, 3))) > 3).all()


def test_clips_follow_one_another_and_the_rest_is_left(tmp_path):
    frames = film(17)
    path = record(tmp_path / "v.mp4", frames)

    def starts(**changes) -> list[tuple[float, int]]:
        found = list(clips(path, replace(CUT, **changes)))
        assert all(len(pixels) == CUT.frames for _, pixels in found)
        for start, pixels in found:
            assert (pixels == frames[int(start * 8) :][:5]).all()
        return [start * 8 for start, _ in found]

    assert starts() == [0, 5, 10]
    assert starts(stride=2) == [0, 2, 4, 6, 8, 10, 12]
    assert starts(stride=7) == [0, 7]
    assert starts(most=2) == [0, 5] and starts(stride=1, most=3) == [0, 1, 2]
    with pytest.raises(UnusableError, match="has 17 frames at 8 fps, and a clip takes 18"):
        list(clips(path, replace(CUT, frames=18)))


def test_a_frame_of_the_right_size_is_not_touched_and_others_keep_their_aspect(tmp_path):
    stripes = np.zeros((6, 16, 48, 3), np.uint8)
    stripes[:, :, :16, 0], stripes[:, :, 16:32, 1], stripes[:, :, 32:, 2] = 200, 200, 200
    path = record(tmp_path / "v.mp4", stripes)
    assert (shown(path, replace(ONE, size=(16, 48))) == stripes).all()
    middle = shown(path, replace(ONE, size=(16, 16)))
    assert (middle == [0, 200, 0]).all()
    padded = shown(path, replace(ONE, size=(48, 48), fit="pad"))
    assert (padded[:, 16:32] == stripes).all() and not padded[:, :16].any() and not padded[:, 32:].any()
    small = shown(path, replace(ONE, size=(8, 24), fit="pad"))
    assert (small[:, :, 3:5] == [200, 0, 0]).all() and (small[:, :, 19:21] == [0, 0, 200]).all()


def test_shrinking_averages(tmp_path):
    grain = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    small = shown(record(tmp_path / "v.mp4", grain), replace(ONE, size=(8, 12)))
    assert np.abs(small.astype(float) - 127.5).max() < 50  # a pixel taken alone would be anything


def test_a_film_on_its_side_is_put_upright(tmp_path):
    frames = film(6)
    path = record(tmp_path / "v.mp4", frames, 8)
    data = path.read_bytes()
    straight, quarter = (np.array(m, ">i4").tobytes() for m in ([65536, 0, 0, 0, 65536], [0, 65536, 0, -65536, 0]))
    at = data.index(straight, data.index(b"tkhd"))
    path.write_bytes(data[:at] + quarter + data[at + len(quarter) :])
    seen = shown(path, replace(ONE, size=(24, 16)))
    assert (seen == np.rot90(frames, -1, (1, 2))).all()  # clockwise


def test_a_title_in_another_encoding_does_no_harm(tmp_path):
    path = record(tmp_path / "v.mkv", film(10))
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", b"L\xe4vf"))
    assert len(list(clips(path, CUT))) == 2


def test_a_long_gap_is_not_filled(tmp_path):
    times = [*range(0, 1000, 125), *range(3000, 4000, 125)]
    path = record(tmp_path / "v.mkv", film(16), 8, times=times)
    found = []
    with pytest.raises(UnusableError, match=r"has no frame between 0\.88 and 3\.00 seconds"):
        found.extend(clips(path, replace(CUT, fps=3.0, frames=2)))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
def test_a_film_that_ends_before_it_says_is_cut_off(tmp_path, name):
    path = record(tmp_path / name, film(80), 8, codec="libvpx-vp9" if name == "v.webm" else "libx264rgb")
    assert len(list(clips(path, CUT))) == 16
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnusableError, match=r"ends after \d\.\d\d of 10\.00 seconds"):
        list(clips(path, CUT))


def test_only_as_much_as_needed_is_decoded(tmp_path, monkeypatch):
    path = record(tmp_path / "v.mp4", film(400), 8)
    fitted = []
    monkeypatch.setattr(
        "forcing.data.videos.Image.fromarray", lambda image: fitted.append(1) or Image.new("RGB", (24, 16))
    )
    assert len(list(clips(path, replace(CUT, most=2)))) == 2 and len(fitted) == 10
    first = next(clips(path, CUT))
    assert first[0] == 0 and len(fitted) == 15


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.gif", "v.avi", "v.webm"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_video_gives_clips_or_a_reason(tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    whole = folder / f"whole{name}"
    if not whole.exists():
        if name == "v.gif":
            media.save(whole, film(20), fps=8.0)
        else:
            record(whole, film(20), 8, codec={"v.avi": "mpeg4", "v.webm": "libvpx-vp9"}.get(name, "libx264"))
    harmed = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        harmed = harmed[: data.draw(st.integers(0, len(harmed) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 12))):
            at = data.draw(st.integers(0, len(harmed) - 1))
            piece = data.draw(st.binary(min_size=1, max_size=8))
            harmed[at : at + len(piece)] = piece
    path = folder / name
    path.write_bytes(harmed)
    try:
        for _, pixels in clips(path, CUT):
            assert pixels.shape == (5, 16, 24, 3) and pixels.dtype == np.uint8
    except UnusableError as error:
        assert str(error) and str(folder) not in str(error)  # noqa: PT017


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "cannot be read"),
    "noise.mkv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot be read"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 50), "cannot be read"),
    "picture.mp4": (lambda path: Image.new("RGB", (24, 16)).save(path, "png"), "cannot be read"),
    "still.gif": (lambda path: Image.new("RGB", (24, 16)).save(path), "does not tell its frame rate"),
    "sound.avi": (sound, "cannot be read"),
    "slow.mp4": (lambda path: record(path, film(20), 4), "has only 4 fps, and clips at 8 fps take at least 7.2"),
    "short.mp4": (lambda path: record(path, film(4)), "has 4 frames at 8 fps, and a clip takes 5"),
    "cut.mp4": (lambda path: path.write_bytes(record(path, film(30)).read_bytes()[:-200]), "cannot be read"),
    "list.mp4": (
        lambda path: path.write_text(f"ffconcat version 1.0\nfile {path.parent / 'v0.mp4'}\n"),
        "cannot be read",
    ),
    "deep/list.mp4": (
        lambda path: path.write_text(f"#EXTM3U\n#EXTINF:2,\n{path.parent.parent / 'v0.mp4'}\n#EXT-X-ENDLIST\n"),
        "cannot be read",
    ),
}


def test_what_cannot_be_used_is_told_and_nothing_else_is_lost(tmp_path):
    source = shoot(tmp_path / "videos", [12, 6])
    (source / "deep").mkdir()
    for name, (harm, _) in BROKEN.items():
        harm(source / name)
    with (source / "captions.csv").open("a") as table:
        table.writelines(f"{name},broken\n" for name in BROKEN)
    record(source / "silent.mp4", film(10))
    record(source / ".hidden.mp4", film(10))
    made = encode(source, tmp_path / "out", CUT, models(), holdout=0.0)
    assert made.clips == 3
    told = dict(made.problems)
    assert list(told) == sorted([*BROKEN, "silent.mp4"]) and told.pop("silent.mp4") == "has no caption"
    for name, reason in told.items():
        assert BROKEN[name][1] in reason, (name, reason)
    found = LatentSet.open(tmp_path / "out")
    assert [row["source"] for row in found.manifest["clips"]] == ["v0.mp4", "v0.mp4", "v1.mp4"]
    assert found.manifest["problems"] == [each._asdict() for each in made.problems]
    assert (tmp_path / "out" / "problems.txt").read_text().splitlines() == [f"{a}: {b}" for a, b in made.problems]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_film_damaged_late_gives_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 2)
    times = [*range(0, 4000, 125), *range(9000, 11000, 125)]
    record(tmp_path / "v" / "b.mkv", film(48), 8, times=times)
    shoot(tmp_path / "v", [5])
    for name, frames in (("a", 15), ("c", 10)):
        record(tmp_path / "v" / f"{name}.mkv", film(frames, 3))
    (tmp_path / "v" / "captions.csv").write_text("file,caption\na.mkv,A\nb.mkv,B\nc.mkv,C\nv0.mp4,V\n")
    made = encode(tmp_path / "v", tmp_path / "out", replace(CUT, fps=4.0, frames=3), models())
    assert [problem.file for problem in made.problems] == ["b.mkv"]
    found = LatentSet.open(tmp_path / "out")
    assert {row["source"] for row in found.manifest["clips"]} == {"a.mkv", "c.mkv", "v0.mp4"}
    batch = found.batch(np.arange(len(found)))
    for row, latents in zip(found.manifest["clips"], batch.latents, strict=True):
        pixels = dict(clips(tmp_path / "v" / row["source"], replace(CUT, fps=4.0, frames=3)))[row["start"]]
        assert (latents == Pooled().encode(pixels[None])[0].half().float()).all()


def test_latents_that_are_no_numbers_are_a_problem(tmp_path):
    class Burnt(Pooled):
        def encode(self, video):
            return super().encode(video) * 1e6

    source = shoot(tmp_path / "v", [5])
    made = encode(source, tmp_path / "out", CUT, replace(models(), codec=lambda device: Burnt()))
    assert made == (0, [Problem("v0.mp4", "has latents that are not finite numbers")])


def test_where_nothing_can_be_used_there_is_no_set(tmp_path):
    source = shoot(tmp_path / "v", [3, 4])
    made = encode(source, tmp_path / "out", CUT, models())
    assert made.clips == 0 and len(made.problems) == 2
    assert not (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / "problems.txt").exists()


# captions


@pytest.fixture
def three(tmp_path):
    for name in ("a.mp4", "b.MP4", "c/d.gif"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / name).touch()
    return tmp_path / "v"


ALL = [("a.mp4", "A"), ("b.MP4", "B, too"), ("c/d.gif", "C D")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", 'file,caption\na.mp4,A\nb.MP4,"B, too"\n\nc/d.gif,"C\n  D"\n'),
        ("captions.csv", '\ufeffText , VIDEO\r\nA,a.mp4\r\n"B, too",./b.MP4\r\nC D,c/../c/d.gif\r\n'),
        ("metadata.csv", 'id,file_name,prompt\n1,a.mp4,A\n2,b.MP4,"B, too"\n3,c/d.gif,C D\n'),
        (
            "captions.jsonl",
            '{"path": "a.mp4", "text": "A"}\n\n{"video": "b.MP4", "prompt": "B, too"}\n'
            '{"file": "c/d.gif", "caption": "C\\nD"}',
        ),
        (
            "metadata.jsonl",
            '{"file": "a.mp4", "caption": "A"}\n{"file": "b.MP4", "caption": "B, too"}\n'
            '{"file": "c/d.gif", "caption": "C\u2028D"}\n',
        ),
    ],
)
def test_captions_are_read_from_tables(three, name, text):
    (three / name).write_text(text, encoding="utf-8", newline="")
    found, problems = find(three)
    assert [(video.name, video.caption) for video in found] == ALL and not problems
    (three / name).rename(three.parent / f"elsewhere{Path(name).suffix}")
    again, _ = find(three, three.parent / f"elsewhere{Path(name).suffix}")
    assert again == found


def test_captions_are_read_from_beside_the_videos(three):
    (three / "a.txt").write_text("A\n")
    (three / "c" / "d.txt").write_text("\ufeffC\n D\n")
    (three / "b.txt").write_bytes(b"\xff\xfe")
    found, problems = find(three)
    assert [(video.name, video.caption) for video in found] == [ALL[0], ALL[2]]
    assert [problem.file for problem in problems] == ["b.MP4"] and "b.txt is not UTF-8 text" in problems[0].reason


def test_rows_that_do_not_fit_the_videos_are_told(three):
    rows = ["file,caption", "a.mp4,A", "a.mp4,A", "b.MP4,B", "b.MP4,other", "x.mp4,X", "y.mp4,Y", "c/d.gif,  "]
    (three / "captions.csv").write_text("\n".join(rows))
    found, problems = find(three)
    assert [(video.name, video.caption) for video in found] == [("a.mp4", "A")]
    assert sorted(problems) == [
        ("b.MP4", "has several captions in captions.csv"),
        ("c/d.gif", "has no caption"),
        ("captions.csv", "captions 2 files that are not there, as x.mp4"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("captions.csv", b"name,caption\na.mp4,A\n", "captions.csv:2 has name, caption, and needs one of file, video"),
        ("captions.csv", b"file,title\na.mp4,A\n", "captions.csv:2 has file, title, and needs one of caption, text"),
        ("captions.csv", b"file,caption\na.mp4,A, with a comma\n", "captions.csv:2 has 3 values for 2 columns"),
        ("captions.csv", b"file,caption\n,A\n", "captions.csv:2 has '' as its file"),
        ("captions.csv", b'file,caption\na.mp4,"A', "captions.csv:2 is not CSV"),
        ("captions.csv", b"file,caption\na.mp4,\xe9\n", "captions.csv is not UTF-8 text"),
        ("captions.csv", b"", "no video in .*v has a caption"),
        ("captions.csv", b"file,caption\n", "no video in .*v has a caption"),
        ("captions.jsonl", b'{"file": "a.mp4"\n', "captions.jsonl:1 is not JSON"),
        ("captions.jsonl", b"[" * 100_000, "captions.jsonl:1 is not JSON"),
        ("captions.jsonl", b'\n["a.mp4", "A"]\n', r"captions.jsonl:2 is \[.*, not an object"),
        ("captions.jsonl", b'{"file": "a.mp4", "caption": 3}\n', "captions.jsonl:1 has 3 as its caption"),
        ("captions.jsonl", b'{"file": "a.mp4", "caption": "\\ud800"}\n', r"has '\\ud800' as its caption"),
        ("captions.jsonl", b"{}\n", "captions.jsonl:1 has nothing, and needs one of file"),
        ("a.txt", b"  \n", "no video in .*v has a caption: write them to captions.csv there"),
    ],
)
def test_captions_that_cannot_be_read_are_an_error(three, name, data, reason):
    (three / name).write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        find(three)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), suffix=st.sampled_from(["csv", "jsonl"]))
def test_any_table_is_read_or_refused(three, data, suffix):
    path = three.parent / f"t.{suffix}"
    start = b"file,caption\na.mp4,A\n" if suffix == "csv" else b'{"file": "a.mp4", "caption": "A"}\n'
    path.write_bytes(start + data)
    try:
        found, _ = find(three, path)
        assert "a.mp4" in [video.name for video in found] or b"a.mp4" in data
    except ValueError as error:
        assert str(path) in str(error) or "no video" in str(error)  # noqa: PT017


def test_a_name_that_is_not_unicode_is_a_problem(three):
    odd = os.fsdecode(bytes(three) + b"/\xff.mp4")
    Path(odd).touch()
    (three / "a.txt").write_text("A")
    found, problems = find(three)
    assert len(found) == 1 and Problem("'\\udcff.mp4'", "has a name that is not Unicode") in problems


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no videos \(.mp4, .mov, "):
        find(tmp_path)
    assert captions.FORMATS[-1] == ".m4v"


# before any work


class Untouched(Letters):
    def encode(self, prompts):
        raise AssertionError("work has begun")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": 6}, "frames is 6: this codec takes 1 \\+ 2 n, such as 5 or 7"),
        ({"frames": 0}, "clips of 0 frames"),
        ({"size": (20, 24)}, "sides must be multiples of 8"),
        ({"size": (0, 24)}, "clips of 5 frames of 24x0"),
        ({"fps": 0.0}, "fps is 0.0: it must be above 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"stride": 0}, "stride is 0: it must be at least 1"),
        ({"most": -1}, "clips is -1: it must be at least 1"),
        ({"holdout": 0.6}, "holdout is 0.6: it must lie in 0..0.5"),
        ({"source": "nowhere"}, "nowhere is not a folder of videos, a .txt file of prompts, or the folder of an LMDB"),
        ({"source": "v/v0.mp4"}, "v0.mp4 is not a folder"),
        ({"source": "blank.txt"}, "blank.txt holds no prompts"),
        ({"source": "latin.txt"}, "latin.txt is not UTF-8"),
        ({"table": "v/v0.mp4"}, "v0.mp4 is not UTF-8"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, change, reason):
    shoot(tmp_path / "v", [5])
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    outer = {"source": "v", "table": None, "holdout": 0.02}
    inner = {name: value for name, value in change.items() if name not in outer}
    outer |= {name: value for name, value in change.items() if name in outer}
    table = tmp_path / outer["table"] if outer["table"] else None
    with pytest.raises(ValueError, match=reason):
        encode(
            tmp_path / outer["source"],
            tmp_path / "out",
            replace(CUT, **inner),
            replace(models(), text=Untouched()),
            table=table,
            holdout=outer["holdout"],
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    source = shoot(tmp_path / "v", [5])
    for name, text, reason in (
        ("notes.md", "mine", "holds notes.md, which is not of a latent set"),
        ("manifest.json", '{"format": 1, "spec": {}}', "is not the manifest of a latent set"),
    ):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text(text)
        (out / ".draft.tmp").touch()
        with pytest.raises(ValueError, match=reason):
            encode(source, out, CUT, replace(models(), text=Untouched()))
        assert sorted(contents(out)) == sorted([name, ".draft.tmp"])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        encode(source, tmp_path / "file", CUT, replace(models(), text=Untouched()))


def test_a_missing_library_is_named_before_any_work(tmp_path, monkeypatch):
    source = shoot(tmp_path / "v", [5])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'videos need the package av: pip install "forcing\[video\]"'):
        encode(source, tmp_path / "out", CUT, replace(models(), text=Untouched()))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r'LMDB needs the package lmdb: pip install "forcing\[lmdb\]"'):
        lmdb.check(tmp_path / "db")


# again, and after an interruption


def counted(calls: list[str], digest: str = "pooled") -> Models:
    class Counting(Pooled):
        def encode(self, video):
            calls.append("clip")
            return super().encode(video)

    return replace(models(), codec=lambda device: Counting(digest=digest))


def test_what_is_finished_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT", 2)
    source, out, calls = shoot(tmp_path / "v", [5, 5, 5, 5, 3]), tmp_path / "out", []
    first = counted(calls)
    encode(source, out, CUT, first)
    before = contents(out)
    assert len(calls) == 4 and first.text.encoded == 5 and first.text.released
    again = counted(calls)
    made = encode(source, out, CUT, again, progress=lambda *_: pytest.fail("there is nothing to do"))
    assert contents(out) == before and len(calls) == 4 and again.text.encoded == 0 and made.clips == 4

    (source / "captions.csv").write_text((source / "captions.csv").read_text().replace("number 1", "number one"))
    encode(source, out, CUT, again)
    assert len(calls) == 4  # the latents are what they were

    media.save(source / "v3.mp4", film(11), fps=8.0)
    encode(source, out, CUT, again)
    assert len(calls) == 4 + 3  # the unit of v2 and v3
    after = contents(out)
    encode(source, tmp_path / "fresh", CUT, models())
    assert after == contents(tmp_path / "fresh")  # and what is stale is gone


@pytest.mark.parametrize(
    "change", [{"frames": 3}, {"size": (16, 16)}, {"fps": 4.0}, {"fit": "pad"}, {"stride": 1}, {"most": 1}, "codec"]
)
def test_what_was_made_otherwise_is_made_again_if_that_is_asked_for(tmp_path, change):
    source, out, calls = shoot(tmp_path / "v", [10]), tmp_path / "out", []
    encode(source, out, CUT, models())
    before = contents(out)
    cut, digest = (CUT, "other") if change == "codec" else (replace(CUT, **change), "pooled")
    named = "codec 'pooled', not 'other'" if change == "codec" else rf"{next(iter(change))} .*, not "
    with pytest.raises(ValueError, match=rf"out is a set with .*{named}.* --replace"):
        encode(source, out, cut, counted(calls, digest))
    assert contents(out) == before and not calls
    encode(source, out, cut, counted(calls, digest), replace=True)
    encode(source, tmp_path / "fresh", cut, counted(again := [], digest))
    assert contents(out) == contents(tmp_path / "fresh") and len(calls) == len(again) > 0


def test_a_set_is_not_replaced_by_one_of_other_things_or_words(tmp_path):
    out = tmp_path / "out"
    encode(shoot(tmp_path / "v", [5, 6]), out, CUT, models())
    before = contents(out)
    for name in ("p.txt", "q.txt"):
        (tmp_path / name).write_text(f"{name} one\n{name} two\n")
    (tmp_path / "v").rename(tmp_path / "renamed")
    record(tmp_path / "w" / "other.mp4", film(5))
    (tmp_path / "w" / "other.txt").write_text("film number 0")  # a caption is not what it is a film of
    for source in (tmp_path / "p.txt", tmp_path / "w"):
        with pytest.raises(ValueError, match="out is a set with other videos or prompts: give another --out, or"):
            encode(source, out, CUT, models())
    with pytest.raises(ValueError, match=r"holdout 0\.02, not 0\.1"):
        encode(tmp_path / "renamed", out, CUT, models(), holdout=0.1)
    with pytest.raises(ValueError, match="text 'letters', not 'words'"):
        encode(tmp_path / "renamed", out, CUT, replace(models(), text=Letters(digest="words")))
    assert contents(out) == before
    encode(tmp_path / "renamed", out, CUT, models())
    assert contents(out) == before
    for more in ("", "another\n"):
        (tmp_path / "p.txt").write_text((tmp_path / "p.txt").read_text() + more)
        encode(tmp_path / "p.txt", tmp_path / "prompts", CUT, models())
    with pytest.raises(ValueError, match="other videos or prompts"):  # though both are numbered from 0
        encode(tmp_path / "q.txt", tmp_path / "prompts", CUT, models())
    assert encode(tmp_path / "q.txt", tmp_path / "prompts", CUT, models(), replace=True).clips == 2


def test_a_set_stays_as_it_was_where_nothing_can_be_encoded_again(tmp_path, command):
    source, out = shoot(tmp_path / "v", [5] * 12), tmp_path / "out"
    assert command(source)[0] == 0
    before = contents(out)
    assert before["problems.txt"] == b""
    shoot(source, [3] * 12)
    code, said = command(source)
    assert code == 1 and said.endswith(f"could be encoded; {out} is as it was\n") and said.count("skipped") == 12
    assert {name: data for name, data in contents(out).items() if name in before} == before
    assert len(LatentSet.open(out)) == 12


def test_damage_that_keeps_a_files_size_is_mended(tmp_path):
    source, out = shoot(tmp_path / "v", [5, 6]), tmp_path / "out"
    encode(source, out, CUT, models())
    before = contents(out)
    for name in (each for each in before if each.endswith(".safetensors")):
        data = bytearray(before[name])
        data[-1] ^= 1
        (out / name).write_bytes(data)
        encode(source, out, CUT, models())
        assert contents(out) == before, name


@pytest.mark.parametrize("harm", ["shard", "text", "record"])
def test_a_damaged_unit_is_made_again(tmp_path, harm):
    source, out = shoot(tmp_path / "v", [5, 6]), tmp_path / "out"
    encode(source, out, CUT, models())
    before = contents(out)
    name = next(
        n for n in before if n.startswith(harm.replace("record", "shard")) and (n[-4:] == "json") == (harm == "record")
    )
    (out / name).write_bytes(before[name][:-5])
    encode(source, out, CUT, models())
    assert contents(out) == before


def test_progress_counts_videos_and_captions(tmp_path):
    told = []
    encode(shoot(tmp_path / "v", [5, 12, 3]), tmp_path / "out", CUT, models(), progress=lambda *each: told.append(each))
    assert [each[:2] for each in told] == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 3), (2, 3), (3, 3)]
    assert [each[2].split()[1] for each in told] == ["captions/s"] * 4 + ["clips/s"] * 3


def test_killed_and_started_again_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT", 2)
    source, out = shoot(tmp_path / "v", [10] * 8), tmp_path / "out"
    script = Path(__file__).with_name("fakes.py")
    process = subprocess.Popen([sys.executable, script, source, out, "0.1"])
    until = time.monotonic() + 60
    while len(list(out.glob("shard-*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / ".shard-0.safetensors.1.tmp").touch()  # what one that is killed while it writes leaves
    finished = {name for name in contents(out) if name.startswith("shard-")}
    assert finished and not (out / "manifest.json").exists()
    stamps = {name: (out / name).stat().st_mtime_ns for name in finished if (out / f"{name[:22]}.json").exists()}
    encode(source, out, CUT, models())
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in stamps}
    encode(source, tmp_path / "whole", CUT, models())
    assert contents(out) == contents(tmp_path / "whole")


# side by side


def test_two_processes_make_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT", 1)
    source = shoot(tmp_path / "v", [5, 12, 3, 7])
    told = []
    two = encode(source, tmp_path / "two", CUT, models(("cpu", "cpu")), progress=lambda *each: told.append(each[:2]))
    assert two == encode(source, tmp_path / "one", CUT, models()) and told[-1] == (4, 4)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def fatal(how: str, device: str) -> Pooled:
    if device == "good":
        return pooled(0.0, device)
    if os.environ.get("FORCING_TEST_PARENT") == str(os.getpid()):
        return pooled(0.0, device)
    if how == "dies":
        os._exit(3)
    raise ValueError(f"there is no {device}")


@pytest.mark.parametrize(
    ("how", "error", "reason"), [("dies", RuntimeError, "has died"), ("raises", ValueError, "no bad")]
)
def test_a_process_that_fails_ends_all(tmp_path, monkeypatch, how, error, reason):
    monkeypatch.setattr(sources, "UNIT", 1)
    monkeypatch.setenv("FORCING_TEST_PARENT", str(os.getpid()))
    source = shoot(tmp_path / "v", [5, 5])
    with pytest.raises(error, match=reason):
        encode(source, tmp_path / "out", CUT, Models(partial(fatal, how), Letters(), ("good", "bad")))
    assert not (tmp_path / "out" / "manifest.json").exists()


# what is held out


def test_what_is_held_out_stays_so_as_videos_come(tmp_path):
    def held(frames: list[int], name: str) -> dict[str, str]:
        out = tmp_path / name
        encode(shoot(tmp_path / "v", frames), out, CUT, models(), holdout=0.4)
        return {row["source"]: row["split"] for row in json.loads((out / "manifest.json").read_text())["clips"]}

    few, many = held([5] * 6, "few"), held([5] * 12, "many")
    assert few == {name: many[name] for name in few} and set(few.values()) == {"train", "heldout"}


# the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`forcing encode` with costless models: its exit code and what it said."""
    monkeypatch.setattr("forcing.cli.encode._codec", lambda folder, device: Pooled())
    monkeypatch.setattr("forcing.cli.encode.UMT5", lambda folder, device: Letters())

    def run(*args: object) -> tuple[int, str]:
        given = ["--model", tmp_path, "--out", tmp_path / "out", "--size", "24x16", "--frames", 5, "--fps", 8]
        code = main(["encode", *map(str, (*args, *given[: 10 if "--size" not in args else 4]))])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_the_command_says_what_it_made(tmp_path, command):
    source = shoot(tmp_path / "v", [5, 12, *[3] * 12])
    code, said = command(source, "--holdout", 0.0, "--lmdb", tmp_path / "db")
    lines = said.splitlines()
    assert code == 0
    assert lines[0] == "skipped v10.mp4: has 3 frames at 8 fps, and a clip takes 5"
    assert lines[10] == f"and 2 more: see {tmp_path / 'out' / 'problems.txt'}"
    assert lines[11] == (
        f"{tmp_path / 'out'}: 3 clips of 5 frames, 24x16 at 8 fps (0 held out, 0.0 MB), latents 3x3x2x3, 14 captions"
    )
    with lmdb.opened(tmp_path / "db") as rows:
        assert [prompt for _, prompt in rows] == ["film number 0", "film number 1", "film number 1"]
    assert command(source, "--holdout", 0.0)[0] == 0


def test_the_command_takes_prompts(tmp_path, command):
    (tmp_path / "p.txt").write_text("a\nb\n")
    (tmp_path / "q.txt").write_text("c\nd\n")
    assert command(tmp_path / "q.txt")[0] == 0 and command(tmp_path / "p.txt")[0] == 2
    code, said = command(tmp_path / "p.txt", "--replace")
    assert (code, said.partition(": ")[2][:32]) == (0, "2 prompts for clips at 8 fps (0 ")
    code, said = command(tmp_path / "p.txt", "--lmdb", tmp_path / "db")
    assert code == 2 and "p.txt holds prompts alone" in said


def test_the_command_fails_where_nothing_could_be_encoded(tmp_path, command):
    code, said = command(shoot(tmp_path / "v", [3]))
    assert code == 1 and said.splitlines()[-1] == f"nothing in {tmp_path / 'v'} could be encoded"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--size", "832"], "size is '832'"),
        (["--size", "24x0"], "24x0"),
        (["--size", "axb"], "size is 'axb'"),
        (["--workers", "0"], "workers is 0: it must be at least 1"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["--fit", "stretch"], "stretch"),
        (["--holdout", "1"], "holdout is 1.0"),
        (["--captions", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--lmdb", "."], ". exists already: give a new folder for the LMDB"),
    ],
)
def test_the_command_refuses_what_cannot_be(tmp_path, command, args, reason):
    code, said = command(shoot(tmp_path / "v", [5]), *args)
    assert code == 2 and reason in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_tiny_wan_encodes_its_own_videos(tmp_path, monkeypatch, capsys):
    """Parity: what training reads is what the pipeline's own VAE and text encoder say."""
    monkeypatch.setenv("FORCING_CACHE", str(tmp_path / "cache"))
    pipeline, films = fixture(tmp_path / "pipeline"), videos(tmp_path / "videos", count=2)
    args = ["encode", films, "--model", pipeline, "--out", tmp_path / "out", "--size", "96x64", "--frames", "9"]
    assert main([str(each) for each in args]) == 0, capsys.readouterr()
    found = LatentSet.open(tmp_path / "out")
    batch, vae, text = found.batch(np.arange(len(found))), WanVAE.load(pipeline), UMT5(pipeline)
    told = [found.manifest["captions"][row["caption"]] for row in found.manifest["clips"]]
    pixels = np.concatenate(
        [cut[None] for path in sorted(films.glob("*.mp4")) for _, cut in clips(path, Cut((64, 96), 9, 16.0))]
    )
    assert torch.equal(batch.latents, vae.encode(pixels).half().float()) and found.shape == (3, 16, 8, 12)
    length = batch.cond.static["text"].shape[1]
    assert torch.equal(batch.cond.static["text"], text.encode(told)[:, :length].bfloat16().float())
    assert torch.equal(batch.uncond.static["text"], text.null(len(found))[:, :length].bfloat16().float())
    assert text.encode(told)[:, length:].abs().max() == text.null(1)[:, length:].abs().max() == 0
    assert (found.manifest["codec"], found.manifest["text"]) == (vae.digest, text.digest)
