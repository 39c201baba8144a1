"""Latent sets: what was encoded comes back, batches are a function of the step, and damage is named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import CUT, Letters, Pooled, contents, film, models, shoot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forcing.data import Source, parts, sources
from forcing.data.encode import encode
from forcing.data.latents import LatentSampler, LatentsError, LatentSet
from forcing.data.order import indices
from forcing.data.videos import clips

LENGTHS = (5, 10, 13, 16, 7)  # 9 clips of 5 frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return shoot(tmp_path_factory.mktemp("videos"), LENGTHS)


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    """A set whose clips and captions are spread over several files."""
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", 3)
        patch.setattr(parts, "TEXTS", 2)
        patch.setattr(sources, "UNIT", 2)
        encode(videos, out, CUT, models(), holdout=0.3)
    return LatentSet.open(out)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made.path, tmp_path / "copy")


def test_what_was_encoded_comes_back(videos, made):
    assert made.shape == (3, 3, 2, 3) and made.size == (16, 24) and len(made) == 9 and made.has_latents
    assert len(made.manifest["shards"]) == 4 and len(made.manifest["texts"]) == 3
    batch = made.batch(np.arange(9))
    row = 0
    for number, frames in enumerate(LENGTHS):
        for start, pixels in clips(videos / f"v{number}.mp4", CUT):
            expected = Pooled().encode(pixels[None])[0].half().float()
            assert torch.equal(batch.latents[row], expected) and expected.std() > 0.1
            assert made.manifest["clips"][row]["source"] == f"v{number}.mp4"
            assert made.manifest["clips"][row]["start"] == start
            row += 1
        assert row == sum(length // 5 for length in LENGTHS[: number + 1]), frames
    assert batch.latents.dtype == torch.float32


def test_text_is_what_the_encoder_says_of_the_caption(made):
    batch, text = made.batch(np.arange(9)), Letters()
    captions = [f"film number {number}" for number, length in enumerate(LENGTHS) for _ in range(length // 5)]
    length = len(captions[0])
    assert torch.equal(batch.cond.static["text"], text.encode(captions)[:, :length])
    assert torch.equal(batch.uncond.static["text"], text.null(9)[:, :length])
    assert not batch.cond.per_frame


def test_a_long_null_prompt_makes_all_text_as_long(videos, tmp_path):
    class Longer(Letters):
        def null(self, batch):
            return torch.ones(batch, self.length, 4)

    encode(videos, tmp_path / "out", CUT, replace(models(), text=Longer()))
    batch = LatentSet.open(tmp_path / "out").batch(np.arange(2))
    assert batch.cond.static["text"].shape == batch.uncond.static["text"].shape == (2, 40, 4)
    assert batch.cond.static["text"][:, 13:].abs().max() == 0


def test_batches_are_a_function_of_seed_step_and_update(made):
    sampler = LatentSampler(made, 3, seed=7)
    assert isinstance(sampler, Source)
    train = made.split("train")

    def same(a, b):
        return torch.equal(a.latents, b.latents) and torch.equal(a.cond.static["text"], b.cond.static["text"])

    for step in (5, 0, 2):
        for update in (0, 1):
            which = train[indices(7 * 1000 + update, step, 3, len(train))]
            assert same(sampler.batch_at(step, update), made.batch(which))
    assert same(sampler.batch_at(2, 0), LatentSampler(made, 3, seed=7).batch_at(2, 0))
    first = sampler.batch_at(0, 0)
    others = (sampler.batch_at(1, 0), sampler.batch_at(0, 1), LatentSampler(made, 3, seed=8).batch_at(0, 0))
    assert not any(same(first, other) for other in others)


def test_splits_are_whole_videos_and_all_there_is(made):
    split = {name: made.split(name) for name in ("train", "heldout")}
    assert sorted(np.concatenate(list(split.values()))) == list(range(9))
    sources = [{made.manifest["clips"][i]["source"] for i in which} for which in split.values()]
    assert all(sources) and not sources[0] & sources[1]
    with pytest.raises(ValueError, match="unknown split 'test': choose from train, heldout"):
        made.split("test")
    held = LatentSampler(made, 1, 0, "heldout")
    assert any(torch.equal(held.batch_at(0, 0).latents[0], each[0]) for each in made.clips("heldout"))
    assert [caption for _, caption in made.clips("train")] == [
        made.manifest["captions"][made.manifest["clips"][i]["caption"]] for i in split["train"]
    ]


def test_fixed_clips_are_held_out_ones_or_else_of_training(made, videos, tmp_path):
    held = made.split("heldout")
    assert torch.equal(made.fixed(2).latents, made.batch(held[:2]).latents)
    assert len(made.fixed(100).latents) == len(held)
    encode(videos, tmp_path / "none", CUT, models(), holdout=0.0)
    none = LatentSet.open(tmp_path / "none")
    assert len(none.split("heldout")) == 0
    assert torch.equal(none.fixed(2).latents, none.batch(np.arange(2)).latents)
    with pytest.raises(ValueError, match="none has no clips of the split 'heldout'"):
        LatentSampler(none, 1, 0, "heldout")


def test_the_digest_is_of_all_there_is(made, videos, tmp_path):
    assert LatentSet.open(made.path).digest == made.digest
    encode(videos, tmp_path / "other", replace(CUT, fit="pad", size=(24, 24)), models(), holdout=0.3)
    assert LatentSet.open(tmp_path / "other").digest != made.digest


def names(made):
    manifest = made.manifest
    return [manifest["shards"][1]["file"], manifest["texts"][2]["file"], manifest["uncond"]["file"]]


@pytest.mark.parametrize("which", range(3))
def test_damage_is_found_and_named(made, copy, which):
    path = copy / names(made)[which]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LatentsError, match=rf"{path} is damaged: its checksum"):
        LatentSet.open(copy)
    LatentSet.open(copy, verify=False)
    path.write_bytes(data[:-1])
    with pytest.raises(LatentsError, match=f"{path} is not of {len(data)} bytes"):
        LatentSet.open(copy, verify=False)
    path.unlink()
    with pytest.raises(LatentsError, match=f"{path} is missing"):
        LatentSet.open(copy, verify=False)


@pytest.mark.parametrize("which", range(3))
def test_damage_behind_the_check_is_named_when_it_is_read(made, copy, which):
    path = copy / names(made)[which]
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(LatentsError, match=f"{path} is damaged"):
        LatentSet.open(copy, verify=False).batch(np.arange(9))


def test_files_of_another_set_are_named(made, copy):
    document = json.loads((copy / "manifest.json").read_text())
    document["latents"][2] += 1
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(LatentsError, match=r"-0.safetensors holds latents \[1, 3, 3, 2, 3\], not \[1, 3, 3, 3, 3\]"):
        LatentSet.open(copy).batch(np.arange(1))
    document["latents"][2] -= 1
    (copy / "manifest.json").write_text(json.dumps(document | {"length": 5}))
    with pytest.raises(LatentsError, match="holds a caption of 13 tokens, not at most 5"):
        LatentSet.open(copy).batch(np.arange(1))


@pytest.mark.parametrize(
    ("key", "value"), [("index", 3), ("index", -1), ("caption", 5), ("caption", -1), ("split", "test"), ("shard", 9)]
)
def test_a_clip_that_is_nowhere_is_named(copy, key, value):
    document = json.loads((copy / "manifest.json").read_text())
    document["clips"][2][key] = value
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(LatentsError, match=r"manifest.json is damaged(?: at clip 2|: IndexError)"):
        LatentSet.open(copy)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_is_an_error_that_names_it(made, copy, data):
    document = json.loads((made.path / "manifest.json").read_text())
    place = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    other = data.draw(st.sampled_from([None, -1, 0, 99, "x", [], {}, 0.5, True, "gone"]))
    if other == "gone":
        del place[key]
    else:
        place[key] = other
    (copy / "manifest.json").write_text(json.dumps(document))
    try:
        found = LatentSet.open(copy)
        found.batch(np.arange(len(found)))
    except LatentsError as error:
        assert str(copy) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the manifest of a latent set"),
        ('{"format": 1, "spec": {}}', "is not the manifest of a latent set"),
        ('{"format": 2, "kind": "latents"}', "has format 2; this version reads format 1"),
        ('{"format": 1, "kind": "latents"}', "is damaged: KeyError 'latents'"),
    ],
)
def test_other_manifests_are_refused(tmp_path, text, reason):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(LatentsError, match=f"{tmp_path / 'manifest.json'} {reason}"):
        LatentSet.open(tmp_path)


def test_a_folder_without_latents_is_named(tmp_path):
    with pytest.raises(LatentsError, match=f"{tmp_path} holds no latents"):
        LatentSet.open(str(tmp_path))


def test_prompts_alone_are_a_set_without_latents(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\n a  dog \na cat\n", encoding="utf-8-sig")
    encode(tmp_path / "prompts.txt", tmp_path / "out", CUT, models())
    found = LatentSet.open(tmp_path / "out")
    assert not found.has_latents and len(found) == 3 and found.shape == (3, 3, 2, 3) and found.size == (16, 24)
    batch = LatentSampler(found, 3, 0).batch_at(0, 0)
    assert batch.latents.shape == (3, 3, 3, 2, 3) and batch.latents.abs().max() == 0
    told = sorted(batch.cond.static["text"][:, 2, 0].tolist())
    assert told == [ord("c"), ord("c"), ord("d")] and found.manifest["captions"] == ["a cat", "a dog"]


def test_prompts_that_are_the_same_are_held_out_together(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"prompt {number % 50}\n" for number in range(100)))
    encode(tmp_path / "p.txt", tmp_path / "out", CUT, models(), holdout=0.3)
    found = LatentSet.open(tmp_path / "out")
    told = [{found.manifest["clips"][i]["caption"] for i in found.split(name)} for name in ("train", "heldout")]
    assert not told[0] & told[1] and 5 <= len(told[1]) <= 25


def test_the_same_films_give_the_same_bytes(videos, tmp_path):
    for name in "ab":
        encode(videos, tmp_path / name, CUT, models())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert film(3).shape == (3, 16, 24, 3)
