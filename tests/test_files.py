"""Files appear whole or not at all, whoever else writes them."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forcing import files


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "a.json"
    with files.whole(path) as draft:
        draft.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and leftovers(path.parent) == []
    assert files.write_json(path, {"a": 1}) == path and json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_there_stays_where_writing_fails(kind, tmp_path):
    path = tmp_path / "a"
    if kind == "file":
        path.write_text("before")
    else:
        path.mkdir()
        (path / "b").write_text("before")

    def fail() -> None:
        with files.whole(path) as draft:
            if kind == "folder":
                draft.mkdir()
            (draft if kind == "file" else draft / "b").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (path if kind == "file" else path / "b").read_text() == "before" and leftovers(tmp_path) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "precious").touch()

    def put_a_folder() -> None:
        with files.whole(path) as draft:
            draft.mkdir()

    for put in (put_a_folder, lambda: files.write(path, b"page")):
        with pytest.raises(OSError, match=str(path)):
            put()
    assert (path / "precious").is_file() and leftovers(tmp_path) == []


def test_not_finite_numbers_are_no_json(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_write_the_same_file(tmp_path):
    path = tmp_path / "run.json"
    code = (
        "import sys; from pathlib import Path; from forcing import files\n"
        f"for _ in range(300): files.write_json(Path({str(path)!r}), {{'by': sys.argv[1]}})"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [each.wait(120) for each in both] == [0, 0]
    assert json.loads(path.read_text())["by"] in "ab" and leftovers(tmp_path) == []


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    there = tmp_path / "file"
    there.touch()
    for place in (there / "a.mp4", "/proc/a.mp4"):
        for attempt in (files.probe, lambda path: files.write(path, b"")):
            with pytest.raises(OSError, match=str(there) if place != "/proc/a.mp4" else "/proc/a.mp4"):
                attempt(Path(place))
    files.probe(tmp_path / "fine" / "a.mp4")
    assert (tmp_path / "fine").is_dir() and not any((tmp_path / "fine").iterdir())


@pytest.mark.parametrize("at", [0, 9, 500, 509, -10, -1])
def test_a_large_file_is_known_by_its_ends_and_its_middle(tmp_path, monkeypatch, at):
    monkeypatch.setattr(files, "_WHOLE", 100)
    monkeypatch.setattr(files, "_MIB", 10)
    path, data = tmp_path / "large", bytearray(1000)
    path.write_bytes(data)
    before = files.mark([path])
    data[250] = 1  # which no sample sees
    path.write_bytes(data)
    assert files.mark([path]) == before
    data[at] = 1
    path.write_bytes(data)
    assert files.mark([path]) != before


def test_a_mark_tells_names_sizes_and_contents_apart(tmp_path, monkeypatch):
    def mark(folder, **contents):
        paths = [tmp_path / folder / name for name in contents]
        for path in paths:
            files.write(path, contents[path.name])
        return files.mark(paths)

    before = mark("f", a="one", b="two")
    assert mark("f", b="two", a="one") == before  # in whatever order
    others = [mark("f", a="two", b="one"), mark("f", a="onet", b="wo"), mark("f", a="one", c="two"), mark("f", a="one")]
    others.append(mark("g", a="one", b="two"))
    assert len({before, *others}) == 6
    monkeypatch.setattr(files, "_WHOLE", 10)
    monkeypatch.setattr(files, "_MIB", 1)
    assert mark("f", a="0" * 99) != mark("f", a="0" * 98)
    monkeypatch.chdir(tmp_path / "f")
    assert files.mark([Path("a")]) == files.mark([tmp_path / "f" / "a"])


def test_a_folder_is_for_one_process_until_it_ends(tmp_path):
    code = (
        "import sys; from pathlib import Path; from forcing import files\n"
        "with files.alone(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    asked = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match=r"run is in use by another process"), files.alone(tmp_path / "run"):
            pass
        first.kill()
        first.wait()
        with files.alone(tmp_path / "run"), files.alone(tmp_path / "other"):
            pass


def test_a_file_system_without_locks_does(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with files.alone(tmp_path):
        assert (tmp_path / ".lock").is_file()


def test_a_failure_without_a_name_is_that_of_what_is_written(tmp_path):
    def full() -> None:
        with files.whole(tmp_path / "a"):
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match=str(tmp_path / "a")):
        full()


def test_a_killed_process_leaves_no_draft_for_long(tmp_path):
    (tmp_path / f".a.{os.getpid() + 1}.tmp").mkdir()
    (tmp_path / ".b.1.tmp").touch()
    (tmp_path / "kept").touch()
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
