"""The published LMDB layout: what others wrote is read, what we write others can read, and damage is told."""

import shutil
from dataclasses import replace
from pathlib import Path

import lmdb as library
import numpy as np
import pytest
import torch
from fakes import CUT, Letters, contents, models, shoot

from forcing.data import lmdb, parts
from forcing.data.captions import Problem, UnusableError
from forcing.data.encode import encode
from forcing.data.latents import LatentSet

CLIP = (3, 3, 2, 3)


def latents(rows: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype(np.float16)


def published(path: Path, rows: np.ndarray, prompts: list[str] | None = None, **changes: bytes | None) -> Path:
    """A database as published code writes it. changes: other values of its keys; None leaves one out."""
    prompts = prompts or [f"prompt {number}" for number in range(len(rows))]
    values = {"latents_shape": " ".join(map(str, rows.shape)).encode(), "prompts_shape": str(len(rows)).encode()}
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        values |= {f"latents_{number}_data": row.tobytes(), f"prompts_{number}_data": prompt.encode()}
    path.mkdir()
    with library.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as into:
        for key, value in (values | changes).items():
            if value is not None:
                into.put(key.encode(), value)
    return path


def test_the_clean_clip_is_the_last_of_its_row(tmp_path):
    for name, rows in (("steps", latents(4, 5, *CLIP)), ("one", latents(4, 1, *CLIP)), ("bare", latents(4, *CLIP))):
        with lmdb.opened(published(tmp_path / name, rows)) as found:
            assert len(found) == 4 and found.shape == CLIP
            for number, (clip, prompt) in enumerate(found):
                clean = rows[number] if name == "bare" else rows[number, -1]
                assert (clip.numpy() == clean).all() and prompt == f"prompt {number}"


def test_what_is_written_is_read_by_published_code(tmp_path):
    clips = torch.from_numpy(latents(6, *CLIP)).float()
    prompts = [f"prompt {number} \N{SNOWMAN}" for number in range(6)]
    lmdb.write(tmp_path / "new" / "db", zip(clips, prompts, strict=True))
    with library.open(str(tmp_path / "new" / "db"), readonly=True, lock=False) as env, env.begin() as read:
        shape = tuple(int(number) for number in read.get(b"latents_shape").decode().split())
        assert shape == (6, 1, *CLIP) and read.get(b"prompts_shape") == b"6"
        for number in range(6):
            row = np.frombuffer(read.get(f"latents_{number}_data".encode()), np.float16).reshape(shape[1:])
            assert (row[-1] == clips[number].numpy()).all()
            assert read.get(f"prompts_{number}_data".encode()).decode() == prompts[number]
    with lmdb.opened(tmp_path / "new" / "db") as found:
        assert all(torch.equal(clip.float(), clips[number]) for number, (clip, _) in enumerate(found))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["db"]


def test_a_database_grows_as_it_has_to(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb, "_ROOM", 1 << 18)
    large = [(torch.full((2, 3, 64, 64), float(number)), f"prompt {number}") for number in range(60)]
    lmdb.write(tmp_path / "db", iter(large))
    with lmdb.opened(tmp_path / "db") as found:
        assert [int(clip.mean()) for clip, _ in found] == list(range(60))


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def failing():
        yield torch.zeros(CLIP), "a"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        lmdb.write(tmp_path / "db", failing())
    with pytest.raises(ValueError, match=r"there are no clips to write to .*db"):
        lmdb.write(tmp_path / "db", [])
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_is_said_before(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(ValueError, match=f"{path} exists already"):
            lmdb.check(path)
    (tmp_path / "empty").mkdir()
    lmdb.check(tmp_path / "empty")
    lmdb.write(tmp_path / "empty", [(torch.zeros(CLIP), "a")])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"latents_shape": None}, "is an LMDB, but not of latents: it has no latents_shape"),
        ({"latents_shape": b"4 x"}, "has b'4 x' as its latents_shape: need the numbers of rows"),
        ({"latents_shape": b"4 3 2 3"}, "has b'4 3 2 3' as its latents_shape"),
        ({"latents_shape": b"0 3 3 2 3"}, "has b'0 3 3 2 3' as its latents_shape"),
        ({"latents_shape": b"\xff"}, "as its latents_shape"),
    ],
)
def test_shapes_that_are_none_are_an_error(tmp_path, changes, reason):
    path = published(tmp_path / "db", latents(4, *CLIP), **changes)
    with pytest.raises(ValueError, match=f"{path} {reason}|{reason}"), lmdb.opened(path):
        pass


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda data: b"", "cannot be read as an LMDB"),
        (lambda data: b"not a database" * 1000, "cannot be read as an LMDB"),
        (lambda data: data[: len(data) - 4096], "is cut short: it has"),
        (lambda data: data[:8192], "is cut short: it has 8192 bytes of"),
        (lambda data: data[:100], "cannot be read as an LMDB"),
    ],
)
def test_files_that_are_no_database_are_an_error(tmp_path, harm, reason):
    """A process that reads behind the end of a database is killed: it must not come to that."""
    path = published(tmp_path / "db", latents(40, *CLIP)) / "data.mdb"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path.parent}.*{reason}"), lmdb.opened(path.parent):
        pass


def test_rows_that_are_damaged_are_told_one_by_one(tmp_path):
    harmed = {"latents_1_data": b"123", "latents_2_data": None, "prompts_3_data": b"\xff", "prompts_4_data": None}
    reasons = [
        "has 3 bytes of latents, not 108",
        "has no latents_2_data",
        "has a prompt that is not UTF-8",
        "has no prompts_4",
    ]
    with lmdb.opened(published(tmp_path / "db", latents(6, *CLIP), **harmed)) as rows:
        for number, reason in enumerate(reasons, 1):
            with pytest.raises(UnusableError, match=reason):
                _ = rows.latents(number), rows.prompt(number)
        assert rows.prompt(5) == "prompt 5"


def test_a_database_becomes_a_set(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 2)
    rows = latents(7, 4, *CLIP)
    rows[5, -1, 0, 0, 0, 0] = np.inf
    harmed = {"latents_1_data": b"123", "prompts_2_data": None}
    prompts = ["a", "b", "c", "a", "d", "e", "f"]
    path = published(tmp_path / "db", rows, prompts, **harmed)
    made = encode(path, tmp_path / "out", replace(CUT, fps=12.0), models(), holdout=0.0)
    assert made.clips == 4 and made.problems == [
        Problem("row 1", "has 3 bytes of latents, not 432"),
        Problem("row 2", "has no prompts_2_data"),
        Problem("row 5", "has latents that are not finite numbers"),
    ]
    found = LatentSet.open(tmp_path / "out")
    assert found.shape == CLIP and found.size == (16, 24)
    assert (found.manifest["frames"], found.manifest["fps"]) == (5, 12.0)
    batch = found.batch(np.arange(4))
    assert (batch.latents.numpy() == rows[[0, 3, 4, 6], -1]).all()
    assert torch.equal(batch.cond.static["text"], Letters().encode(["a", "a", "d", "f"])[:, :3])
    assert [row["caption"] for row in found.manifest["clips"]][:2] == [0, 0]
    before = contents(tmp_path / "out")
    encode(path, tmp_path / "out", replace(CUT, fps=12.0), models(), holdout=0.0)
    assert contents(tmp_path / "out") == before


def test_a_folder_of_shards_is_one_database(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART", 2)
    rows, source = latents(7, *CLIP), tmp_path / "shards"
    source.mkdir()
    prompts = ["a", "b", "c", "a", "d", "e", "f"]
    published(source / "b", rows[3:5], prompts[3:5])
    published(source / "a", rows[:3, None], prompts[:3], latents_1_data=b"123")  # a row more deep is the same clip
    published(source / "c10", rows[5:6], prompts[5:6])
    published(source / "c9", rows[6:], prompts[6:], prompts_0_data=None)
    (source / "README.md").touch()
    (source / ".cache").mkdir()
    made = encode(source, tmp_path / "out", CUT, models(), holdout=0.0)
    assert made.problems == [
        Problem("row a/1", "has 3 bytes of latents, not 108"),
        Problem("row c9/0", "has no prompts_0_data"),
    ]
    found = LatentSet.open(tmp_path / "out")
    assert [clip["source"] for clip in found.manifest["clips"]] == ["a/0", "a/2", "b/0", "b/1", "c10/0"]
    batch = found.batch(np.arange(5))
    assert (batch.latents.numpy() == rows[[0, 2, 3, 4, 5]]).all()
    assert torch.equal(batch.cond.static["text"], Letters().encode(["a", "c", "a", "d", "e"])[:, :3])
    encode(source, tmp_path / "two", CUT, models(("cpu", "cpu")), holdout=0.0)
    assert contents(tmp_path / "two") == contents(tmp_path / "out")

    shutil.rmtree(source / "c9")
    published(source / "d", rows[6:], ["z"])
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.safetensors")}
    assert encode(source, tmp_path / "out", CUT, models(), holdout=0.0).clips == 6
    assert stamps.items() < {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}.items()


def test_shards_are_named_by_what_is_in_them_alone(tmp_path):
    """Of two with as many rows and bytes, neither answers for the other."""
    rows, source = latents(2, *CLIP), tmp_path / "shards"
    source.mkdir()
    for name, row in (("a", rows[:1]), ("b", rows[1:])):
        published(source / name, row, ["same"])
    encode(source, tmp_path / "out", CUT, models(), holdout=0.0)
    assert (LatentSet.open(tmp_path / "out").batch(np.arange(2)).latents.numpy() == rows).all()


def test_shards_that_are_not_alike_are_refused(tmp_path):
    source = tmp_path / "shards"
    source.mkdir()
    published(source / "a", latents(1, *CLIP))
    published(source / "b", latents(1, 2, *CLIP[1:]))
    with pytest.raises(ValueError, match=r"b has clips of \[2, 3, 2, 3\], and \S+a of \[3, 3, 2, 3\]: they must be"):
        encode(source, tmp_path / "out", CUT, models())
    shutil.rmtree(source / "b")
    (source / "c").mkdir()
    with pytest.raises(ValueError, match=r"shards/c has no data\.mdb, as a shard of the LMDB \S+shards must"):
        encode(source, tmp_path / "out", CUT, models())
    assert not (tmp_path / "out").exists()


def test_videos_beside_a_database_are_what_is_encoded(tmp_path):
    source = shoot(tmp_path / "v", [5])
    published(source / "db", latents(3, *CLIP))
    assert encode(source, tmp_path / "out", CUT, models()).clips == 1


def test_latents_that_the_codec_does_not_make_are_refused(tmp_path):
    path = published(tmp_path / "db", latents(2, 3, 4, 2, 3))
    with pytest.raises(ValueError, match=r"db has latents \[4, 2, 3\], and this codec makes \[3, 2, 3\]"):
        encode(path, tmp_path / "out", CUT, models())
    none = published(tmp_path / "none", latents(1, *CLIP), prompts_0_data=None)
    assert not (tmp_path / "out").exists()
    assert encode(none, tmp_path / "out", CUT, models()) == (0, [Problem("row 0", "has no prompts_0_data")])


def test_a_set_goes_through_a_database_unchanged(tmp_path):
    encode(shoot(tmp_path / "v", [5, 10, 7]), tmp_path / "a", CUT, models(), holdout=0.0)
    first = LatentSet.open(tmp_path / "a")
    lmdb.write(tmp_path / "db", first.clips("train"))
    encode(tmp_path / "db", tmp_path / "b", CUT, models(), holdout=0.0)
    second = LatentSet.open(tmp_path / "b")
    a, b = first.batch(np.arange(4)), second.batch(np.arange(4))
    assert len(first) == len(second) == 4 and torch.equal(a.latents, b.latents)
    assert torch.equal(a.cond.static["text"], b.cond.static["text"])
