"""The tiny pipeline is one that diffusers itself runs, and the tiny videos show what their captions say."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toys import contents

from forcing import fixture as made
from forcing import media
from forcing.cli import fixture as command
from forcing.fixture import FPS, FRAMES, SCENES, SIZE, fixture, videos
from forcing.text.umt5 import NEGATIVE

av = pytest.importorskip("av")
AREAS = {"ball": np.pi * 10**2, "square": 21**2}  # pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixture(tmp_path_factory.mktemp("wan") / "pipeline")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return videos(tmp_path_factory.mktemp("clips") / "videos", count=24)


@pytest.fixture(scope="module")
def transformer(folder):
    from diffusers import WanTransformer3DModel

    # by hand: diffusers' own loader of this class wants another package, accelerate
    model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder / "transformer"))
    (weights,) = (folder / "transformer").glob("*.safetensors")
    model.load_state_dict(load_file(weights), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def vae(folder):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(folder / "vae").eval()


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def rows(folder):
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        return [(folder / row["file"], row["caption"]) for row in csv.DictReader(file)]


def frames(path):
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == FPS
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_diffusers_runs_it(folder, transformer):
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, transformer=transformer, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2}
    rng = torch.Generator().manual_seed(0)
    options = {"guidance_scale": 3.0, "generator": rng, "output_type": "np", **size}
    video = pipeline(SCENES[0].caption, NEGATIVE, **options).frames
    assert video.shape == (1, 9, 32, 48, 3) and np.isfinite(video).all()
    assert video.std((0, 1, 2, 3)).min() > 0.05  # of every colour, where 0 is flat grey
    assert ((video <= 0) | (video >= 1)).mean() < 0.5


def test_the_index_names_every_part(folder):
    names = set(contents(folder))
    parts = {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    assert {name.split("/")[0] for name in names} == {"model_index.json", *parts}
    assert sum(len(data) for data in contents(folder).values()) < 1_500_000


def test_what_it_puts_out_is_of_order_one(transformer, vae):
    with torch.no_grad():
        v = transformer(drawn(1, 16, 3, 4, 6), torch.tensor([500]), drawn(1, 512, 32)).sample
        assert 0.3 < v.std() < 3
        mean, std = (torch.tensor(each).view(16, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
        picture = vae.decode(drawn(1, 16, 3, 8, 12) * std + mean).sample
        assert picture.shape == (1, 3, 9, 64, 96) and (picture.abs() == 1).float().mean() < 0.3
        assert (picture.std((3, 4)) > 0.1).all()
        latents = (vae.encode(picture).latent_dist.mode() - mean) / std
        assert latents.shape == (1, 16, 3, 8, 12) and 0.2 < latents.std() < 3 and latents.std((3, 4)).mean() > 0.05


def test_sizes_apart_it_is_the_released_one(folder, vae):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

    theirs, ours = AutoencoderKLWan().config, dict(vae.config)
    assert {name for name, value in theirs.items() if not name.startswith("_") and ours[name] != value} == {"base_dim"}
    scheduler = UniPCMultistepScheduler.from_pretrained(folder / "scheduler").config
    assert (scheduler.prediction_type, scheduler.use_flow_sigmas, scheduler.flow_shift) == ("flow_prediction", True, 5)


def test_the_tokenizer_knows_captions_and_the_negative_prompt(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for text in (*(scene.caption for scene in SCENES), "Pack my box: 5 dozen (jugs)! a", NEGATIVE):
        ids = tokenizer(text).input_ids
        assert ids[-1] == 1 and 2 not in ids and 1 not in ids[:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("\uff0c", ",")
    assert len(tokenizer(SCENES[0].caption).input_ids) == 1 + len(SCENES[0].caption.split())
    assert 2 in tokenizer("ж").input_ids


def test_the_same_seed_is_the_same_bytes(folder, clips, tmp_path):
    state = torch.get_rng_state()
    again = contents(fixture(tmp_path / "again"))
    assert again == contents(folder)
    assert torch.equal(torch.get_rng_state(), state)
    other = contents(fixture(tmp_path / "other", seed=1))
    changed = {name for name in other if other[name] != again[name]}
    assert {name.split("/")[0] for name in changed} == {"text_encoder", "vae", "transformer"}
    assert contents(videos(tmp_path / "clips", count=24)) == contents(clips)
    assert contents(videos(tmp_path / "others", count=24, seed=1)) != contents(clips)


def test_no_weight_is_left_as_it_was_built(folder, tmp_path):
    fixture(tmp_path / "other", seed=1)
    for one in folder.rglob("*.safetensors"):
        other = load_file(tmp_path / "other" / one.relative_to(folder))
        for name, value in load_file(one).items():
            assert not torch.isclose(value, other[name]).all(), (one, name)


def test_videos_show_what_their_captions_say(clips):
    said = rows(clips)
    assert len(said) == len({caption for _, caption in said}) == 24
    ways = {"to the right": (0, 1), "to the left": (0, -1), "up": (-1, 0), "down": (1, 0)}
    for path, caption in said:
        clip = frames(path)
        assert clip.shape == (FRAMES, *SIZE, 3)
        colour, shape, way, ground = re.fullmatch(r"a (\w+) (\w+) moves (.+) over (\w+)", caption).groups()
        near = np.abs(clip.astype(int) - made._COLOURS[colour]).max(-1) < 48
        places = []
        for mask in near:
            assert 0.8 < mask.sum() / AREAS[shape] < 1.1, caption
            places.append(np.argwhere(mask).mean(0))
        along, across = np.array(ways[way]), np.array(ways[way])[::-1]
        moved = np.diff(places, axis=0)
        assert (moved @ along > 0).all() and np.abs(moved @ across).max() < 1, caption
        assert moved.sum(0) @ along == pytest.approx(np.abs(along) @ SIZE - 21, abs=2)  # from one side to the other
        empty = clip[:, ~near.any(0)].mean((0, 1))
        expected = np.array(made._GROUNDS[ground])
        assert np.abs(empty / empty.max() - expected / expected.max()).max() < 0.1, caption


def test_prompts_and_a_first_frame_lie_beside_them(clips):
    prompts = (clips / "prompts.txt").read_text().splitlines()
    assert len(prompts) == 3 and not set(prompts) & {caption for _, caption in rows(clips)}
    start = media.image(clips / "start.png")
    colour, shape = prompts[0].split()[1:3]
    seen = (start == made._COLOURS[colour]).all(-1).sum()
    assert start.shape == (*SIZE, 3) and seen == pytest.approx(AREAS[shape], rel=0.05)
    assert set(contents(clips)) == {"captions.csv", "prompts.txt", "start.png", *(f"{i}.mp4" for i in range(24))}


@pytest.mark.parametrize("count", [0, len(SCENES) + 1])
def test_a_count_that_cannot_be_is_named(tmp_path, count):
    with pytest.raises(ValueError, match=f"count is {count}: .* 1 to {len(SCENES)}"):
        videos(tmp_path / "a", count=count)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_cannot_be_is_named(tmp_path, seed):
    for make in (fixture, videos):
        with pytest.raises(ValueError, match=f"seed is {seed}: it must be from 0 to {2**63 - 1}"):
            make(tmp_path / "a", seed=seed)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("make", [fixture, videos, lambda path: command.run([str(path)], Console())])
def test_what_is_there_is_not_replaced(tmp_path, make):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    for path in (tmp_path / "mine", tmp_path / "mine" / "precious"):
        with pytest.raises(ValueError, match=f"{path} is there already"):
            make(path)
    assert list(contents(tmp_path)) == ["mine/precious"]
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    assert len(contents(tmp_path / "empty")) > 5


@pytest.mark.parametrize("missing", ["diffusers", "transformers", "av"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    extra = "video" if missing == "av" else "wan"
    with pytest.raises(ValueError, match=rf'pip install "forcing\[{extra}\]"'):
        command.run([str(tmp_path / "all")], Console())
    assert not any(tmp_path.iterdir())


def test_the_command_writes_both_and_says_what_next(folder, tmp_path, capsys):
    target = tmp_path / "deep" / "all"
    assert command.run([str(target)], Console(soft_wrap=True, markup=False, highlight=False)) == 0
    assert contents(target / "pipeline") == contents(folder)
    assert {path.name for path in target.iterdir()} == {"pipeline", "videos"}
    said = capsys.readouterr().out
    prompt = (target / "videos" / "prompts.txt").read_text().splitlines()[0]
    for text in (
        f"forcing encode {target}/videos --model {target}/pipeline --out {target}/latents --size 96x64 --frames 9",
        f"--model {target}/pipeline --data {target}/latents --run {target}/run --steps 5 --batch 2",
        f'forcing generate --model {target}/pipeline --prompt "{prompt}" --size 96x64 --frames 9',
        f'--model {target}/run/wan-ar/world --image {target}/videos/start.png --prompt "{prompt}" --frames 9',
    ):
        assert text in said


def test_nothing_is_left_where_it_fails(tmp_path, monkeypatch):
    def fail(*_, **__) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(made, "save_wan", fail)
    for make in (fixture, lambda path: command.run([str(path)], Console())):
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "all")
        assert not any(tmp_path.iterdir())
