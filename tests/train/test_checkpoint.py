"""Checkpoints are complete or absent, and say so when they cannot be used."""

import json
from dataclasses import replace

import pytest
import torch
from toys import contents, shrunk, silent, starts, toy_material, toy_world

from forcing.stages.diffusion import TeacherForcing
from forcing.train import checkpoint
from forcing.train.checkpoint import CheckpointError
from forcing.train.log import Journal, read
from forcing.train.run import _begin, train

FILES = ("models.safetensors", "optimizers.safetensors", "state.json")


@pytest.fixture(scope="module")
def data():
    return toy_material()


@pytest.fixture
def trained(data, tmp_path):
    """A finished run: its folder, its recipe, and a function that runs it again."""
    recipe = shrunk("ar", data, save=2)

    def again(**changes):
        console = silent()
        train(replace(recipe, **changes), tmp_path, starts(data), data, console)
        return console.file.getvalue()

    again()
    return tmp_path, recipe, again


@pytest.mark.parametrize(("keep", "left"), [(1, [6]), (2, [5, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_the_newest_few_are_kept(data, tmp_path, keep, left):
    train(shrunk("ar", data, save=1, keep=keep), tmp_path, starts(data), data, silent())
    assert sorted(contents(tmp_path / "checkpoints")) == [f"step-{n:08d}/{name}" for n in left for name in FILES]


def test_half_a_checkpoint_is_a_draft_and_is_ignored(trained):
    folder, _, again = trained
    before = contents(folder)
    draft = folder / "checkpoints" / ".step-00000009.tmp"
    draft.mkdir()
    (draft / "state.json").write_bytes(b"half")
    assert checkpoint.latest(folder / "checkpoints").name == "step-00000006"
    assert "continuing from step 6 of 6" in again()
    assert {name: file for name, file in contents(folder).items() if ".tmp" not in name} == before


def test_the_next_checkpoint_sweeps_drafts_away(data, tmp_path):
    recipe = shrunk("ar", data)
    (tmp_path / ".step-00000001.tmp").mkdir(parents=True)
    (tmp_path / ".step-00000001.tmp" / "models.safetensors").write_bytes(b"half")
    checkpoint.save(_begin(recipe, starts(data)), recipe, tmp_path, 2)
    assert sorted(contents(tmp_path)) == [f"step-00000000/{name}" for name in FILES]


@pytest.mark.parametrize("harm", ["cut", "gone", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_says_which_and_what_to_do(trained, name, harm):
    folder, _, again = trained
    path = folder / "checkpoints" / "step-00000006"
    if harm == "gone":
        (path / name).unlink()
    else:
        (path / name).write_bytes((path / name).read_bytes()[: 200 if harm == "cut" else 0])
    with pytest.raises(
        CheckpointError, match=r"step-00000006 cannot be read .*delete it to continue from the one before"
    ):
        again()
    assert path.exists()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert "continuing from step 4 of 6" in again()


def test_another_format_is_refused(trained):
    folder, _, again = trained
    path = folder / "checkpoints" / "step-00000006" / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1"):
        again()


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("steps", 7), ("clip", 0.5), ("stage", TeacherForcing(1, 4.0)), ("batch", 5)]
)
def test_another_recipe_in_the_same_folder_is_refused_by_name(trained, field, value):
    _, _, again = trained
    with pytest.raises(CheckpointError, match=rf"step-00000006 was made by a different recipe \(differs in: {field}\)"):
        again(**{field: value})


@pytest.mark.parametrize("name", ["ar", "cd"])
def test_another_start_is_refused_by_name(data, tmp_path, name):
    recipe, before = shrunk(name, data), starts(data)
    start = recipe.roles["student"].start
    train(recipe, tmp_path, before, data, silent())
    with pytest.raises(
        CheckpointError, match=rf"step-00000006 was trained from another {start} .*delete {tmp_path} to"
    ):
        train(recipe, tmp_path, {**before, start: toy_world(data, start, seed=9)}, data, silent())


def test_another_recording_is_refused(data, tmp_path):
    recipe = shrunk("base", data)
    train(recipe, tmp_path, {}, data, silent())
    with pytest.raises(CheckpointError, match="was trained from another recording"):
        train(recipe, tmp_path, {}, replace(data, digest="another"), silent())


def test_a_checkpoint_that_does_not_name_its_sources_may_go_on(trained):
    folder, _, again = trained
    path = folder / "checkpoints" / "step-00000006" / "state.json"
    document = json.loads(path.read_text())
    assert document["sources"].keys() == {"base", "recording"}
    del document["sources"]
    path.write_text(json.dumps(document))
    assert "continuing from step 6 of 6" in again()


def test_how_often_a_run_saves_may_change(trained):
    _, _, again = trained
    assert "continuing from step 6 of 6" in again(save=3, log=2, keep=1)


def test_loading_puts_back_every_number(data, tmp_path):
    recipe = shrunk("dmd-2step", data)
    train(recipe, tmp_path, starts(data), data, silent())
    state = _begin(recipe, starts(data))
    checkpoint.load(state, checkpoint.latest(tmp_path / "checkpoints"), recipe)
    assert state.step == 6
    checkpoint.save(state, recipe, tmp_path / "again", 1)
    again = contents(tmp_path / "again")
    assert again == contents(tmp_path / "checkpoints") and len(again) == 3
    frozen = starts(data)["base"].model
    assert all(
        torch.equal(a, b) for a, b in zip(state.models["teacher"].parameters(), frozen.parameters(), strict=True)
    )


def test_a_journal_forgets_what_its_checkpoint_does_not_know(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    for step in range(1, 6):
        journal.write(step, {"loss": step / 10})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # the line that a kill cut short
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]
    Journal(path, 3).write(4, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read(path)] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 9.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
