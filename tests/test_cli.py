"""The command line, as its users meet it: what it answers, what it refuses and how, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from toys import FRAMES, shaken, shrunk, toy_material, toy_world

from forcing import flow, media
from forcing.actions.keys import Keys
from forcing.backbones.tiny import TinyConfig
from forcing.cli import COMMANDS, main, script, setting, take
from forcing.cli import demo as demonstration
from forcing.cli import eval as evaluation
from forcing.data.shards import Recording
from forcing.envs.gym import Record
from forcing.eval.measure import Measure
from forcing.recipe import Gate
from forcing.recipes import rooms
from forcing.rollout import Plan
from forcing.train.log import Meter
from forcing.world import World

SMALL = Record("rooms", 480, 0, 39)


def ask(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `forcing argv`."""
    code = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- help


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from forcing.cli import main; assert main(['--help']) == 0;"
        "heavy = {'torch', 'numpy', 'gymnasium', 'PIL', 'tyro', 'av'} & set(sys.modules); print(sorted(heavy))"
    )
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - began)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert best < 0.5


def test_help_version_and_nothing(capsys):
    for argv in ([], ["-h"], ["--help"], ["help"]):
        code, out, _ = ask(capsys, *argv)
        assert code == 0 and "usage: forcing COMMAND" in out
    code, out, _ = ask(capsys, "--version")
    assert code == 0 and re.fullmatch(r"forcing \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    code, out, err = ask(capsys, command, "--help")
    assert code == 0 and f"usage: forcing {command}" in out and not err


def test_the_installed_command_runs():
    done = subprocess.run([sys.executable, "-m", "forcing", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "'trian'" in done.stderr and "Did you mean 'train'" in done.stderr


def test_what_the_example_leaves_is_not_of_the_repository():
    root = Path(__file__).parents[1]
    named = re.search(r'Path\("([^"]+\.gif)"\)', (root / "examples/stream.py").read_text())
    asked = subprocess.run(["git", "-C", root, "check-ignore", "-q", named[1]], capture_output=True)
    if asked.returncode == 128:
        pytest.skip("not a repository")
    assert asked.returncode == 0, named[1]


# ---- recipes


def test_recipes_lists_and_prints(capsys):
    code, out, _ = ask(capsys, "recipes")
    assert code == 0 and all(name in out for name in rooms.recipes())
    code, out, _ = ask(capsys, "recipes", "cd", "--chunk", "3", "--scale", "demo")
    assert code == 0 and json.loads(out)["stage"]["chunk"] == 3


def test_train_help_shows_the_recipes_own_fields(capsys):
    code, out, _ = ask(capsys, "train", "dmd-2step", "--help")
    assert code == 0 and "--stage.guidance" in out and "--roles.critic.optim.lr" in out
    code, out, _ = ask(capsys, "train", "ar", "--help", "--scale", "demo")
    assert code == 0 and "--stage.guidance" not in out and f"(default: {rooms.LENGTHS['demo'].ar})" in out


# ---- what cannot be


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with worlds of random weights."""
    folder, data = tmp_path_factory.mktemp("run"), toy_material()
    for seed, name in enumerate(("base", "ar", "dmd-2step")):
        toy_world(data, name, seed).save(folder / name / "world")
    recipe = replace(shrunk("ar", data, chunk=2), name="pairs")
    model = shaken(recipe.backbone.build(), 7).eval()
    World(model, data.kit, recipe).save(folder / "pairs" / "world")
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory, request) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "rooms"
    assert main(["record", "rooms", "--out", str(folder), "--frames", "60", "--episode", "19"]) == 0
    return folder


REFUSED = [
    (["nothing"], ["'nothing'", "demo, record, train"]),
    (["recipes", "dmd-9step"], ["'dmd-9step'", "base, ar, cd", "Did you mean 'dmd-4step'"]),
    (["recipes", "--scale", "huge"], ["huge", "demo", "full"]),
    (["recipes", "--chunk", "5"], ["chunk", "divide 12", "5"]),
    (["train", "dmd"], ["'dmd'", "dmd-2step"]),
    (["train", "--run", "x", "ar"], ["the recipe comes first", "base, ar"]),
    (["train", "ar", "--stage.guidance", "5"], ["--stage.guidance"]),
    (["train", "ar", "--batch", "0", "--run", "TMP"], ["batch", "at least 1", "0"]),
    (["train", "ar", "--clip", "-1", "--run", "TMP"], ["clip", "positive", "-1"]),
    (["train", "ar", "--roles.student.optim.lr", "nan", "--run", "TMP"], ["positive", "lr nan"]),
    (["train", "ar", "--roles.student.optim.adam-lr", "inf", "--run", "TMP"], ["positive", "adam_lr inf"]),
    (["train", "ar", "--roles.student.optim.weight-decay", "nan", "--run", "TMP"], ["weight_decay", "at least 0"]),
    (["train", "ar", "--roles.student.optim.betas", "1", "0.9", "--run", "TMP"], ["betas", "[0, 1)", "(1.0, 0.9)"]),
    (["train", "ar", "--sampling.window", "0", "--run", "TMP"], ["window is 0", "chunk of 1"]),
    (["train", "ar", "--stage.chunk", "5", "--run", "TMP"], ["stage.chunk is 5", "sampling.chunk 1", "the same"]),
    (["train", "cd", "--stage.steps", "0", "--run", "TMP"], ["steps", "at least 1", "0"]),
    (["train", "cd", "--stage.shift", "-1", "--run", "TMP"], ["shift", "positive", "-1"]),
    (
        ["train", "dmd-2step", "--stage.plan.rest", "1", "0.25", "--run", "TMP"],
        ["stage.plan visits (1.0, 0.25)", "sampling.plan", "trained"],
    ),
    (["train", "ar", "--name", "a/b", "--run", "TMP"], ["'a/b'", "folder within the run"]),
    (["train", "ar", "--recording", "TMP", "--run", "TMP"], ["TMP", "rooms", "forcing record"]),
    (["pipeline", "roms"], ["'roms'", "Did you mean 'rooms'"]),
    (["pipeline", "--run", "TMP", "--scale", "tiny"], ["tiny", "demo", "full"]),
    (["pipeline", "--run", "TMP", "--chunk", "7"], ["7", "12"]),
    (["pipeline", "--run", "TMP", "--only", "dd"], ["'dd'", "base, ar"]),
    (["pipeline", "RECORDING", "--run", "TMP", "--chunk", "0"], ["0", "12"]),
    (["record", "roms", "--out", "TMP/r", "--frames", "9"], ["'roms'", "rooms"]),
    (["record", "rooms", "--frames", "9"], ["--out"]),
    (["record", "rooms", "--out", "RECORDING", "--frames", "9"], ["different recording", "frames 60, not 9"]),
    (["record", "rooms", "--out", "TMP/r", "--frames", "0"], ["frames is 0", "at least 1"]),
    (["record", "rooms", "--out", "TMP/r", "--frames", "9", "--holdout", "0.7"], ["0.7", "0..0.5"]),
    (["record", "rooms", "--out", "TMP/r", "--frames", "9", "--hold", "1"], ["hold is 1", "below 1"]),
    (["train", "cd", "--run", "TMP/none"], ["ar must be trained first", "TMP/none/ar"]),
    (["generate", "--run", "RUN", "--at", "3", "day", "--at", "3", "night"], ["--at", "twice", "3"]),
    (["report", "TMP"], ["TMP", "not a run", "run.json"]),
    (["generate", "--run", "RUN", "--frames", "100000000000000000000", "--free"], ["frames is 1000", "1 to 1000000"]),
    (["eval"], ["forcing eval RUN"]),
    (["eval", "TMP/none"], ["TMP/none", "not a folder"]),
    (["eval", "TMP"], ["TMP/recording", "--recording"]),
    (["report", "TMP/none"], ["TMP/none", "not a folder"]),
    (["demo", "--run", "RUN/ar/world/world.json/x"], ["world.json"]),
    (["generate", "--world", "TMP"], ["TMP is not a world", "model.safetensors"]),
    (["generate", "--run", "TMP"], ["TMP holds no trained worlds", "--world DIR"]),
    (["generate"], ["holds no trained worlds", "--run DIR"]),
    (["generate", "--run", "RUN", "--recipe", "dmd"], ["'dmd'", "ar, base, dmd-2step"]),
    (["generate", "--run", "RUN", "--world", "TMP"], ["--world", "--run"]),
    (["generate", "--run", "RUN", "--prompt", "dya"], ["'dya'", "knows day, night", "Did you mean 'day'"]),
    (["generate", "--run", "RUN", "--at", "2", "noon"], ["'noon'", "knows day, night"]),
    (["generate", "--run", "RUN", "--at", "99", "day"], ["99", "before 64"]),
    (["generate", "--run", "RUN", "--at", "two", "day"], ["--at 'two': say the number of a frame and a prompt"]),
    (["generate", "--image", "x.png", "--prompt", "day"], ["error: --image is for clips of Wan: give --model PATH"]),
    (["generate", "--run", "RUN", "--guidance=3"], ["error: --guidance is for clips of Wan: give --model PATH"]),
    (["generate", "--model", "x", "--solver", "best"], ["error: solver is 'best': choose from euler, unipc;"]),
    (["load", "--sessions", "few"], ["error: --sessions: 'few' is not a whole number;"]),
    (["load", "--seconds", "few"], ["error: --seconds: 'few' is not a number;"]),
    (["play", "--fps", "few"], ["error: --fps: 'few' is not a number;"]),
    (["play", "--workers", "a", "b"], ["error: --workers: 'a', 'b' are not what it takes;"]),
    (["generate", "--run", "RUN", "--actions", "left, jump"], ["'jump'", "left, right, wait"]),
    (["generate", "--run", "RUN", "--actions", "left*"], ["'left*'", "whole number"]),
    (["generate", "--run", "RUN", "--actions", "left*-1"], ["'left*-1'", "whole number"]),
    (["generate", "--run", "RUN", "--actions", " ,"], ["0 keys", "left, right, wait"]),
    (["generate", "--run", "RUN", "--actions", "left*9", "--frames", "4"], ["9 keys", "only 3", "--frames"]),
    (["generate", "--run", "RUN", "--actions", "left", "--free"], ["--actions and --free"]),
    (["generate", "--run", "RUN", "--policy", "best"], ["error: policy is 'best': choose from random;"]),
    (["generate", "--run", "RUN", "--frames", "0"], ["frames is 0"]),
    (["generate", "--run", "RUN", "--frames", "many"], ["error: --frames: 'many' is not a whole number;"]),
    (["generate", "--run", "RUN", "--recipe", "pairs", "--frames", "5"], ["frames is 5", "multiple of 2"]),
    (["generate", "--run", "RUN", "--recipe", "pairs", "--at", "3", "day"], ["--at 3", "multiples of 2"]),
    (["generate", "--run", "RUN", "--recipe", "base", "--frames", "8"], ["bidirectional", "--frames 4"]),
    (["generate", "--run", "RUN", "--steps", "0"], ["steps is 0", "1 to 1000"]),
    (["generate", "--run", "RUN", "--seed", "-1"], ["seed is -1", "0 or more"]),
    (["generate", "--run", "RUN", "--out", "TMP/clip.avi"], ["'.avi'", ".mp4, .gif, .png"]),
    (["generate", "--run", "RUN", "--out", "TMP"], ["TMP", ".mp4, .gif, .png"]),
    (["generate", "--run", "RUN", "--fps", "0"], ["fps is 0", "240"]),
    (["generate", "--run", "RUN", "--scale", "99"], ["scale is 99", "1 to 64"]),
    (["generate", "--run", "RUN", "--show-keys"], ["--show-keys", "--actions"]),
    (["generate", "--run", "RUN", "--start", "TMP/none.png"], ["TMP/none.png"]),
    (["generate", "--run", "RUN", "--start", "RUN/ar/world/world.json"], ["world.json", "not an image"]),
    (["generate", "--run", "RUN", "--start", "TMP/wide.png"], ["TMP/wide.png is 24x16", "16x16"]),
    (["generate", "--from", "TMP/none.json"], ["TMP/none.json"]),
    (["generate", "--run", "RUN", "--out", "/proc/a.gif"], ["error: /proc/a.gif: "]),
    (["eval", "--quik"], ["--quik", "did you mean --quick?"]),
    (["record", "rooms"], ["--out", "--frames", "forcing record --help"]),
    (["generate", "--from", "RUN/ar/world/world.json"], ["world.json", "not the JSON file"]),
]


@pytest.mark.parametrize(("argv", "named"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_what_cannot_be_is_said_in_a_line(argv, named, run, recording, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setting, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (24, 16)).save(tmp_path / "wide.png")
    places = {"TMP": str(tmp_path), "RUN": str(run), "RECORDING": str(recording)}

    def put(text: str) -> str:
        return re.sub("TMP|RUN|RECORDING", lambda found: places[found[0]], text) if text != "forcing eval RUN" else text

    code, out, err = ask(capsys, *map(put, argv))
    assert code == 2, out + err
    assert err.startswith("error: ") and err.count("\n") == 1
    for text in named:
        assert put(text) in err
    assert "Traceback" not in out + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.png"], "something was left behind"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(*_):
        np.zeros(3).reshape(2, 2)

    monkeypatch.setattr(rooms, "recipes", broken)
    with pytest.raises(ValueError, match="reshape"):
        main(["recipes"])


class OutOfMemoryError(RuntimeError):
    """Called as torch's for a GPU."""


@pytest.mark.parametrize(
    ("fail", "asked"),
    [
        (lambda: torch.empty(10**15), r"4000000000000000 bytes"),
        (lambda: np.empty(10**15, np.uint8), r"\d+ TiB"),
        (
            lambda: (_ for _ in ()).throw(
                OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has")
            ),
            "20.50 GiB",
        ),
    ],
)
def test_too_little_memory_is_said_in_a_line(fail, asked, capsys, monkeypatch):
    monkeypatch.setattr(rooms, "recipes", lambda *_: next(iter(fail())))
    code, _, err = ask(capsys, "recipes")
    assert code == 1 and re.fullmatch(rf"error: not enough memory \({asked} at once\): try a smaller .*\n", err)


def test_a_damaged_world_is_named(run, tmp_path, capsys):
    World.load(run / "ar" / "world").save(tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").write_bytes(b"no weights")
    code, _, err = ask(capsys, "generate", "--world", tmp_path / "w")
    assert code == 2 and "damaged" in err and str(tmp_path / "w") in err


# ---- record


def test_record_says_what_it_recorded(recording, capsys):
    code, out, _ = ask(capsys, "record", "rooms", "--out", recording, "--frames", "60", "--episode", "19")
    assert code == 0 and "60 frames of 56x56 in 3 episodes" in out and "recorded before" in out
    assert "four rooms" in out and "forward" in out and str(recording) in out


def test_long_episodes_get_a_shard_that_holds_them(tmp_path, capsys):
    asked = ["--frames", "30", "--episode", "5000", "--hold", "0.25"]
    code, _, err = ask(capsys, "record", "rooms", "--out", tmp_path / "r", *asked)
    assert code == 0, err
    spec = Recording.open(tmp_path / "r").manifest["spec"]
    assert (spec["episode"], spec["shard"], spec["hold"]) == (5000, 5001, 0.25)
    assert ask(capsys, "record", "rooms", "--out", tmp_path / "s", "--frames", "30")[0] == 0
    assert Recording.open(tmp_path / "s").manifest["spec"] == asdict(Record("rooms", 30, 0, 80))


def test_a_stopped_recording_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("forcing.cli.bar.Bar.show", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = ask(capsys, "record", "rooms", "--out", tmp_path / "r", "--frames", "400", "--episode", "19")
    assert code == 130 and "run the same command" in err and list(tmp_path.iterdir()) == []


# ---- action scripts


def test_scripts():
    keys = Keys(("left", "right", "forward", "wait"))
    assert script.read("forward*3,left, r * 2  wait", keys) == (2, 2, 2, 0, 1, 1, 3)
    assert script.lasting((0, 1, 2), 7) == (0, 1, 2, 0, 1, 2, 0)
    walk = script.wander(keys, 200, 3, 0)
    assert set(walk) == {0, 1, 2, 3} and walk == script.wander(keys, 200, 3, 0) != script.wander(keys, 200, 3, 1)
    assert 0.5 < np.mean(np.diff(walk) == 0) < 0.9


# ---- generate


def frames_of(path: Path) -> np.ndarray:
    """What a file shows, one entry for each moment of a GIF's clock."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    with Image.open(path) as image:
        if path.suffix == ".png":
            return np.array(image.convert("RGB"))[None]
        parts = [(np.array(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
    unit = min(time for _, time in parts)
    return np.concatenate([np.repeat(frame[None], round(time / unit), 0) for frame, time in parts])


@pytest.mark.parametrize("suffix", media.FORMATS)
def test_a_clip_and_the_same_clip_again(suffix, run, tmp_path, capsys):
    first, second = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    told = ["--prompt", "night", "--at", 6, "day", "--actions", "left*2,r,w", "--frames", 10, "--seed", 3]
    look = ["--fps", 10, "--scale", 3, "--show-keys"]
    code, out, _ = ask(capsys, "generate", "--run", run, *told, *look, "--out", first)
    assert code == 0 and str(first) in out and "frames/s" in out and "the first after" in out
    beside = tmp_path / f"one{suffix}.json"
    assert json.loads(beside.read_text())["recipe"]["name"] == "dmd-2step"
    code, *_ = ask(capsys, "generate", "--from", beside, "--out", second)
    assert code == 0 and first.read_bytes() == second.read_bytes()
    shown = frames_of(first)
    assert shown.shape[1:] == ((64, 48, 3) if suffix != ".png" else shown.shape[1:])
    assert len(shown) == (10 if suffix != ".png" else 1)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}{suffix}{e}" for n in ("one", "two") for e in ("", ".json")
    }


def clip(capsys, run, tmp_path, *argv) -> np.ndarray:
    """The frames of one generated clip, exactly: from a sheet at scale 1."""
    out = tmp_path / "clip.png"
    code, _, err = ask(capsys, "generate", "--run", run, *argv, "--scale", "1", "--out", out)
    assert code == 0, err
    image, margin = frames_of(out)[0], 4
    rows, columns = ((side - margin) // (16 + margin) for side in image.shape[:2])
    cells = image[margin:, margin:].reshape(rows, 16 + margin, columns, 16 + margin, 3)[:, :16, :, :16]
    frames = json.loads((tmp_path / "clip.png.json").read_text())["take"]["frames"]
    return cells.swapaxes(1, 2).reshape(-1, 16, 16, 3)[:frames]


def test_prompts_and_keys_act_from_their_frame_on(run, tmp_path, capsys):
    plainly = clip(capsys, run, tmp_path, "--actions", "wait", "--frames", "8")
    assert (plainly == clip(capsys, run, tmp_path, "--actions", "wait*7", "--frames", "8")).all()
    unnamed = clip(capsys, run, tmp_path, "--actions", "wait", "--frames", "8", "--at", "4", "")
    switched = clip(capsys, run, tmp_path, "--actions", "wait", "--frames", "8", "--at", "4", "night")
    turned = clip(capsys, run, tmp_path, "--actions", "wait*4,left*3", "--frames", "8")
    assert (unnamed[4] != switched[4]).any()
    for changed, at in ((unnamed, 4), (switched, 4), (turned, 5)):
        assert (changed[:at] == plainly[:at]).all() and (changed[at] != plainly[at]).any()
    other = clip(capsys, run, tmp_path, "--actions", "wait", "--frames", "8", "--prompt", "night")
    free = clip(capsys, run, tmp_path, "--free", "--frames", "8")
    assert (other[0] != plainly[0]).any() and (free[0] == plainly[0]).all() and (free[1] != plainly[1]).any()


def test_a_clip_is_written_while_it_is_made(run, tmp_path, capsys, monkeypatch):
    # Each chunk's conditions are asked for only after the chunk before was handed over.
    order, cond, add = [], World.cond, media.Film.add
    monkeypatch.setattr(World, "cond", lambda *args: order.append("told") or cond(*args))
    monkeypatch.setattr(media.Film, "add", lambda self, frames: order.append("shown") or add(self, frames))
    assert ask(capsys, "generate", "--run", run, "--frames", "4", "--out", tmp_path / "a.mp4")[0] == 0
    assert order[-8:] == ["told", "shown"] * 4


def test_steps(run, tmp_path, capsys):
    calls = []
    for steps in (1, 2, 4, 9):
        assert (
            ask(capsys, "generate", "--run", run, "--frames", 8, "--steps", steps, "--out", tmp_path / "a.gif")[0] == 0
        )
        plan = json.loads((tmp_path / "a.gif.json").read_text())["take"]["sampling"]["plan"]
        calls.append((len(plan["rest"]), plan["first"] and len(plan["first"])))
    assert calls == [(1, 4), (2, 4), (4, None), (9, None)]


def planned(capsys, tmp_path, *argv) -> Plan:
    assert ask(capsys, "generate", *argv, "--frames", 4, "--out", tmp_path / "a.gif")[0] == 0
    return take.read(tmp_path / "a.gif.json")[0].sampling.plan


@pytest.mark.parametrize("steps", rooms.PLANS)
def test_steps_are_those_of_the_student_of_so_many(steps, run, tmp_path, capsys):
    plan = rooms.PLANS[steps]
    assert planned(capsys, tmp_path, "--run", run, "--recipe", "dmd-2step", "--steps", steps) == plan
    even = tuple(flow.grid(steps, rooms.SHIFT)[:-1].tolist())  # where a teacher cut to few steps does best
    seen = planned(capsys, tmp_path, "--run", run, "--recipe", "ar", "--steps", steps)
    assert seen.rest == even and not seen.fresh


def test_steps_without_a_student_are_even(run, tmp_path, capsys):
    even = tuple(flow.grid(3, rooms.SHIFT)[:-1].tolist())
    for name, fresh in (("dmd-2step", True), ("ar", False)):
        seen = planned(capsys, tmp_path, "--run", run, "--recipe", name, "--steps", 3)
        assert seen == Plan(even, rooms.FOUR, fresh)
    assert planned(capsys, tmp_path, "--run", run, "--recipe", "ar", "--steps", 5).first is None
    assert planned(capsys, tmp_path, "--run", run, "--recipe", "base", "--steps", 1) == Plan((1.0,), fresh=False)


@pytest.mark.parametrize("inside", ["world", ""])
def test_a_student_beside_a_world_says_which_levels(inside, run, tmp_path, capsys):
    odd = Plan((1.0, 0.3), first=(1.0, 0.6, 0.3))
    student = World.load(run / "dmd-2step" / "world")
    recipe = student.recipe
    agreed = {"stage": replace(recipe.stage, plan=odd), "sampling": replace(recipe.sampling, plan=odd)}
    replace(student, recipe=replace(recipe, **agreed)).save(tmp_path / "dmd-2step" / inside)
    student.save(tmp_path / "cd" / inside)
    assert planned(capsys, tmp_path, "--world", tmp_path / "cd" / inside, "--steps", 2) == odd


def test_several_clips_and_names_that_are_free(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = ["generate", "--world", run / "ar" / "world", "--prompt", "day", "--prompt", "night", "--frames", "3"]
    assert ask(capsys, *several)[0] == 0 and ask(capsys, *several)[0] == 0
    names = {"ar-day-0", "ar-day-0-take2"}
    made = {path.name for path in (tmp_path / "clips").iterdir()}
    assert made == {f"{n}-{i}.mp4" for n in names for i in (1, 2)} | {f"{n}.mp4.json" for n in names}
    first, second = (tmp_path / "clips" / f"ar-day-0-{i}.mp4" for i in (1, 2))
    assert first.read_bytes() != second.read_bytes()
    assert first.read_bytes() == (tmp_path / "clips" / "ar-day-0-take2-1.mp4").read_bytes()


def test_a_start_is_continued(run, tmp_path, capsys):
    before = clip(capsys, run, tmp_path, "--frames", "6", "--seed", "5")
    Image.fromarray(media.enlarge(before[0], 5)).save(tmp_path / "start.png")
    after = clip(capsys, run, tmp_path, "--frames", "6", "--start", tmp_path / "start.png", "--actions", "left")
    assert (after[0] == before[0]).all() and (after[1] != after[0]).any()
    (tmp_path / "start.png").unlink()  # the JSON file holds it
    assert ask(capsys, "generate", "--from", tmp_path / "clip.png.json", "--out", tmp_path / "again.png")[0] == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "clip.png").read_bytes()


def test_a_bidirectional_world_makes_one_clip(run, tmp_path, capsys):
    assert len(clip(capsys, run, tmp_path, "--recipe", "base")) == FRAMES
    assert len(clip(capsys, run, tmp_path, "--recipe", "pairs", "--actions", "left*4")) == 6


@pytest.mark.parametrize(
    ("place", "harm"),
    [
        ("look", 3),
        ("look", {}),
        ("look.files", []),
        ("look.fps", "fast"),
        ("look.colour", 1),
        ("world", []),
        ("world.path", 3),
        ("take.seed", 1.5),
        ("take.frames", "x"),
        ("take.start", ["%%%"]),
    ],
)
def test_a_damaged_clip_file_is_said_to_be_one(place, harm, run, tmp_path, capsys):
    out = tmp_path / "a.gif"
    assert ask(capsys, "generate", "--world", run / "ar" / "world", "--frames", "3", "--out", out)[0] == 0
    beside = tmp_path / "a.gif.json"
    document = json.loads(beside.read_text())
    *outer, last = place.split(".")
    (document[outer[0]] if outer else document)[last] = harm
    beside.write_text(json.dumps(document))
    code, said, err = ask(capsys, "generate", "--from", beside, "--out", tmp_path / "b.gif")
    assert code == 2 and "a.gif.json" in err and "Traceback" not in said + err
    assert not (tmp_path / "b.gif").exists()


def test_again_needs_the_world_that_made_it(run, tmp_path, capsys):
    out = tmp_path / "a.gif"
    assert ask(capsys, "generate", "--run", run, "--frames", "2", "--out", out)[0] == 0
    other = run / "ar" / "world"
    code, _, err = ask(capsys, "generate", "--from", f"{out}.json", "--world", other)
    assert code == 2 and str(other) in err and "weights differ" in err
    code, _, err = ask(capsys, "generate", "--from", f"{out}.json", "--seed", "4", "--free")
    assert code == 2 and "--free, --seed cannot be given" in err.replace("--seed, --free", "--free, --seed")


def test_the_shipped_world_is_the_default(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setting, "SHIPPED", tmp_path)
    World.load(run / "ar" / "world").save(tmp_path / "ar")
    World.load(run / "base" / "world").save(tmp_path / "base")
    code, out, _ = ask(capsys, "generate", "--frames", "2", "--out", tmp_path / "a.gif")
    assert code == 0 and out.startswith("ar: 2 frames")


def test_an_interrupted_clip_leaves_nothing(run, tmp_path, capsys, monkeypatch, request):
    # a shell that runs the tests in the background has them ignore Ctrl-C
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
    )
    add = media.Film.add
    monkeypatch.setattr(
        media.Film, "add", lambda self, frames: add(self, frames) or os.kill(os.getpid(), signal.SIGINT)
    )
    code, *_ = ask(capsys, "generate", "--run", run, "--out", tmp_path / "a.mp4")
    assert code == 130 and list(tmp_path.iterdir()) == []


# ---- pipeline


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Recipes of two steps, a recording of seconds, and nothing shipped."""
    real = rooms.recipes

    def recipes(facts=None, scale="full", chunk=1):
        facts = facts or rooms.Facts()
        sizes = {"dim": 16, "heads": 2, "layers": 1, "text_dim": facts.prompts, "action_dim": facts.keys}
        backbone = TinyConfig(facts.latents, patch=4, **sizes)
        fewer = {"steps": 2, "batch": 2, "save": 1, "log": 1, "gate": Gate()}
        return {name: replace(each, backbone=backbone, **fewer) for name, each in real(facts, scale, chunk).items()}

    monkeypatch.setattr(rooms, "recipes", recipes)
    monkeypatch.setattr(setting, "RECORDS", {"full": SMALL, "demo": replace(SMALL, frames=240)})
    monkeypatch.setattr(setting, "SHIPPED", tmp_path / "shipped")
    for name in ("GAUGE_CLIPS", "LIVE_CLIPS"):
        monkeypatch.setattr(f"forcing.train.material.{name}", 4)


def stop_at(monkeypatch, name: str, step: int, number: int) -> None:
    """Send ourselves a signal once that step of that recipe is shown."""
    show = Meter.show

    def late(self, done, note):
        show(self, done, note)
        if (self.name, done) == (name, step):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Meter, "show", late)


def test_pipeline_from_nothing_stopped_and_finished(small, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    asked = ["pipeline", "rooms", "--run", folder]
    with monkeypatch.context() as patch:
        stop_at(patch, "cd", 1, signal.SIGTERM)
        code, out, err = ask(capsys, *asked)
    assert code == 130 and "SIGTERM: cd stopped at step 1 of 2" in err and str(folder) in err
    assert "no base is shipped" in out and (folder / "ar" / "world").exists() and not (folder / "cd" / "world").exists()

    code, out, _ = ask(capsys, *asked)
    assert code == 0 and "ar: finished already" in out and "cd: continuing from step 1" in out and "Next:" in out
    assert all((folder / name / "world").exists() for name in rooms.PIPELINE)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}
    code, out, _ = ask(capsys, *asked)
    assert code == 0 and all(f"{name}: finished already" in out for name in rooms.PIPELINE)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    for change, named in ((["--scale", "demo"], "'full', not 'demo'"), (["--chunk", "3"], "chunk 1, not 3")):
        code, _, err = ask(capsys, *asked, *change)
        assert code == 2 and named in err and "another --run" in err

    code, out, _ = ask(capsys, "train", "dmd-2step", "--run", folder, "--name", "strong", "--stage.guidance", "5")
    assert code == 0 and World.load(folder / "strong" / "world").recipe.stage.guidance == 5
    code, _, err = ask(capsys, "train", "dmd-2step", "--run", folder, "--stage.guidance", "5")
    assert code == 2 and "different recipe" in err and "stage" in err

    code, out, _ = ask(capsys, "generate", "--run", folder, "--recipe", "strong", "--frames", "3", "--policy", "random")
    assert code == 0 and (folder / "clips" / "strong-multi-room-0.mp4").exists()


def test_pipeline_on_any_recording(small, tmp_path, capsys):
    made, folder = tmp_path / "empty", tmp_path / "run"
    spec = ["--frames", "400", "--episode", "19", "--size", "20"]
    assert ask(capsys, "record", "MiniGrid-Empty-5x5-v0", "--out", made, *spec)[0] == 0
    code, _, err = ask(capsys, "pipeline", made, "--run", folder, "--only", "base", "ar", "--chunk", "3")
    assert code == 0, err
    world = World.load(folder / "ar" / "world")
    assert world.keys.names == Recording.open(made).actions and world.text.prompts == ("MiniGrid-Empty-5x5-v0",)
    assert world.recipe.backbone.latents == world.codec.config.latents and world.recipe.sampling.chunk == 3
    assert json.loads((folder / "run.json").read_text()) == {"recording": str(made), "scale": "full", "chunk": 3}
    code, *_ = ask(capsys, "train", "cd", "--run", folder)  # knows the recording and the chunk
    assert code == 0 and World.load(folder / "cd" / "world").recipe.stage.chunk == 3
    none = tmp_path / "none"
    assert ask(capsys, "record", "MiniGrid-Empty-5x5-v0", "--out", none, *spec, "--holdout", "0")[0] == 0
    code, _, err = ask(capsys, "pipeline", none, "--run", tmp_path / "other")
    assert code == 2 and "raise --holdout" in err
    short = ["--frames", "400", "--episode", "5", "--size", "20"]
    code, out, _ = ask(capsys, "record", "MiniGrid-Empty-5x5-v0", "--out", tmp_path / "short", *short)
    assert code == 0 and "note: our recipes cannot be trained on it: clips have 12 frames" in out
    code, _, err = ask(capsys, "pipeline", tmp_path / "short", "--run", tmp_path / "other")
    assert code == 2 and "its longest train episode has 6" in err and not (tmp_path / "other").exists()


def test_a_run_finds_its_recording_from_anywhere(small, tmp_path, capsys, monkeypatch):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)
    spec = ["--frames", "400", "--episode", "19", "--size", "20"]
    assert ask(capsys, "record", "MiniGrid-Empty-5x5-v0", "--out", "recordings/empty", *spec)[0] == 0
    (home / "runs" / "old").mkdir(parents=True)
    old = {"recording": "recordings/empty", "scale": "full", "chunk": 1}
    (home / "runs" / "old" / "run.json").write_text(json.dumps(old))
    asked = setting.settle(Path("runs/new"), recording="recordings/../recordings/empty", scale="demo")
    assert asked.recording == str(home / "recordings" / "empty")
    setting.keep(Path("runs/new"), asked)
    for place in (home, away):
        monkeypatch.chdir(place)
        near = os.path.relpath(home / "recordings" / "empty")
        for name in ("old", "new"):
            for given in (None, near, str(home / "recordings" / "empty")):
                assert setting.settle(home / "runs" / name, recording=given).recording == asked.recording
    with pytest.raises(ValueError, match="'recordings/none' is neither 'rooms' nor the folder of a recording"):
        setting.settle(home / "runs" / "new", recording="recordings/none")


@pytest.mark.parametrize("harm", ["{", "[]", "{}", '{"recording": "rooms", "colour": 1}'])
def test_a_damaged_setting_is_named(harm, tmp_path):
    (tmp_path / "run.json").write_text(harm)
    with pytest.raises(ValueError, match=r"run.json is damaged .*delete it to start this run's setting again"):
        setting.known(tmp_path)


def test_the_shipped_base_is_started_from_unless_from_scratch(small, tmp_path, capsys, monkeypatch):
    source = tmp_path / "source"
    assert ask(capsys, "pipeline", "--run", source, "--only", "base")[0] == 0
    World.load(source / "base" / "world").save(tmp_path / "shipped" / "base")
    World.load(source / "base" / "world").save(tmp_path / "shipped" / "ar")  # never started from
    code, out, _ = ask(capsys, "pipeline", "--run", tmp_path / "run", "--only", "base", "ar")
    assert code == 0 and "base: shipped" in out and "ar: shipped" not in out
    assert not (tmp_path / "run" / "base").exists() and (tmp_path / "run" / "ar" / "world").exists()
    shown = ["--recipe", "base", "--frames", "12", "--out", tmp_path / "a.gif"]
    assert ask(capsys, "generate", "--run", tmp_path / "run", *shown)[0] == 0
    code, out, _ = ask(capsys, "pipeline", "--run", tmp_path / "own", "--from-scratch", "--only", "base")
    assert code == 0 and "base: shipped" not in out and (tmp_path / "own" / "base" / "world").exists()
    code, out, _ = ask(capsys, "train", "base", "--run", tmp_path / "run")
    assert code == 0 and (tmp_path / "run" / "base" / "world").exists()


def test_a_missing_start_and_another_recording(small, tmp_path, capsys):
    code, _, err = ask(capsys, "pipeline", "--run", tmp_path / "a", "--only", "cd")
    assert code == 2 and "ar must be trained first" in err
    assert ask(capsys, "record", "rooms", "--out", tmp_path / "b" / "recording", "--frames", "50")[0] == 0
    code, _, err = ask(capsys, "pipeline", "--run", tmp_path / "b")
    assert code == 2 and "different recording" in err and "frames 50, not 480" in err


def test_a_closed_gate_ends_with_1(small, tmp_path, capsys, monkeypatch):
    shrunken = rooms.recipes
    asked = Gate(quality=0.0)
    monkeypatch.setattr(rooms, "recipes", lambda *a: {n: replace(r, gate=asked) for n, r in shrunken(*a).items()})
    monkeypatch.setattr("forcing.train.gate.CLIPS", 4)
    code, _, err = ask(capsys, "pipeline", "--run", tmp_path / "run", "--only", "base", "ar")
    assert code == 1 and err.startswith("error: ar looks worse") and "0.0 x" in err and "Traceback" not in err


# ---- eval, report, demo


@pytest.fixture
def quick(monkeypatch):
    """An evaluation of seconds."""
    small = Measure("small", 2, 2, 2, 2, 4, 8, 12, 4, 8, 4, 2, (2, 1), (0,), 8, 1)
    for module in (evaluation, demonstration):
        monkeypatch.setattr(module, "QUICK", small)


def test_demo_then_eval_and_report(small, quick, tmp_path, capsys, monkeypatch):
    long = replace(SMALL, frames=1640, episode=40)
    monkeypatch.setattr(setting, "RECORDS", {"demo": long})
    folder = tmp_path / "run"
    code, out, err = ask(capsys, "demo", "--run", folder)
    assert code == 0, err
    page = folder / "report.html"
    assert page.stat().st_size > 10_000 and str(page) in out and "done in" in out and "forcing generate --run" in out
    assert "the real world" in out and "AR teacher" in out and ("kept " in out or "MISSED " in out)
    began = time.perf_counter()
    code, out, _ = ask(capsys, "eval", folder, "--quick")  # measured already
    assert re.match(r"- (kept|\*\*missed\*\*): .*\n", (folder / "eval" / "results.md").read_text())
    assert code == 0 and "results.json" in out and time.perf_counter() - began < 5
    code, out, _ = ask(capsys, "report", "--run", folder, "--out", tmp_path / "page.html")
    assert code == 0 and str(tmp_path / "page.html") in out and (tmp_path / "page.html").exists()
    code, out, _ = ask(capsys, "demo", "--run", folder)
    assert code == 0 and "dmd-1step: finished already" in out


def test_only_rooms_can_be_evaluated(small, tmp_path, capsys):
    made, folder = tmp_path / "empty", tmp_path / "run"
    spec = ["--frames", "400", "--episode", "19", "--size", "20"]
    assert ask(capsys, "record", "MiniGrid-Empty-5x5-v0", "--out", made, *spec)[0] == 0
    assert ask(capsys, "pipeline", made, "--run", folder, "--only", "base", "ar")[0] == 0
    code, _, err = ask(capsys, "eval", folder, "--quick")
    assert code == 2 and "MiniGrid-Empty-5x5-v0" in err and "'rooms'" in err
