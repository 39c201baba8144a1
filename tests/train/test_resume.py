"""A run that was stopped, in whatever way, ends exactly where it would have ended."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import contents, shrunk, silent, starts, toy_material

from forcing.data.clips import Sampler
from forcing.train import checkpoint, run
from forcing.train.run import Interrupted, train

STAGES = ["base", "ar", "df", "cd", "dmd-2step", "plain critic"]


@pytest.fixture(scope="module")
def data():
    return toy_material()


@pytest.fixture
def stop(monkeypatch):
    """stop(step, signal): the signal comes in the middle of that step, counted from 1; stop(None) takes it back."""
    original = Sampler.batch_at

    def arm(step, number=signal.SIGTERM):
        def batch_at(self, at, update):
            if step is not None and at == step - 1 and update == 0:
                os.kill(os.getpid(), number)
            return original(self, at, update)

        monkeypatch.setattr(Sampler, "batch_at", batch_at)

    return arm


def tiny(name, data):
    """The recipe `name`; "plain critic" is DMD whose critic has no average."""
    if name != "plain critic":
        return shrunk(name, data)
    roles = shrunk("dmd-2step", data).roles
    return shrunk("dmd-2step", data, roles={**roles, "critic": replace(roles["critic"], ema=None)})


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("name", STAGES)
def test_3_and_3_resumed_steps_are_6(data, tmp_path, stop, name):
    recipe, beginnings = tiny(name, data), starts(data)
    train(recipe, tmp_path / "whole", beginnings, data, silent())
    stop(3)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "halves", beginnings, data, silent())
    assert steps(tmp_path / "halves") == ["step-00000003"] and not (tmp_path / "halves" / "world").exists()
    stop(None)
    console = silent()
    train(recipe, tmp_path / "halves", beginnings, data, console)
    assert f"{recipe.name}: continuing from step 3 of 6" in console.file.getvalue()

    whole, halves = contents(tmp_path / "whole"), contents(tmp_path / "halves")
    del halves["checkpoints/step-00000003/state.json"]
    halves = {name: file for name, file in halves.items() if "step-00000003" not in name}
    assert whole.keys() == halves.keys()
    assert [name for name in whole if whole[name] != halves[name]] == []
    assert [json.loads(line)["step"] for line in whole["metrics.jsonl"].splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_line_of_the_journal_may_begin_before_the_stop_and_end_after_it(data, tmp_path, stop, step):
    # the student of DMD is updated every other step, and a line tells the newest that is known of each role
    recipe = shrunk("dmd-2step", data, log=3)
    train(recipe, tmp_path / "whole", starts(data), data, silent())
    stop(step)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "halves", starts(data), data, silent())
    stop(None)
    train(recipe, tmp_path / "halves", starts(data), data, silent())
    whole, halves = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves"))
    assert whole == halves
    assert all({"student/loss", "critic/loss"} <= json.loads(line).keys() for line in whole.splitlines())


@pytest.mark.parametrize("name", STAGES)
def test_a_checkpoint_holds_all_that_moved(data, tmp_path, name):
    recipe = tiny(name, data)
    train(recipe, tmp_path, starts(data), data, silent())
    path = checkpoint.latest(tmp_path / "checkpoints")
    models, moments = load_file(path / "models.safetensors"), load_file(path / "optimizers.safetensors")
    trained = [role for role, how in recipe.roles.items() if how.optim is not None]
    averaged = {f"{role}_ema" for role, how in recipe.roles.items() if how.ema is not None}
    assert {key.split("/")[0] for key in models} == {*trained, *averaged} >= {"student_ema"}
    count = len(list(recipe.backbone.build().parameters()))
    for role in trained:
        entries = [key.split("/") for key in moments if key.startswith(role + "/")]
        kept = {(index, parameter) for _, index, parameter, _ in entries}
        assert len(kept) == count and {key for *_, key in entries} >= {"exp_avg", "exp_avg_sq", "momentum_buffer"}
    assert any(value.abs().max() > 0 for value in moments.values())
    assert any(not torch.equal(models[key], models["student_ema" + key[7:]]) for key in models if key[:8] == "student/")


@pytest.mark.parametrize("name", ["base", "ar", "df", "cd", "dmd-2step"])
def test_a_killed_run_continues_exactly(data, tmp_path, name):
    """SIGKILL, at no particular moment after some checkpoint."""
    length, save = 24, 2
    recipe = shrunk(name, data, steps=length, save=save)
    train(recipe, tmp_path / "whole", starts(data), data, silent())

    script, folder = Path(__file__).parents[1] / "toys.py", tmp_path / "killed"
    command = [sys.executable, script, folder, name, str(length), str(save), "0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as victim:
        try:
            while victim.poll() is None and not (folder / "checkpoints" / "step-00000006").exists():
                time.sleep(0.005)
        finally:
            victim.kill()
        errors = victim.stderr.read().decode()
    assert victim.returncode == -signal.SIGKILL, errors
    assert not (folder / "world").exists()

    console = silent()
    train(recipe, folder, starts(data), data, console)
    assert f"{name}: continuing from step" in console.file.getvalue()
    whole, killed = contents(tmp_path / "whole"), contents(folder)
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_all_of_it_saved(data, tmp_path, stop, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop(4, number)
    recipe = shrunk("ar", data, save=100)
    with pytest.raises(Interrupted, match=rf"{number.name}: ar stopped at step 4 of 6.*{tmp_path}.*same command"):
        train(recipe, tmp_path, starts(data), data, silent())
    assert steps(tmp_path) == ["step-00000004"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_signal_in_the_last_step_comes_too_late_to_matter(data, tmp_path, stop):
    stop(6)
    world = train(shrunk("ar", data), tmp_path, starts(data), data, silent())
    assert (tmp_path / "world").exists() and world.recipe.name == "ar" and steps(tmp_path) == ["step-00000006"]


def test_a_second_signal_does_not_wait(data, tmp_path, monkeypatch):
    original = Sampler.batch_at

    def batch_at(self, at, update):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, at, update)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Sampler, "batch_at", batch_at)
    with pytest.raises(KeyboardInterrupt):
        train(shrunk("ar", data), tmp_path, starts(data), data, silent())
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("reads", range(8))
def test_whenever_the_signal_comes_the_step_it_stops_at_is_saved(data, tmp_path, monkeypatch, reads):
    class Late(run.Interrupt):
        """The signal comes after `asked` has been read so many times."""

        count = 0

        @property
        def asked(self):
            self.count += 1
            return "SIGTERM" if self.count > reads else None

        @asked.setter
        def asked(self, value):
            pass

    monkeypatch.setattr(run, "Interrupt", Late)
    try:
        train(shrunk("ar", data), tmp_path, starts(data), data, silent())
    except Interrupted as error:
        stopped = int(str(error).split("stopped at step ")[1].split()[0])
        assert steps(tmp_path) == [f"step-{stopped:08d}"]
    else:
        assert steps(tmp_path) == ["step-00000006"]
