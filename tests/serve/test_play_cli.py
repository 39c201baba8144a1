"""`forcing play` says what cannot be before it listens, and why it ended; sessions of Wan can be made again."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import httpx
import pytest
from PIL import Image
from rich.console import Console
from serve_toys import Viewer, serving, socket, ticket, until

from forcing import cli, fixture
from forcing import world as worlds_of
from forcing.cli import home, models, play, setting
from forcing.serve.options import MOST_FPS
from forcing.world import World

SHIPPED = home.SHIPPED


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Runs with something wrong, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("format", "half", "wan"):
        shutil.copytree(SHIPPED / "dmd-2step", folder / name / "dmd-2step")
    world = folder / "format/dmd-2step/world.json"
    world.write_text(json.dumps(json.loads(world.read_text()) | {"format": 99}))
    (folder / "half/dmd-2step/model.safetensors").unlink()
    for name in ("wan-ar", "wan-dmd-2step"):
        shutil.copytree(SHIPPED / "dmd-2step", folder / "wan" / name / "world")
    shutil.rmtree(folder / "wan/dmd-2step")
    for name in ("base", "wan-base"):
        shutil.copytree(SHIPPED / "base", folder / "bases" / name / "world")
    shutil.copytree(folder / "bases", folder / "odd")
    shutil.copytree(SHIPPED / "dmd-2step", folder / "odd/strong/world")
    for name, harm in (("torn", "{"), ("list", "[]"), ("bare", '{"format": 1}')):
        shutil.copytree(SHIPPED / "dmd-2step", folder / name)
        (folder / name / "world.json").write_text(harm)
    large(folder, "large")
    shutil.copytree(folder / "large", folder / "lost")
    told = json.loads((folder / "lost/world.json").read_text()) | {"pipeline": str(folder / "gone")}
    (folder / "lost/world.json").write_text(json.dumps(told))
    return folder


def large(folder, name):
    """What can be seen of a world of Wan's before it is loaded; its VAE covers 4 pixels, patches 2 of its latents."""
    shutil.copytree(SHIPPED / "dmd-2step", folder / name)
    (folder / name / "codec.safetensors").unlink()
    (folder / name / "model.safetensors").write_bytes(b"")
    path = folder / name / "world.json"
    told = json.loads(path.read_text()) | {"pipeline": str(folder / "pipeline"), "frame": [64, 96]}
    del told["prompts"], told["keys"]
    told["recipe"] |= {"name": "wan-dmd-2step", "backbone": {"kind": "WanConfig", "patch": [1, 2, 2]}}
    path.write_text(json.dumps(told))
    (folder / "pipeline/vae").mkdir(parents=True)
    (folder / "pipeline/vae/config.json").write_text('{"scale_factor_spatial": 4}')


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("--batch 0", "batch is 0"),
        ("--threads -2", "threads is -2"),
        ("--sessions 0", "sessions is 0"),
        ("--engines 0", "engines is 0"),
        ("--queue -1", "queue is -1"),
        ("--port 70000", "port is 70000"),
        ("--fps 0", "fps is 0"),
        ("--fps 500", f"at most {MOST_FPS}"),
        ("--fps nan", "fps is nan"),
        ("--device cuda:x", "device is 'cuda:x': choose from auto, cpu, cuda"),
        ("--device mps", "device is 'mps'"),
        ("--size 96x64", "--size is for Wan"),
        ("--recipe base", "base is bidirectional and does not stream: choose from dmd-2step"),
        ("--recipe other", "choose from"),
        ("--token=", "--token is empty"),
        ("--origin https://example.org/x", "without a path"),
        ("--origin example.org", "origin is 'example.org'"),
        ("--origin *", "origin is '*'"),
        ("--origin https://example.org?a", "origin is 'https://example.org?a'"),
        ("--origin https://me@example.org", "origin is 'https://me@example.org'"),
        ("--origin https://Example.org", "origin is 'https://Example.org'"),
        ("--origin https://example.org:443", "origin is 'https://example.org:443'"),
        ("--origin http://[::1", "origin is 'http://[::1'"),
        ("--origin ftp://example.org", "origin is 'ftp://example.org'"),
        ("--workers 3 1", "workers are 3 to 1"),
        ("--workers 1 2", "--workers and --gpus are for --ray"),
        ("--gpus -1", "gpus is -1"),
        ("RUNS/none", "there is no world in"),
        ("RUNS/format", "has format 99"),
        ("RUNS/half", "model.safetensors missing"),
        ("RUNS/torn", "is damaged: world.json is not readable"),
        ("RUNS/list", "is damaged: world.json is not readable"),
        ("RUNS/bare", "is damaged: world.json says not what it should (KeyError: 'recipe')"),
        ("RUNS/bases", "has only base, wan-base: a bidirectional model does not stream"),
        ("RUNS/bases/base/world", "is bidirectional: it makes clips at once and does not stream"),
        ("RUNS/wan --recipe dmd-2step", "choose from wan-ar, wan-dmd-2step"),
        ("RUNS/odd/strong/world --recipe ar", "--recipe is for a run's folder"),
        ("RUNS/large --size 0x0", "size is 0x0: the width must be a multiple of 8 pixels, the height of 8"),
        ("RUNS/large --size 97x63", "size is 97x63"),
        ("RUNS/large --size 96x60", "size is 96x60"),
        ("RUNS/lost", "gone: there is no"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(args, told, worlds, capsys):
    asked = [each.replace("RUNS", str(worlds)) for each in args.split()]
    assert cli.main(["play", "--no-browser", *asked]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and told in said.err and said.err.count("\n") == 1, said.err
    assert " is on http" not in said.out


def test_what_only_the_engine_can_know_ends_the_server(worlds, capfd, tmp_path):
    shutil.copytree(SHIPPED / "dmd-2step", tmp_path / "dmd-2step")
    weights = tmp_path / "dmd-2step/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert cli.main(["play", "--no-browser", "--port", "0", str(tmp_path)]) == 2
    said = capfd.readouterr()
    assert "error: the world cannot be served: " in said.err and "Traceback" not in said.err


def test_a_run_of_wan_is_found(worlds):
    assert home.find(worlds / "wan").path == worlds / "wan/wan-dmd-2step/world"


def test_an_empty_token_of_the_environment_is_no_token(monkeypatch):
    monkeypatch.setenv(play.TOKEN, " ")
    with pytest.raises(ValueError, match="FORCING_TOKEN is empty"):
        play.secret(None)
    monkeypatch.setenv(play.TOKEN, "hush")
    assert (play.secret(None), play.secret("more")) == ("hush", "more")
    monkeypatch.delenv(play.TOKEN)
    assert play.secret(None) is None


def test_a_run_with_names_of_its_own_is_found(worlds):
    assert home.find(worlds / "odd").path == worlds / "odd/strong/world"
    assert home.find(worlds / "odd/strong/world").name == "dmd-2step"


@pytest.mark.parametrize("name", home.STUDENTS)
def test_students_of_wan_are_found_like_the_others(name, tmp_path):
    for here in home.FAVOURITES[home.FAVOURITES.index(f"wan-{name}") :]:
        shutil.copytree(SHIPPED / "dmd-2step", tmp_path / here / "world")
    assert home.find(tmp_path).path == tmp_path / f"wan-{name}" / "world"


def test_a_size_that_can_be_is_told_to_the_engine(worlds):
    told = play.engine_of(home.find(worlds / "large"), play.Options(size="96x64"))
    assert (told["frame"], told["fps"], told["reality"]) == ((64, 96), 16.0, "")


def test_what_is_said_twice_is_the_same():
    """For the gateway does without torch."""
    assert (home.FORMAT, home.FILES, home.SHIPPED) == (worlds_of.FORMAT, worlds_of.FILES, setting.SHIPPED)
    code = "import sys, forcing.cli.play; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("told", ["https://example.org", "http://192.168.1.5:8000", "http://[::1]:8000"])
def test_origins_as_browsers_say_them(told):
    assert play.origin(told) == told


def test_help_reads_right(capsys):
    assert cli.main(["play", "--help"]) == 0
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "[OPTIONS] [RUN]" in said and "--no-browser say the address, and open no browser" in said
    assert "(default: True)" not in said
    assert "While others wait, a session ends after 10 minutes without a control, or after an hour." in said
    for command, shown in (("load", "[OPTIONS] [URL]"), ("recipes", "[NAME]")):
        assert cli.main([command, "--help"]) == 0 and shown in capsys.readouterr().out


def says(capsys, *, rest, guidance):
    """What is said when a world of so many levels listens."""
    world = replace(home.Home.read(SHIPPED / "dmd-2step"), name="ar", passes=home.passes(rest, guidance))
    play.Says(Console(soft_wrap=True), world, 10.0, True).listening("http://localhost")
    return capsys.readouterr().out.splitlines()[1:]


def test_a_model_of_many_passes_is_said_to_be_slow(capsys):
    slow = "ar needs 64 passes a frame: expect fewer pictures a second than 10"
    assert says(capsys, rest=[1.0] * 32, guidance=1.25) == [slow]
    assert says(capsys, rest=[1.0] * 4, guidance=1.0) == []
    assert says(capsys, rest=[1.0] * 5, guidance=1.0) == [slow.replace("64", "5")]
    assert home.Home.read(SHIPPED / "dmd-2step").passes == 2


def test_who_is_told_of_the_end(capsys):
    say = play.Says(Console(soft_wrap=True), home.Home.read(SHIPPED / "dmd-2step"), 10.0, True)
    for viewers in (0, 1, 3):
        say.leaving(viewers, 10.0)
    rest = "told, at most 10 s; Ctrl-C again stops at once"
    said = ["stopping", f"stopping: 1 viewer is {rest}", f"stopping: 3 viewers are {rest}"]
    assert capsys.readouterr().out.splitlines() == said


class Watcher(Viewer):
    """Looks at real pictures."""

    async def _seen(self, picture):
        self.pictures.append(picture)
        return picture, picture

    async def watch(self, token, chunks, **begin):
        await self.say("hello", ticket=token)
        await self.until("ready")
        await self.say("begin", **begin)
        await self.until("state", state="starting", generation=1)
        await self.say("grant", chunks=chunks)


class Elsewhere:
    """A server in a process of its own."""

    def __init__(self, url):
        self.url, self.ws = url, url.replace("http", "ws") + "/ws"


def test_told_twice_it_stops_at_once(capfd):
    command = [sys.executable, "-m", "forcing", "play", "--no-browser", "--port", "0", "--threads", "1"]
    command = ["env", "--default-signal=INT", *command]  # which a shell's background ignores
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        served = Elsewhere(re.search(r"http://\S+", process.stdout.readline())[0])

        async def interrupted():
            async with socket(served) as line:
                await Watcher(line, 0).watch(await ticket(served), 2, prompt="four rooms", seed=1)
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                told = await asyncio.to_thread(process.stdout.readline)
                os.killpg(process.pid, signal.SIGINT)
                return told

        try:
            until(lambda: httpx.get(f"{served.url}/readyz").status_code == 200)
            told = asyncio.run(interrupted())
            began = time.monotonic()
            rest, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert told == "stopping: 1 viewer is told, at most 10 s; Ctrl-C again stops at once\n"
    assert (process.returncode, rest) == (0, "stopped\n") and time.monotonic() - began < 8
    assert "again" not in capfd.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_is_no_stopped_training(late, monkeypatch, capsys):
    def interrupted(_options, _target, said, leaving):
        if late:
            said("http://localhost")
            leaving(1, 10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr("forcing.serve.gateway.run", interrupted)
    assert cli.main(["play", "--no-browser"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "stopped" and not said.err


def test_a_session_of_wan_is_made_again(tmp_path, monkeypatch, capsys):
    """With the world and the size that its log names."""
    monkeypatch.setenv("FORCING_CACHE", str(tmp_path / "cache"))
    fixture.fixture(tmp_path / "pipeline")
    made = models.opened(tmp_path / "pipeline", recipe="wan-dmd-2step", frames=3)
    World(made.model, replace(models.kit_of(made), frame=(64, 96)), made.recipe).save(
        tmp_path / "run/wan-dmd-2step/world"
    )
    told = play.engine_of(home.find(tmp_path / "run"), play.Options(size="48x32", fps=100.0))

    async def watched(served):
        async with socket(served) as line:
            one = Watcher(line, 0)
            await one.watch(await ticket(served), 3, prompt="a ball", seed=1)
            await one.look(9)
            await one.say("bye")
            await one.closed()

    with serving(play.engine, engine=told, logs=tmp_path / "logs") as served:
        asyncio.run(asyncio.wait_for(watched(served), 60))
        until(lambda: [*(tmp_path / "logs").glob("*.jsonl")])
    (log,) = (tmp_path / "logs").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["engine"]["told"]["frame"] == [32, 48]

    def again(*more, **changes):
        lines[0]["engine"]["told"] |= changes
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code = cli.main(["replay", str(log), *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = again("--out", str(tmp_path / "film.gif"))
    assert code == 0 and "9 pictures of 48x32 in 3 chunks" in said
    assert "all 3 chunks are as they were shown, to the bit" in said
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 9
    assert "9 pictures of 96x64" in again(frame=None)[1]
    assert "9 pictures of 48x32" in again("--size", "48x32")[1]
    code, said = again(frame="x")
    assert code == 2 and f"error: {log} is damaged: what its engine was told cannot be (Expected `array | null`" in said
