"""Viewers that load a server see what is wrong with it, and leave nothing behind."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from serve_toys import serving, until

from forcing import cli
from forcing.serve import load, local, mock, wire
from forcing.serve.mock import Marks
from forcing.serve.options import Options

FAST = {"pass_s": 0.0, "fps": 20.0}


def measured(url, pid=None, **plan):
    told = []
    plan = load.Plan(url, **{"sessions": 4, "seconds": 3.0, "ramp": 0.2, **plan})
    report = asyncio.run(load.measure(plan, lambda seconds, note: told.append((seconds, note)), pid))
    assert told and "viewers" in told[-1][1]
    return report


@pytest.fixture(scope="module")
def shared():
    with serving(engine=FAST, sessions=8) as served:
        yield served


def test_all_kinds_of_viewers_are_measured(shared, monkeypatch):
    monkeypatch.setattr(load, "READ_S", (0.5, 1.0))
    monkeypatch.setattr(load, "SLEEP_S", (1.2, 1.5))
    report = measured(shared.url, os.getpid(), sessions=6, slow=1, kill=2, seconds=6.0)
    assert (report["foreign"], report["stale"], report["errors"]) == (0, 0, {})
    healthy, slow, killed = (report["viewers"][kind] for kind in load.KINDS)
    assert (healthy["viewers"], slow["viewers"], killed["viewers"]) == (3, 1, 2)
    assert healthy["first_ms"]["count"] == 3 and 10 < healthy["between_ms"]["p50"] < 100
    assert healthy["fps"] > slow["fps"] and slow["between_ms"]["max"] > 1000 > healthy["between_ms"]["p95"]
    assert healthy["applied_ms"]["count"] > 5 and healthy["applied_ms"]["p50"] > 0 and healthy["unheard"] == 0
    assert healthy["age_ms"]["p50"] < 500 and healthy["kills"] == 0 == healthy["back_ms"]["count"]
    assert killed["kills"] >= 2 and killed["back_ms"]["count"] >= killed["kills"] - 1
    assert 6 <= report["read"] < report["pictures"] <= shared.metric("pictures_total")  # some were on their way
    assert report["server"]["gateway"]["cpu"] > 0 and report["server"]["gateway"]["most_mb"] > 10
    assert load.broken(report, 1000.0) == []
    assert "p95 between chunks" in load.broken(report, 1.0)[0]
    shared.settled()


def test_a_server_that_is_too_slow_lets_screens_run_dry():
    with serving(engine={"pass_s": 0.1, "fps": 20.0}, sessions=4) as served:
        healthy = measured(served.url)["viewers"]["healthy"]
    assert healthy["dry"] > 10 and healthy["stood_ms"] > 1000 and healthy["fps"] < 10
    assert healthy["between_ms"]["p50"] > 200


def test_who_is_not_let_in_is_an_error_and_who_waits_is_not():
    with serving(engine=FAST, sessions=2, queue=1) as served:
        report = measured(served.url)
    assert report["viewers"]["healthy"]["first_ms"]["count"] == 2
    ((error, count),) = report["errors"].items()
    assert count == 1 and "503" in error
    lost = load.broken(report, None)
    assert lost == ["1 errors", "only 2 of 4 healthy viewers saw a picture"]


def test_a_session_that_ends_is_an_error():
    with serving(engine={**FAST, "faults": {1: "nan"}}, sessions=4) as served:
        report = measured(served.url)
    assert any("not finite" in error for error in report["errors"]) and load.broken(report, None)


def viewer(**world):
    async def make():
        one = load.Viewer(0, load.Plan("http://localhost", seed=5), {})
        one.world = {"name": "mock", "chunk": 1, **world}
        one.generation = 2
        return one

    return asyncio.run(make())


def seen(painted=None, **changes):
    marks = Marks(session=7, generation=2, frame=3, event=1, prompt=0, keys=0, seed=5)._replace(**painted or {})
    numbers = {"generation": 2, "frame": 3, "latent": 3, "made_us": 0, "event": 1, "took_us": 0, "mark": 7}
    return wire.Picture(**{**numbers, "image": encoded(mock.paint(marks)), **changes})


def encoded(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=85)
    return data.getvalue()


@pytest.mark.parametrize(
    ("picture", "wrong"),
    [
        (seen(), (0, 0)),
        (seen({"session": 8}), (1, 0)),
        (seen({"seed": 6}), (1, 0)),
        (seen({"generation": 1}), (0, 1)),
        (seen({"frame": 2}), (0, 1)),
        (seen({"event": 0}), (0, 1)),
        (seen(generation=1), (0, 1)),
        (seen({"frame": 2}, frame=2), (0, 1)),
        (seen({"session": 9}, mark=9), (1, 0)),
    ],
)
def test_pictures_that_are_not_ours_or_not_new_are_counted(picture, wrong):
    one = viewer()
    one.mark, one.frame, one.marks = 7, 2, {7: 0}
    one._check(picture)
    assert (one.seen.foreign, one.seen.stale) == wrong


def test_a_mark_of_another_viewer_is_foreign():
    one = viewer(name="real")
    one.marks = {7: 3}
    one._check(seen())
    assert (one.seen.foreign, one.seen.stale, one.seen.read) == (1, 0, 0)


@pytest.mark.parametrize(("changes", "stale"), [({}, 0), ({"generation": 1}, 1), ({"frame": 2}, 1)])
def test_headers_alone_tell_what_is_over(changes, stale):
    one = viewer(name="real")
    one.frame = 2
    one._check(seen(**changes))
    assert (one.seen.foreign, one.seen.stale, one.seen.read) == (0, stale, 0)


def test_a_screen_runs_dry():
    screen = load.Screen(period=0.1, lead=0.05)
    for at in (10.0, 10.1, 10.2, 10.34):
        screen.came(at)
    assert screen.dry == 0
    screen.came(10.5)  # should have been shown at 10.45
    assert screen.dry == 1 and screen.stood == pytest.approx(0.1)
    screen.came(10.64)
    assert screen.dry == 1
    screen.came(10.76)
    assert screen.dry == 2


def test_percentiles_are_the_least_that_suffice():
    assert load.spread([3.0, 1.0, 2.0, 4.0]) == {"count": 4, "p50": 2.0, "p95": 4.0, "p99": 4.0, "max": 4.0}
    assert load.spread(range(1, 101)) == {"count": 100, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert load.spread([])["p95"] is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "localhost:8000"}, "write it as http://"),
        ({"sessions": 0}, "sessions is 0"),
        ({"slow": -1}, "slow is -1"),
        ({"sessions": 3, "slow": 2, "kill": 1}, "nobody healthy is left"),
        ({"seconds": 0.5}, "seconds is 0.5"),
        ({"ramp": 99.0}, "ramp is 99"),
    ],
)
def test_plans_that_cannot_be(wrong, told):
    with pytest.raises(ValueError, match=told):
        load.Plan(**{"url": "http://localhost", **wrong})


def test_a_server_of_our_own_is_gone_in_the_end():
    with local.served(Options(port=0, engine=FAST), mock.main) as (url, pid):
        until(lambda: load.asked(url, "GET", "/healthz")["alive"])
        assert local.listening(int(url.rpartition(":")[2])) == pid
        until(lambda: len(local._family(pid)) > 1)
        family = [number for number, _, _ in local._family(pid)]
    until(lambda: not any(Path(f"/proc/{number}").exists() for number in family))
    with pytest.raises(ConnectionError, match="does not answer"):
        load.asked(url, "GET", "/healthz")


def run(*args):
    return cli.main(["load", *map(str, args)])


def test_the_command(tmp_path, capsys):
    out = tmp_path / "load.json"
    assert run("--sessions", 3, "--seconds", 2, "--ramp", 0.1, "--p95", 1000, "--out", out) == 0
    said = capsys.readouterr().out
    assert "3 viewers of mock at 16 pictures a second" in said and "0 foreign, 0 stale" in said
    report = json.loads(out.read_text())
    assert report["machine"]["cores"] and report["plan"]["sessions"] == 3 and report["broken"] == []
    assert set(report["server"]) == {"gateway", "engines"} and report["server"]["engines"]["most_mb"] > 10
    assert run("--sessions", 1, "--seconds", 1, "--ramp", 0, "--p95", 0.1) == 1
    assert "not kept: p95 between chunks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["http://localhost:1", "--mock"], "--mock is for a server that is started here"),
        (["--mock", "--world", "shipped"], "exclude each other"),
        (["--token", "x"], "--token is for a server that runs already"),
        (["--fps", "0"], "fps is 0"),
        (["--p95", "-1"], "p95 is -1 ms"),
        (["--world", "nowhere"], "there is no world in nowhere"),
        (["--sessions", "2", "--kill", "2"], "nobody healthy is left"),
    ],
)
def test_what_cannot_be_is_said_before_work_starts(args, told, capsys):
    assert run(*args) == 2
    assert told in capsys.readouterr().err


def test_a_server_that_is_not_there_is_said(capsys):
    assert run("http://127.0.0.1:9", "--seconds", 1) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(("token", "told"), [([], "wants a token"), (["--token", "x"], "does not know this token")])
def test_who_does_not_know_the_token_is_told_at_once(token, told, tmp_path, capsys):
    with serving(engine=FAST, token="hush") as served:
        began, out = time.monotonic(), tmp_path / "load.json"
        assert run(served.url, "--sessions", 3, "--seconds", 40, "--out", out, *token) == 2
        said = capsys.readouterr()
        assert said.err == f"error: {served.url} {told}: give the right one by --token\n"
        assert time.monotonic() - began < 20 and "viewers" not in said.out and not out.exists()
        assert run(served.url, "--sessions", 2, "--seconds", 1.5, "--ramp", 0, "--token", "hush") == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing(tmp_path, how):
    out = tmp_path / "load.json"
    command = [sys.executable, "-m", "forcing", "load", "--sessions", "2", "--seconds", "60", "--out", str(out)]
    command = ["env", "--default-signal=INT", *command]  # which a shell's background ignores
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and "a server of our own" in process.stdout.readline()
    until(lambda: len(local._family(process.pid)) > 2)
    time.sleep(1.0)
    family = [number for number, _, _ in local._family(process.pid)]
    os.killpg(process.pid, how)  # as a terminal does
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said, said
    until(lambda: not any(Path(f"/proc/{number}").exists() for number in family))
    assert not [*tmp_path.iterdir()]
