"""Wan from the command line, on a tiny pipeline of random weights: encode, the four stages, every way to generate."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forcing import files, media
from forcing import fixture as tiny
from forcing.backbones.wan import WanConfig
from forcing.cli import main, shot
from forcing.cli.models import opened
from forcing.cli.shot import Shot
from forcing.convert import load_wan
from forcing.data import videos
from forcing.recipe import Sampling
from forcing.recipes import wan
from forcing.rollout import Plan
from forcing.train import checkpoint
from forcing.world import World

STAGES = ("wan-base", "wan-ar", "wan-cd", "wan-dmd-2step")
SHORT = ("--steps", "2", "--batch", "2", "--save", "1", "--log", "1")
FIVE = ("--steps", "5", *SHORT[2:])  # DMD's student moves with every fifth update of the critic


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FORCING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    tiny.fixture(folder / "pipeline")
    tiny.videos(folder / "videos", count=4)
    return folder


@pytest.fixture(scope="session")
def trained(home, tmp_path_factory) -> Path:
    """The latents and a run with all four stages."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FORCING_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    asked = ["encode", home / "videos", "--model", home / "pipeline", "--out", home / "latents"]
    assert main([*map(str, asked), "--size", "96x64", "--frames", "9"]) == 0
    for name in STAGES:
        asked = ["train", name, "--model", home / "pipeline", "--data", home / "latents", "--run", home / "run"]
        assert main([*map(str, asked), *(FIVE if "dmd" in name else SHORT)]) == 0
    patch.undo()
    return home


def ask(capsys, *argv) -> tuple[int, str, str]:
    code = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def generate(capsys, model: Path, out: Path, *more) -> tuple[str, np.ndarray]:
    asked = ("generate", "--model", model, "--prompt", "a ball", "--size", "48x32", "--out", out, *more)
    code, said, err = ask(capsys, *asked)
    assert code == 0 and not err, err  # no library's own progress bars either
    return said, frames(out)


# ---- training


def test_four_stages_on_encoded_video(trained):
    for name in STAGES:
        world = World.load(trained / "run" / name / "world")
        assert world.recipe.name == name and world.kit.frame == tiny.SIZE
        assert isinstance(world.recipe.backbone, WanConfig) and world.recipe.frames == 3
        lines = [json.loads(line) for line in (trained / "run" / name / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == world.recipe.steps and lines[-1]["gauge/error"] > 0
        assert world.recipe.backbone.checkpoint and world.recipe.precision == "bfloat16"
    starts = set(World.load(trained / "run" / "wan-dmd-2step" / "world").starts)
    assert starts == {"wan", "wan-cd", "wan-teacher", "data"}


def test_every_stage_moves_its_student(trained):
    origin = {"wan-base": "wan", "wan-ar": "wan", "wan-cd": "wan-ar", "wan-dmd-2step": "wan-cd"}
    made = {name: load_wan(trained / "run" / name / "world").state_dict() for name in STAGES}
    made["wan"] = load_wan(trained / "pipeline").state_dict()
    for name, before in origin.items():
        moved = [not torch.equal(made[before][key], value) for key, value in made[name].items()]
        assert sum(moved) > 0.8 * len(moved), name  # one step of an average is less than a norm's last digit


def test_a_finished_stage_is_not_trained_again(trained, tmp_path, capsys):
    asked = (
        "train",
        "wan-ar",
        "--model",
        trained / "pipeline",
        "--data",
        trained / "latents",
        "--run",
        trained / "run",
    )
    code, out, _ = ask(capsys, *asked, *SHORT)
    assert code == 0 and "finished already" in out
    code, _, err = ask(capsys, *asked, *SHORT, "--seed", "5")
    assert code == 2 and "differs in: seed" in err
    code, _, err = ask(capsys, *asked, *SHORT, "--start", trained / "run" / "wan-base" / "world")
    assert code == 2 and "made from another wan;" in err
    shutil.copytree(trained / "latents", tmp_path / "latents")
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text()) | {"holdout": 0.5}
    (tmp_path / "latents" / "manifest.json").write_text(json.dumps(manifest))
    elsewhere = [tmp_path / "latents" if part == trained / "latents" else part for part in asked]
    code, _, err = ask(capsys, *elsewhere, *SHORT)
    assert code == 2 and "made from another data" in err


def test_a_stopped_run_goes_on_exactly(trained, tmp_path, capsys, monkeypatch):
    asked = ["train", "wan-cd", "--model", trained / "pipeline", "--data", trained / "latents", "--run", tmp_path / "r"]
    asked += ["--start", trained / "run" / "wan-ar" / "world", *SHORT]
    save, saved = checkpoint.save, []

    def killed(*args):
        saved.append(save(*args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        assert ask(capsys, *asked)[0] == 130
    code, out, _ = ask(capsys, *asked)
    assert code == 0 and "continuing from step 1 of 2" in out
    whole, again = (load_wan(at / "wan-cd" / "world").state_dict() for at in (trained / "run", tmp_path / "r"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_chunks_and_pieces(trained, tmp_path, capsys):
    asked = ("encode", trained / "videos", "--model", trained / "pipeline", "--out", tmp_path / "long")
    assert ask(capsys, *asked, "--size", "48x32", "--frames", "21")[0] == 0  # six latent frames
    asked = ("train", "wan-ar", "--model", trained / "pipeline", "--data", tmp_path / "long", "--run", tmp_path)
    code, _, err = ask(capsys, *asked, *SHORT, "--chunk", "3", "--pieces", "2", "--name", "ar3")
    assert code == 0, err
    world = World.load(tmp_path / "ar3" / "world")
    assert world.recipe.sampling.chunk == 3 and world.recipe.pieces == 2 and world.causal
    more = ("--image", trained / "videos" / "start.png", "--frames", "30", "--steps", "2")
    assert len(generate(capsys, tmp_path / "ar3" / "world", tmp_path / "x.mp4", *more)[1]) == 30
    # one chunk as long as the clips is causal all the same
    asked = ("train", "wan-ar", "--model", trained / "pipeline", "--data", trained / "latents", "--run", tmp_path)
    assert ask(capsys, *asked, *SHORT, "--chunk", "3")[0] == 0
    generate(capsys, tmp_path / "wan-ar" / "world", tmp_path / "y.mp4", *more[:2], "--frames", "9", "--steps", "2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--model", "nowhere"), "nowhere does not exist"),
        (("--data", "nowhere"), "nowhere"),
        (("--chunk", "2"), "chunk must divide clips of 3 latent frames, got 2"),
        (("--device", "cuda:9"), "this machine has cpu"),
        (("--teacher", "nowhere"), "nowhere does not exist"),
        (("--start", "nowhere"), "nowhere does not exist"),
        (("--pieces", "3"), "does not divide"),
        (("--frozen", "int8"), "choose from"),
        (("--name", "../x"), "name of a folder"),
        (("--backbone.dim", "64"), "only --backbone.checkpoint is free"),
        (("--gate.control", "0.5"), "--gate is for recordings"),
        (("--withhold.actions", "0.5"), "--withhold is for recordings"),
        (("--roles.student.optim.lr", "nan"), "got lr nan"),
        (("--bogus", "1"), "unrecognized"),
    ],
)
def test_training_that_cannot_be_is_refused_first(trained, tmp_path, capsys, change, says):
    asked = {"--model": trained / "pipeline", "--data": trained / "latents", "--run": tmp_path / "r"}
    asked |= {change[0]: change[1]}
    start = () if change[0] == "--start" else ("--start", trained / "run" / "wan-cd" / "world")
    flat = [part for pair in asked.items() for part in pair]
    code, _, err = ask(capsys, "train", "wan-dmd-1step", *flat, *start, "--steps", "2", "--batch", "2")
    assert code == 2 and says in err, err
    assert err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_latents_of_another_pipeline_are_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    asked = ("train", "wan-ar", "--data", trained / "latents", "--run", tmp_path / "r", *SHORT)
    (config,) = (tmp_path / "pipeline" / "text_encoder").glob("config.json")
    before = config.read_text()
    config.write_text(before + " ")
    made = json.loads((trained / "latents" / "manifest.json").read_text())
    code, _, err = ask(capsys, *asked, "--model", tmp_path / "pipeline")
    assert code == 2 and f"another text_encoder ({made['text']}) than that of {tmp_path / 'pipeline'} (" in err
    config.write_text(before)
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.1 * value for name, value in load_file(weights).items()}, weights)
    code, _, err = ask(capsys, *asked, "--model", tmp_path / "pipeline")
    assert code == 2 and f"another vae ({made['codec']})" in err and "--pipeline" in err
    assert not (tmp_path / "r").exists()
    code, _, err = ask(capsys, *asked, "--model", tmp_path / "pipeline", "--pipeline", trained / "pipeline")
    assert code == 0, err
    shutil.rmtree(tmp_path / "pipeline" / "text_encoder")  # training alone needs none
    (tmp_path / "pipeline" / "vae").rename(tmp_path / "pipeline" / "not-brought")
    given = ("--pipeline", tmp_path / "pipeline", "--name", "again")
    assert ask(capsys, *asked, "--model", trained / "pipeline", *given)[0] == 0


def test_latents_that_are_not_whole_patches_are_refused(trained, tmp_path, capsys):
    asked = ("encode", trained / "videos" / "prompts.txt", "--out", tmp_path / "odd", "--size", "40x48", "--frames", 9)
    code, _, err = ask(capsys, *asked, "--model", trained / "pipeline")
    assert code == 2 and "size is 40x48: the width must be a multiple of 16 pixels, the height of 16" in err
    assert not (tmp_path / "odd").exists()
    shutil.copytree(trained / "pipeline", tmp_path / "vae-alone", ignore=shutil.ignore_patterns("transformer"))
    assert ask(capsys, *asked, "--model", tmp_path / "vae-alone")[0] == 0
    asked = ("train", "wan-ar", "--model", trained / "pipeline", "--data", tmp_path / "odd", "--run", tmp_path / "r")
    code, _, err = ask(capsys, *asked, *SHORT)
    assert code == 2 and f"clips in {tmp_path / 'odd'} is 40x48: the width must be a multiple of 16" in err


def test_a_few_step_student_keeps_the_chunks_of_its_start(trained, tmp_path, capsys):
    asked = ("train", "wan-cd", "--model", trained / "pipeline", "--data", trained / "latents", *SHORT, "--chunk", "3")
    code, _, err = ask(capsys, *asked, "--run", trained / "run", "--name", "cd3")
    teacher = trained / "run" / "wan-ar" / "world"
    assert code == 2 and f"{teacher} has chunks of 1, and cd3 of 3: give --chunk 1" in err
    code, _, err = ask(capsys, *asked, "--run", tmp_path, "--start", teacher)
    assert code == 2 and "give --chunk 1" in err and not (tmp_path / "wan-cd").exists()
    code, _, err = ask(capsys, *asked, "--run", tmp_path, "--start", teacher / "model.safetensors")  # does not say
    assert code == 0, err


def test_a_run_is_trained_by_one_process_at_a_time(trained, tmp_path, capsys):
    asked = ("train", "wan-ar", "--model", trained / "pipeline", "--data", trained / "latents", "--run", tmp_path)
    with files.alone(tmp_path / "wan-ar"):
        code, _, err = ask(capsys, *asked, *SHORT)
        assert code == 2 and f"{tmp_path / 'wan-ar'} is in use by another process" in err
        assert [path.name for path in (tmp_path / "wan-ar").iterdir()] == [".lock"]
        assert ask(capsys, *asked, *SHORT, "--name", "beside")[0] == 0
    assert ask(capsys, *asked, *SHORT)[0] == 0


def test_a_disk_that_is_full_is_said_in_a_line(trained, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    asked = ("train", "wan-ar", "--model", trained / "pipeline", "--data", trained / "latents", "--run", tmp_path)
    code, _, err = ask(capsys, *asked, *SHORT)
    assert code == 1 and err.startswith("error: ") and "No space left" in err and err.count("\n") == 1


def test_a_stage_needs_the_one_before(trained, tmp_path, capsys):
    asked = ("train", "wan-cd", "--model", trained / "pipeline", "--data", trained / "latents", "--run", tmp_path)
    code, _, err = ask(capsys, *asked, *SHORT)
    assert code == 2 and "wan-ar must be trained first" in err and "--start" in err


def test_prompts_alone_train_dmd_and_nothing_else(trained, tmp_path, capsys):
    asked = ("encode", trained / "videos" / "prompts.txt", "--model", trained / "pipeline", "--out", tmp_path / "p")
    code, _, err = ask(capsys, *asked, "--size", "96x64", "--frames", "9")
    assert code == 0, err
    given = ("--model", trained / "pipeline", "--data", tmp_path / "p", "--run", trained / "run")
    code, _, err = ask(capsys, "train", "wan-dmd-1step", *given, "--name", "from-prompts", *SHORT)
    assert code == 0, err
    code, _, err = ask(capsys, "train", "wan-ar", *given, "--name", "ar-from-prompts", *SHORT)
    assert code == 2 and "only DMD" in err


# ---- generating


@pytest.mark.parametrize("name", STAGES)
def test_text_to_video_with_every_product(trained, tmp_path, capsys, name):
    more = ("--steps", "3") if name in ("wan-base", "wan-ar") else ()
    said, seen = generate(capsys, trained / "run" / name / "world", tmp_path / "x.mp4", "--frames", "11", *more)
    assert seen.shape == (11, 32, 48, 3) and f"{name}: 11 frames of 48x32" in said


def test_the_released_folder_is_the_bidirectional_base(trained, tmp_path, capsys):
    said, seen = generate(capsys, trained / "pipeline", tmp_path / "x.mp4", "--frames", "5", "--steps", "2")
    assert len(seen) == 5 and said.startswith("wan: ")
    document = json.loads((tmp_path / "x.mp4.json").read_text())
    assert document["shot"]["sampling"]["chunk"] == 2 and document["shot"]["sampling"]["guidance"] == 5
    assert document["shot"]["sampling"]["plan"]["solver"] == "unipc"


def test_a_file_of_weights_with_its_pipeline(trained, tmp_path, capsys):
    weights = load_wan(trained / "run" / "wan-dmd-2step" / "world").state_dict()
    torch.save({"generator_ema": {f"model._fsdp_wrapped_module.{k}": v for k, v in weights.items()}}, tmp_path / "x.pt")
    more = ("--pipeline", trained / "pipeline", "--recipe", "wan-dmd-2step", "--frames", "9")
    # heads cannot be read off a file: that of the tiny network is not the released one's
    asked = ("generate", "--model", tmp_path / "x.pt", "--prompt", "a ball", "--size", "48x32", *more)
    code, _, err = ask(capsys, *asked, "--out", tmp_path / "x.mp4")
    assert code == 2 and "head" in err
    shutil.copy(trained / "pipeline" / "transformer" / "config.json", tmp_path / "config.json")
    _, seen = generate(capsys, tmp_path / "x.pt", tmp_path / "x.mp4", *more)
    _, same = generate(capsys, trained / "run" / "wan-dmd-2step" / "world", tmp_path / "y.mp4", "--frames", "9")
    assert np.array_equal(seen, same)


def test_the_json_file_knows_its_networks_however_they_were_named(trained, tmp_path, capsys, monkeypatch):
    weights = load_wan(trained / "run" / "wan-dmd-2step" / "world").state_dict()
    torch.save({"generator": weights}, tmp_path / "x.pt")
    shutil.copy(trained / "pipeline" / "transformer" / "config.json", tmp_path / "config.json")
    shutil.copy(trained / "videos" / "0.mp4", tmp_path)
    monkeypatch.chdir(tmp_path)
    more = ("--pipeline", trained / "pipeline", "--weights", "generator", "--video", "0.mp4", "--context", "1")
    generate(capsys, Path("x.pt"), tmp_path / "a.mp4", *more, "--frames", "5")
    generate(capsys, trained / "pipeline", tmp_path / "b.mp4", "--steps", "1", "--frames", "5")
    for name in ("a.mp4", "b.mp4"):
        code, _, err = ask(capsys, "generate", "--from", f"{name}.json", "--out", "again.mp4")
        assert code == 0 and Path("again.mp4").read_bytes() == Path(name).read_bytes(), err


def test_a_prompt_that_is_cut_is_told(trained, tmp_path, capsys):
    asked = ("generate", "--model", student(trained), "--size", "48x32", "--frames", "5", "--out", tmp_path / "x.mp4")
    code, _, err = ask(capsys, *asked, "--prompt", "a ball moves up " * 150, "--prompt", "a ball")
    assert code == 0 and err.count("\n") == 1
    assert err.startswith("warning: a prompt has 601 tokens, of which 512 are heard: a ball moves up a ball moves up")
    (tmp_path / "p.txt").write_text("a ball moves down " * 150)
    asked = ("encode", tmp_path / "p.txt", "--model", trained / "pipeline", "--out", tmp_path / "p", "--size", "96x64")
    code, _, err = ask(capsys, *asked)
    assert code == 0 and "a prompt has 601 tokens" in err


@pytest.mark.parametrize("name", ["", "run/wan-ar"])
def test_a_folder_too_high_is_told(trained, tmp_path, capsys, name):
    meant = trained / "pipeline" if not name else trained / name / "world"
    prompts = trained / "videos" / "prompts.txt"
    for asked in (
        ("generate", "--model", trained / name, "--prompt", "x"),
        ("train", "wan-ar", "--model", trained / name, "--data", trained / "latents"),
        ("encode", prompts, "--model", trained / name, "--out", tmp_path / "p"),
        ("convert", trained / name, tmp_path / "c"),
    ):
        code, _, err = ask(capsys, *asked)
        assert code == 2 and f"Did you mean {meant}?" in err, asked
    asked = ("generate", "--model", student(trained), "--pipeline", trained, "--prompt", "x")
    assert f"Did you mean {trained / 'pipeline'}?" in ask(capsys, *asked)[2]


def student(trained: Path) -> Path:
    return trained / "run" / "wan-dmd-2step" / "world"


def test_the_json_file_makes_the_clip_again(trained, tmp_path, capsys):
    more = ("--frames", "9", "--seed", "3", "--at", "4", "a square", "--negative", "blurred")
    _, first = generate(capsys, student(trained), tmp_path / "x.mp4", *more)
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.mp4.json", "--out", tmp_path / "again.mp4")
    assert code == 0, err
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()
    _, other = generate(capsys, student(trained), tmp_path / "z.mp4", *more, "--sink", "0", "--steps", "1")
    assert not np.array_equal(first, other)
    plan = json.loads((tmp_path / "z.mp4.json").read_text())["shot"]["sampling"]["plan"]
    assert plan["rest"] == [1] and plan["first"] == list(wan.levels(4))


def test_another_negative_prompt_is_heard(trained, tmp_path, capsys):
    more, ar = ("--frames", "5", "--steps", "2"), trained / "run" / "wan-ar" / "world"
    plain = generate(capsys, ar, tmp_path / "a.mp4", *more)[1]
    other = generate(capsys, ar, tmp_path / "b.mp4", *more, "--negative", "a ball")[1]
    alone = generate(capsys, ar, tmp_path / "c.mp4", *more, "--guidance", "1")[1]
    # away from what is asked: not at all
    assert np.abs(other.astype(int) - alone).mean() < 1 < np.abs(plain.astype(int) - alone).mean()


def test_the_seed_decides(trained, tmp_path, capsys):
    clips = [generate(capsys, student(trained), tmp_path / f"{i}.mp4", "--frames", "5", "--seed", i)[1] for i in (1, 2)]
    assert not np.array_equal(*clips)


def test_image_to_video(trained, tmp_path, capsys):
    wide = np.asarray(Image.open(trained / "videos" / "start.png").resize((120, 40)))  # 3:1 where 3:2 is asked
    Image.fromarray(wide).save(tmp_path / "wide.png")
    _, seen = generate(capsys, student(trained), tmp_path / "x.mp4", "--image", tmp_path / "wide.png", "--frames", "9")
    assert len(seen) == 9
    document = json.loads((tmp_path / "x.mp4.json").read_text())
    assert document["shot"]["start"]["medium"] == "image" and document["shot"]["start"]["frames"] == 1
    # the first picture is what the codec makes of the image, cropped
    codec = opened(trained / "pipeline").codec
    cropped = videos.fitted(wide, (32, 48), "crop")
    given = codec.decode(codec.encode(cropped[None, None]))[0, 0]
    assert np.abs(seen[0].astype(int) - given).mean() < 6  # H.264
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.mp4.json", "--out", tmp_path / "y.mp4")
    assert code == 0 and (tmp_path / "y.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes(), err
    Image.fromarray(wide[::-1]).save(tmp_path / "wide.png")
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.mp4.json", "--out", tmp_path / "y.mp4")
    assert code == 2 and "has changed" in err


def test_an_image_is_cropped_or_padded_and_never_stretched():
    disc = np.zeros((40, 120, 3), np.uint8)
    rows, columns = np.ogrid[:40, :120]
    disc[(rows - 20) ** 2 + (columns - 60) ** 2 < 15**2] = 255
    for fit, reach in (("crop", 24), ("pad", 12)):
        seen = videos.fitted(disc, (32, 48), fit)[..., 0] > 128
        height, width = seen.any(1).sum(), seen.any(0).sum()
        assert seen.shape == (32, 48) and abs(int(height) - int(width)) <= 1 and abs(int(height) - reach) <= 1


def calls(world: World, wanted: Shot, monkeypatch) -> list[tuple[float, list[float]]]:
    """The noise level and the frame times of each forward pass of a clip begun with one black picture."""
    seen, forward = [], world.model.forward

    def spied(x, sigma, cond, layout):
        seen.append((sigma[0, 0].item(), layout.times.tolist()))
        return forward(x, sigma, cond, layout)

    monkeypatch.setattr(world.model, "forward", spied)
    list(wanted.stream(world, np.zeros((1, 32, 48, 3), np.uint8), world.codec.decoder()))
    return seen


def test_an_image_takes_the_place_and_the_plan_of_the_first_chunk(trained, monkeypatch):
    world = opened(student(trained))
    seen = calls(world, Shot("a ball", 9, 16.0, (32, 48), 0, world.recipe.sampling), monkeypatch)
    two = wan.PLANS[2].rest
    assert [times for _, times in seen] == [[0.0], [1.0], [1.0], [1.0], [2.0], [2.0], [2.0]]
    assert [sigma for sigma, _ in seen] == pytest.approx([0, *two, 0, *two, 0])


def test_the_start_is_told_what_the_clip_is_told(trained, monkeypatch):
    world, heard = opened(student(trained)), []
    cond = world.cond
    monkeypatch.setattr(World, "cond", lambda self, prompts, *rest: heard.append(prompts) or cond(prompts, *rest))
    wanted = Shot("a ball", 17, 16.0, (32, 48), 0, world.recipe.sampling, switches=((9, "a square"),))
    list(wanted.stream(world, np.zeros((1, 32, 48, 3), np.uint8), world.codec.decoder()))
    assert heard == [["a ball"], ["a ball"], ["a square"]]  # the start; then each prompt once, however many chunks


def test_an_image_before_chunks_is_a_chunk_of_one(trained, monkeypatch):
    world = opened(student(trained))
    how = replace(world.recipe.sampling, chunk=2, plan=wan.PLANS[1])
    seen = calls(world, Shot("a ball", 9, 16.0, (32, 48), 0, how), monkeypatch)
    assert seen == [(0.0, [0.0]), (1.0, [1.0, 2.0]), (0.0, [1.0, 2.0])]


def test_a_video_goes_on(trained, tmp_path, capsys):
    more = ("--video", trained / "videos" / "0.mp4", "--context", "11", "--frames", "17", "--chunk", "1")
    _, seen = generate(capsys, student(trained), tmp_path / "x.mp4", *more)
    document = json.loads((tmp_path / "x.mp4.json").read_text())
    assert len(seen) == 17 and document["shot"]["start"]["frames"] == 9  # whole latent frames of at most 11
    world, wanted = opened(student(trained)), shot.read(tmp_path / "x.mp4.json").shot
    last = frames(trained / "videos" / "0.mp4")[-9:]
    given = np.stack([videos.fitted(each, (32, 48), "crop") for each in last])
    assert np.array_equal(wanted.start.pictures(16.0, (32, 48)), given)
    pictures = next(wanted.stream(world, given, world.codec.decoder()))  # as the codec gives them back
    assert np.array_equal(pictures, world.codec.decode(world.codec.encode(given[None]))[0])


def test_a_prompt_schedule_changes_what_comes_after_and_nothing_before(trained, tmp_path, capsys):
    plain = generate(capsys, student(trained), tmp_path / "a.mp4", "--frames", "17")[1]
    later = generate(capsys, student(trained), tmp_path / "b.mp4", "--frames", "17", "--at", "0.5s", "a square")[1]
    # 0.5 s is picture 8: the first latent frame that begins there or later shows pictures 9 to 12
    assert np.array_equal(plain[:9], later[:9]) and not np.array_equal(plain[9:13], later[9:13])
    there = generate(capsys, student(trained), tmp_path / "c.mp4", "--frames", "17", "--at", "9", "a square")[1]
    assert np.array_equal(there, later)


def test_another_vae_or_text_encoder_is_noticed(trained, tmp_path, capsys):
    shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    more = ("--pipeline", tmp_path / "pipeline", "--frames", "5")
    generate(capsys, student(trained), tmp_path / "x.mp4", *more)
    weights = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.1 * value for name, value in load_file(weights).items()}, weights)
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.mp4.json", "--out", tmp_path / "y.mp4")
    assert code == 2 and "other networks (VAE differ)" in err
    asked = ("--pipeline", trained / "pipeline", "--out", tmp_path / "y.mp4")
    assert ask(capsys, "generate", "--from", tmp_path / "x.mp4.json", *asked)[0] == 0
    assert (tmp_path / "y.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()


def test_a_name_is_taken_before_the_clip_is_made(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("generate", "--model", student(trained), "--size", "48x32", "--frames", "5", "--prompt", "race")
    stream, names = Shot.stream, []

    def meanwhile(self, *args):
        if not names:
            names.append("another one")  # begins and ends
            assert ask(capsys, *asked)[0] == 0
        return stream(self, *args)

    def stopped(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shot, "stream", meanwhile)
        assert ask(capsys, *asked)[0] == 0
    assert sorted(path.name for path in (tmp_path / "clips").glob("*.mp4")) == ["race-0-take2.mp4", "race-0.mp4"]
    with monkeypatch.context() as patch:
        patch.setattr(Shot, "stream", stopped)
        assert ask(capsys, *asked)[0] == 130
    assert len(list((tmp_path / "clips").iterdir())) == 4  # nothing is left of the third


def test_the_text_encoder_is_gone_while_a_clip_is_made(trained, tmp_path, capsys, monkeypatch):
    loaded, stream = [], Shot.stream

    def watched(self, world, *args):
        for pictures in stream(self, world, *args):
            loaded.append(world.text._loaded)
            yield pictures

    monkeypatch.setenv("FORCING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Shot, "stream", watched)
    generate(capsys, trained / "run" / "wan-ar" / "world", tmp_path / "x.mp4", "--frames", "9", "--steps", "2")
    assert loaded == [None] * 3


def test_seconds_and_several_prompts(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("generate", "--model", student(trained), "--size", "48x32", "--seconds", "0.5", "--fps", "10")
    code, out, err = ask(capsys, *asked, "--prompt", "a/ball: ☃", "--prompt", "", "--prompt", "a/ball: ☃")
    assert code == 0, err
    made = sorted(path.name for path in (tmp_path / "clips").glob("*.mp4"))
    assert made == ["a-ball-0-take2.mp4", "a-ball-0.mp4", "no-prompt-0.mp4"] and out.count("wrote") == 3
    assert all(len(frames(tmp_path / "clips" / name)) == 5 for name in made)
    assert len(list((tmp_path / "clips").glob("*.json"))) == 3


def test_what_is_told_to_the_other_side_of_guidance(trained):
    world = opened(trained / "pipeline")
    cond = world.cond(["a ball"], None, 1)
    assert torch.equal(world.uncond(cond).static["text"], world.text.null(1))
    assert not torch.equal(world.text.null(1), cond.static["text"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--frames", "0"), "frames is 0"),
        (("--frames", "9", "--seconds", "1"), "exclude each other"),
        (("--seconds", "-1"), "seconds is -1"),
        (("--fps", "0"), "fps is 0"),
        (("--size", "47x32"), "47"),
        (("--size", "40x32"), "the width must be a multiple of 16 pixels, the height of 16"),
        (("--size", "999999x32"), "sides are at most 16384"),
        (("--weights", "generator"), "leave out --weights"),
        (("--size", "big"), "big"),
        (("--steps", "0"), "steps is 0"),
        (("--seed", "-1"), "seed is -1"),
        (("--chunk", "-1"), "chunk is -1"),
        (("--chunk", "0"), "chunk is 0"),
        (("--chunk", "500"), "from 1 to 3 latent frames"),
        (("--solver", "euler"), "--solver is for models of many steps"),
        (("--image", "nope.png"), "nope.png"),
        (("--video", "nope.mp4"), "nope.mp4"),
        (("--image", "x.png", "--video", "x.mp4"), "exclude each other"),
        (("--at", "soon", "x"), "'soon'"),
        (("--at", "100s", "x"), "before 9"),
        (("--at", "0", "x"), "from picture 1 on"),
        (("--at", "4", "x", "--at", "4", "y"), "twice"),
        (("--window", "0"), "window is 0"),
        (("--device", "tpu"), "'tpu'"),
        (("--dtype", "int4"), "'int4'"),
        (("--recipe", "wan-ar"), "says itself how it is sampled"),
        (("--out", "x.avi"), ".avi"),
        (("--live", "nope.pth"), "nope.pth"),
        (("--guidance", "-1"), "guidance"),
    ],
)
def test_clips_that_cannot_be_are_refused_first(trained, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    frames = () if {"--frames", "--seconds"} & set(more) else ("--frames", "9")
    asked = ("generate", "--model", student(trained), "--prompt", "a ball", "--size", "48x32", *frames, *more)
    code, _, err = ask(capsys, *asked)
    assert code == 2 and says in err, err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--image", "start.png"), "bidirectional"),
        (("--chunk", "1"), "--chunk is for causal models"),
        (("--window", "3"), "--window is for causal models"),
        (("--sink", "0"), "--sink is for causal models"),
        (("--at", "4", "x"), "bidirectional"),
        (("--recipe", "nope"), "nope"),
    ],
)
def test_the_base_makes_its_clip_at_once(trained, tmp_path, capsys, more, says):
    shutil.copy(trained / "videos" / "start.png", tmp_path)
    more = tuple(str(tmp_path / part) if part == "start.png" else part for part in more)
    asked = ("generate", "--model", trained / "pipeline", "--prompt", "", "--size", "48x32", "--frames", "9")
    code, _, err = ask(capsys, *asked, *more, "--out", tmp_path / "x.mp4")
    assert code == 2 and says in err and not (tmp_path / "x.mp4").exists(), err


def test_a_world_of_wan_is_no_small_world(trained, tmp_path, capsys):
    asked = ("generate", "--world", student(trained), "--prompt", "a ball", "--out", tmp_path / "x.mp4")
    code, _, err = ask(capsys, *asked)
    assert code == 2 and "forcing generate --model" in err and not list(tmp_path.iterdir())


def test_no_prompt_is_asked_for(trained, capsys):
    code, _, err = ask(capsys, "generate", "--model", student(trained))
    assert code == 2 and "--prompt" in err


def test_a_world_whose_pipeline_is_gone_says_so(trained, tmp_path, capsys):
    shutil.copytree(student(trained), tmp_path / "world")
    path = tmp_path / "world" / "world.json"
    document = json.loads(path.read_text()) | {"pipeline": str(tmp_path / "gone")}
    path.write_text(json.dumps(document))
    asked = ("generate", "--model", tmp_path / "world", "--prompt", "x", "--frames", "5", "--size", "48x32")
    code, _, err = ask(capsys, *asked, "--out", tmp_path / "x.mp4")
    assert code == 2 and "gone" in err
    code, _, err = ask(capsys, *asked, "--pipeline", trained / "pipeline", "--out", tmp_path / "x.mp4")
    assert code == 0, err


def test_the_json_file_of_another_thing_is_refused(trained, tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"made_by": "forcing generate --model", "format": 1, "shot": {}}')
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.json")
    assert code == 2 and "is not the JSON file of a clip of Wan" in err
    media.save(tmp_path / "x.gif", np.zeros((2, 8, 8, 3), np.uint8))
    code, _, err = ask(capsys, "generate", "--from", tmp_path / "x.gif")
    assert code == 2 and "x.gif" in err


def test_frames_that_do_not_fill_their_chunk_are_cut(trained, tmp_path, capsys):
    for chunk, wanted in ((1, 6), (2, 6), (3, 2)):
        _, seen = generate(capsys, student(trained), tmp_path / "x.mp4", "--frames", str(wanted), "--chunk", str(chunk))
        assert len(seen) == wanted


# ---- recipes


def test_published_levels():
    assert wan.PLANS[4].rest == pytest.approx((1, 0.9375, 0.8333333, 0.625))
    assert wan.PLANS[2] == Plan(wan.levels(2), first=wan.PLANS[4].rest)
    assert wan.PLANS[2].rest == pytest.approx((1, 0.8333333)) and wan.PLANS[1].rest == (1,)


@pytest.mark.parametrize("chunk", [1, 3])
def test_published_hyper_parameters(chunk):
    made = wan.recipes(chunk=chunk)
    assert list(made) == ["wan-base", "wan-ar", "wan-cd", "wan-dmd-4step", "wan-dmd-2step", "wan-dmd-1step"]
    for recipe in made.values():
        student = recipe.roles["student"].optim
        assert student is not None and (student.method, student.lr) == ("adamw", 2e-6)
        assert student.betas == (0, 0.999) and student.weight_decay == 0.01
        assert recipe.clip == 10 and recipe.batch == 64 and recipe.frames == 21
        assert {recipe.schedule.at(step, recipe.steps) for step in (0, 10, recipe.steps - 1)} == {1.0}
        assert isinstance(recipe.sampling, Sampling) and (recipe.name == "wan-base" or recipe.sampling.chunk == chunk)
    dmd, cd = made["wan-dmd-1step"], made["wan-cd"]
    for recipe in made.values():
        assert recipe.precision == "bfloat16" and recipe.backbone.checkpoint and recipe.stage.shift == 5
        assert recipe.name not in ("wan-base", "wan-ar") or recipe.stage.weight == "bell"
    assert dmd.roles["student"].ema == 0.99 and (dmd.stage.lowest, dmd.stage.highest) == (0.02, 0.98)
    assert dmd.roles["critic"].optim.lr == 4e-7 and dmd.stage.critic_updates == 5 and dmd.stage.guidance == 4
    assert cd.stage.guidance == 3 and cd.stage.steps == 48 and cd.stage.shift == 5 and cd.roles["student"].ema == 0.99
