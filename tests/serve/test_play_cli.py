"""`forcing play` says what cannot be before it listens, and why it ended."""

import json
import shutil

import pytest

from forcing import cli
from forcing.cli import home, play

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
    return folder


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
        ("--fps 500", "at most 120"),
        ("--device mps", "device is 'mps'"),
        ("--size 96x64", "--size is for Wan"),
        ("--recipe base", "base is bidirectional"),
        ("--recipe other", "choose from"),
        ("--token=", "--token is empty"),
        ("--origin https://example.org/x", "without a path"),
        ("--origin example.org", "origin is 'example.org'"),
        ("--workers 3 1", "workers are 3 to 1"),
        ("--workers 1 2", "--workers and --gpus are for --ray"),
        ("--gpus -1", "gpus is -1"),
        ("RUNS/none", "there is no world in"),
        ("RUNS/format", "has format 99"),
        ("RUNS/half", "model.safetensors missing"),
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
