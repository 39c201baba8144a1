"""A world is a folder: what is saved generates the same again, and what is not one says why."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from toys import KEYS, PROMPTS, contents, rng, toy_material, toy_world

from forcing.world import FILES, World


@pytest.fixture(scope="module")
def world():
    return toy_world(toy_material(), "cd")


def clip(world, seed=0):
    conds = [world.cond(["day", None], [[key], [-1]], 1) for key in ("left", "right", 2)]
    return torch.cat(list(world.stream(conds, 2, rng(seed))), 1)


def test_a_saved_world_generates_the_same_clips(world, tmp_path):
    world.save(tmp_path / "w", {"note": 3})
    again = World.load(tmp_path / "w")
    assert torch.equal(clip(again), clip(world)) and not torch.equal(clip(again, 1), clip(world))
    assert (again.codec.decode(clip(again)) == world.codec.decode(clip(world))).all()
    assert again.recipe == world.recipe and again.text.prompts == PROMPTS and again.keys.names == KEYS
    assert not again.model.training and not any(p.requires_grad for p in again.model.parameters())
    assert sorted(contents(tmp_path)) == sorted(f"w/{name}" for name in FILES)  # and no draft left behind
    assert json.loads((tmp_path / "w" / "world.json").read_text())["note"] == 3


def test_saving_again_replaces_the_whole_folder(world, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "stray").touch()
    (tmp_path / ".w.tmp").mkdir()
    world.save(tmp_path / "w")
    assert sorted(contents(tmp_path)) == sorted(f"w/{name}" for name in FILES)


def test_weights_may_be_stored_small(world, tmp_path):
    world.save(tmp_path / "w", dtype=torch.bfloat16)
    again = World.load(tmp_path / "w")
    world.save(tmp_path / "large")
    small, large = (len(contents(tmp_path / name)["model.safetensors"]) for name in ("w", "large"))
    assert small < 0.7 * large and {p.dtype for p in again.model.parameters()} == {torch.float32}
    for a, b in zip(again.model.parameters(), world.model.parameters(), strict=True):
        assert torch.equal(a, b.bfloat16().float())


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_that_lacks_a_file_is_no_world(world, tmp_path, missing):
    world.save(tmp_path / "w")
    (tmp_path / "w" / missing).unlink()
    with pytest.raises(ValueError, match=f"w is not a world: {missing} missing"):
        World.load(tmp_path / "w")


def test_other_things_that_are_no_world(world, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a world"):
        World.load(tmp_path / "nowhere")
    world.save(tmp_path / "w")
    path = tmp_path / "w" / "world.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        World.load(tmp_path / "w")
    path.write_text(json.dumps(document | {"recipe": document["recipe"] | {"colour": "red"}}))
    with pytest.raises(ValueError, match=r"has no .*colour"):
        World.load(tmp_path / "w")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("world.json", lambda data: data[:200]),
        ("world.json", lambda data: b"[]"),
        ("world.json", lambda data: b"\xff"),
        ("world.json", lambda data: data.replace(b'"keys"', b'"kyes"')),
        ("world.json", lambda data: data.replace(b'"recipe": {', b'"recipe": null, "other": {')),
        ("world.json", lambda data: data.replace(b'"dim": 16', b'"dim": 32')),
        ("model.safetensors", lambda data: data[:200]),
        ("codec.safetensors", lambda data: b"no codec"),
        ("codec.safetensors", lambda data: data.replace(b'"height"', b'"heigth"')),
    ],
)
def test_a_damaged_world_is_named(world, tmp_path, name, harm):
    world.save(tmp_path / "w")
    path = tmp_path / "w" / name
    before = path.read_bytes()
    path.write_bytes(harm(before))
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=f"the world in {tmp_path / 'w'} is damaged"):
        World.load(tmp_path / "w")


def test_a_world_is_saved_over_another(world, tmp_path):
    for note in (1, 2):
        world.save(tmp_path / "w", {"note": note})
    assert json.loads((tmp_path / "w" / "world.json").read_text())["note"] == 2
    assert sorted(contents(tmp_path)) == sorted(f"w/{name}" for name in FILES)


def test_weights_of_another_network_are_counted(world, tmp_path):
    world.save(tmp_path / "w")
    path = tmp_path / "w" / "model.safetensors"
    path.write_bytes(save({"strange": torch.zeros(2)}))
    count = len(world.model.state_dict()) + 1
    with pytest.raises(
        ValueError, match=rf"{count} weights are missing, too many or of another shape: \S+, \S+, \S+, \.{{3}}"
    ):
        World.load(tmp_path / "w")


def test_a_world_knows_what_it_started_from(world, tmp_path):
    replace(world, starts={"ar": "abc"}).save(tmp_path / "w")
    World.load(tmp_path / "w").save(tmp_path / "again")
    assert World.load(tmp_path / "again").starts == {"ar": "abc"}


def test_a_world_takes_its_own_prompts_and_keys(world):
    cond = world.cond(["night", None], [[0, -1], ["w", "left"]], 2)
    assert cond.static["text"].tolist() == [[0, 1], [0, 0]]
    assert cond.per_frame["action"].tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]
    assert world.cond(["day"], None, 3).per_frame["action"].abs().max() == 0
    with pytest.raises(ValueError, match=r"unknown prompt 'nigth'.*Did you mean 'night'"):
        world.cond(["nigth"], None, 1)
    with pytest.raises(ValueError, match="unknown action 'jump'"):
        world.cond(["day"], [["jump"]], 1)
    for number in (3, -2):
        with pytest.raises(ValueError, match=f"action {number} does not exist"):
            world.cond(["day"], [[number]], 1)
    with pytest.raises(ValueError, match="one action a frame"):
        world.cond(["day"], [[0, 1]], 3)
