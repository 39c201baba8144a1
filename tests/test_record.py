"""Recordings: any Gymnasium environment in, the same bytes out, read back as whole aligned episodes."""

import json
import os
import time
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from forcing.data.shards import MANIFEST, Recording, RecordingError, write_shard
from forcing.envs import rooms
from forcing.envs.gym import Record, open_envs, record, replay, same_actions, shrink


class Echo(gymnasium.Env):
    """Its frame tells the last action's effect, the step and the seed; the first action is number `start`."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Discrete(1)

    def __init__(self, effects=(0, 1, 2), start=0, end=None, late=0, frame=None, render_mode=None):
        self.action_space = gymnasium.spaces.Discrete(len(effects), start=start)
        self.effects, self.start, self.end, self.late, self.fixed = effects, start, end, late, frame
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.told, self.steps, self.mark = 0, 0, (seed or 0) % 251
        return 0, {}

    def step(self, action):
        assert self.start <= action < self.start + len(self.effects)
        self.steps += 1
        # The last action has an effect of its own only late in an episode.
        last = action - self.start == len(self.effects) - 1 and self.steps > self.late
        self.told = 1 + (len(self.effects) if last and self.late else self.effects[action - self.start])
        return 0, float(self.told), self.end is not None and self.steps >= self.end, False, {}

    def render(self):
        if self.fixed is not None:
            return self.fixed
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[0, 0] = self.told, self.steps % 251, self.mark
        return frame


class Blind(Echo):
    def __init__(self):
        super().__init__()


class Named(Echo):
    def get_action_meanings(self):
        return ["STAY", "GO", "RUN"]


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The environments of this file, under ids of their own."""
    ids = {"Echo": Echo, "Blind": Blind, "Named": Named}
    for name, kind in ids.items():
        gymnasium.register(f"forcingtest/{name}-v0", kind)
    gymnasium.register("forcingtest/Same-v0", Echo, kwargs={"effects": (0, 1, 0, 2, 1), "start": 3})
    gymnasium.register("forcingtest/Late-v0", Echo, kwargs={"effects": (0, 1, 0), "late": 6})
    gymnasium.register("forcingtest/Short-v0", Echo, kwargs={"end": 5})
    gymnasium.register("forcingtest/Floats-v0", Echo, kwargs={"frame": np.zeros((4, 4, 3))})
    gymnasium.register("forcingtest/Grey-v0", Echo, kwargs={"frame": np.zeros((4, 4), np.uint8)})
    gymnasium.register("forcingtest/Text-v0", Echo, kwargs={"frame": "a frame"})
    yield
    for ident in [ident for ident in gymnasium.registry if ident.startswith("forcingtest/")]:
        del gymnasium.registry[ident]


def echo(**changes) -> Record:
    return replace(Record("forcingtest/Echo-v0", frames=200, seed=5, episode=12, shard=40), **changes)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_actions_lead_to_the_next_frame(tmp_path):
    episodes = Recording.open(record(echo(), tmp_path / "echo")).load()
    assert sum(map(len, episodes)) == 200
    for episode in episodes:
        told, steps, mark = episode.frames[:, 0, 0].T.astype(int)
        assert told[0] == 0 and (told[1:] == 1 + episode.actions[:-1]).all()
        assert (steps == np.arange(len(episode))).all() and (mark == episode.seed % 251).all()
        assert (episode.rewards[:-1] == told[1:]).all() and episode.rewards[-1] == 0
        assert episode.actions[-1] == -1 and (episode.actions[:-1] >= 0).all()
        assert episode.ends[-1] and not episode.ends[:-1].any()
    assert {len(episode) for episode in episodes[:-1]} == {13}


def test_an_environment_may_end_its_episodes(tmp_path):
    recording = Recording.open(record(echo(env="forcingtest/Short-v0"), tmp_path / "short"))
    assert {len(episode) for episode in recording.load()[:-1]} == {6}


def test_keys_are_held(tmp_path):
    def changes(hold: float) -> float:
        spec = echo(hold=hold, frames=3000, episode=299, shard=300)
        episodes = Recording.open(record(spec, tmp_path / str(hold))).load()
        return float(np.mean([(np.diff(episode.actions[:-1]) != 0).mean() for episode in episodes]))

    assert abs(changes(0.0) - 2 / 3) < 0.05 and abs(changes(0.9) - 0.2 / 3) < 0.02


def test_the_same_spec_gives_the_same_bytes(tmp_path):
    spec = Record("rooms", frames=100, seed=3, episode=15, shard=40)
    first, second = (contents(record(spec, tmp_path / name)) for name in "ab")
    assert len(first) >= 4 and first == second
    third = contents(record(replace(spec, seed=4), tmp_path / "c"))
    assert all(third[name] != data for name, data in first.items())


def test_shards_hold_whole_episodes(tmp_path):
    recording = Recording.open(record(echo(), tmp_path / "echo"))
    shards = recording.manifest["shards"]
    assert [shard["frames"] for shard in shards] == [39, 39, 39, 39, 39, 5]
    with np.load(recording.path / shards[1]["file"]) as arrays:
        assert arrays["frames"].dtype == np.uint8 and arrays["frames"].shape == (39, 4, 6, 3)
        assert arrays["actions"].dtype == np.int64 and arrays["rewards"].dtype == np.float32
        assert arrays["ends"].dtype == np.bool_ and arrays["ends"].sum() == 3
        assert np.unique(arrays["episode"]).tolist() == [3, 4, 5]
    rows = recording.episodes()
    assert [row["episode"] for row in rows] == list(range(16))
    assert [row["start"] for row in rows[:4]] == [0, 13, 26, 0]


@pytest.mark.parametrize("holdout", [0.1, 1 / 3, 0.5])
def test_rooms_are_split_by_episode_over_every_layout(tmp_path, holdout):
    spec = Record("rooms", frames=180, seed=0, episode=2, holdout=holdout)
    recording = Recording.open(record(spec, tmp_path / "rooms"))
    train, held = recording.load("train"), recording.load("heldout")
    assert len(train) + len(held) == 60 and len(held) == round(60 * holdout)
    assert {episode.prompt for episode in held} == set(recording.prompts) == set(rooms.LAYOUTS)
    assert recording.actions == rooms.ACTIONS and recording.shape == (56, 56, 3)
    assert not {episode.seed for episode in held} & {episode.seed for episode in train}


def test_no_holdout_and_two_episodes(tmp_path):
    assert Recording.open(record(echo(holdout=0.0), tmp_path / "none")).load("heldout") == []
    assert len(Recording.open(record(echo(frames=26), tmp_path / "two")).load("heldout")) == 1


def test_replay_steps_the_recorded_world(tmp_path):
    for episode in Recording.open(record(Record("rooms", 60, 9, 19), tmp_path / "rooms")).load():
        assert (replay(episode.prompt, episode.seed, episode.actions[:-1]) == episode.frames).all()
    with pytest.raises(ValueError, match="action -1"):
        replay(episode.prompt, episode.seed, episode.actions)


def test_actions_that_are_the_same_are_kept_once(tmp_path):
    recording = Recording.open(record(echo(env="forcingtest/Same-v0"), tmp_path / "same"))
    assert recording.actions == ("3", "4", "6")
    dropped = [(action["name"], action["same_as"]) for action in recording.manifest["dropped"]]
    assert dropped == [("5", "3"), ("7", "4")]
    for episode in recording.load():
        assert (episode.frames[1:, 0, 0, 0] == 1 + episode.actions[:-1]).all()


def test_an_action_that_matters_only_later_is_kept():
    assert same_actions(open_envs("forcingtest/Late-v0")[0], 0, 40) == [0, 1, 2]
    assert same_actions(open_envs("forcingtest/Late-v0")[0], 0, 1) == [0, 1, 0]


def test_actions_have_the_environments_names(tmp_path):
    assert open_envs("forcingtest/Named-v0")[0].names == ["STAY", "GO", "RUN"]
    spec = echo(env="minigrid:MiniGrid-Empty-5x5-v0", size=40)
    recording = Recording.open(record(spec, tmp_path / "empty"))
    assert recording.actions == ("left", "right", "forward", "pickup")
    assert recording.prompts == ("MiniGrid-Empty-5x5-v0",) and recording.shape == (40, 40, 3)
    assert {action["same_as"] for action in recording.manifest["dropped"]} == {"pickup"}


def test_shrink_averages_boxes():
    frame = np.random.default_rng(0).integers(256, size=(12, 20, 3)).astype(np.uint8)
    assert (shrink(frame, 20) == frame).all() and (shrink(frame, 64) == frame).all()
    half = frame.reshape(6, 2, 10, 2, 3).mean((1, 3))
    assert shrink(frame, 10).dtype == np.uint8 and np.abs(shrink(frame, 10) - half).max() <= 0.5
    assert shrink(frame, 7).shape == (4, 7, 3) and shrink(frame, 1).shape == (1, 1, 3)
    assert (shrink(np.full((9, 7, 3), 200, np.uint8), 5) == 200).all()


def test_recording_again_returns_at_once_and_never_overwrites(tmp_path):
    out = record(echo(), tmp_path / "echo")
    before = contents(out)
    began = time.perf_counter()
    assert record(echo(), out) == out and time.perf_counter() - began < 0.1
    with pytest.raises(ValueError, match=r"different recording.*seed 5, not 6"):
        record(echo(seed=6), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        record(echo(), tmp_path / "full")
    with pytest.raises(ValueError, match="is a file"):
        record(echo(), tmp_path / "full" / "notes.txt")
    assert contents(out) == before and contents(tmp_path / "full") == {"notes.txt": b"mine"}
    (out / "shard-00001.npz").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.npz is missing"):
        record(echo(), out)


def test_an_interrupted_recording_leaves_nothing(tmp_path):
    def stop(done: int, total: int) -> None:
        assert total == 200
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(echo(), tmp_path / "echo", stop)
    assert os.listdir(tmp_path) == []
    (tmp_path / "echo").mkdir()
    assert contents(record(echo(), tmp_path / "echo")) == contents(record(echo(), tmp_path / "deep" / "echo"))


def test_progress_counts_frames(tmp_path):
    seen = []
    record(echo(frames=30), tmp_path / "echo", lambda done, total: seen.append((done, total)))
    assert seen == [(13, 30), (26, 30), (30, 30)]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("MiniGrid-FourRoms-v0", "did you mean MiniGrid-FourRooms-v0"),
        ("room", "did you mean rooms"),
        ("nosuchmodule:Thing-v0", "nosuchmodule"),
        ("ALE/Pong-v5", "pip install ale-py"),
        ("not an id", "Malformed"),
        ("Pendulum-v1", r"Box\(.*only Discrete"),
        ("forcingtest/Blind-v0", "does not render RGB"),
        ("forcingtest/Floats-v0", r"float64 \[4, 4, 3\]"),
        ("forcingtest/Grey-v0", r"uint8 \[4, 4\]"),
        ("forcingtest/Text-v0", "renders str"),
    ],
)
def test_what_cannot_be_recorded_is_named(tmp_path, env, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        record(echo(env=env), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "env is ''"),
        ({"frames": 0}, "frames is 0.*at least 1"),
        ({"frames": True}, "frames is True"),
        ({"seed": -1}, "seed is -1"),
        ({"episode": 0}, "episode is 0"),
        ({"size": 0}, "size is 0"),
        ({"shard": 12}, "shard is 12.*needs 13"),
        ({"holdout": 0.6}, r"holdout is 0.6.*0\.\.0.5"),
        ({"hold": 1.0}, "hold is 1.0"),
    ],
)
def test_a_spec_is_checked_before_work_starts(changes, message):
    with pytest.raises(ValueError, match=message):
        echo(**changes)


def test_a_damaged_recording_is_named(tmp_path):
    out = record(echo(), tmp_path / "echo")
    shard, manifest = out / "shard-00002.npz", out / MANIFEST
    whole, table = shard.read_bytes(), manifest.read_text()
    shard.write_bytes(whole[:-7])
    with pytest.raises(RecordingError, match=r"shard-00002.npz has \d+ bytes"):
        Recording.open(out)
    shard.write_bytes(whole[:90] + bytes([whole[90] ^ 255]) + whole[91:])
    with pytest.raises(RecordingError, match=r"shard-00002.npz is damaged"):
        Recording.open(out)
    with pytest.raises(RecordingError, match=r"shard-00002.npz is damaged"):
        Recording.open(out, verify=False).load()
    shard.unlink()
    with pytest.raises(RecordingError, match=r"shard-00002.npz is missing"):
        Recording.open(out)
    shard.write_bytes(whole)
    for text, message in (
        (table[:-20], "cannot be read"),
        ("[]", "not the manifest"),
        (table.replace('"format": 1', '"format": 2'), "format 2.*reads format 1"),
        (table.replace('"shape"', '"shapes"'), "lacks shape"),
        (table.replace('"prompt"', '"prompts"'), "damaged"),
        (table.replace('"length": 13', '"length": 99'), "damaged at episode 0"),
    ):
        manifest.write_text(text)
        with pytest.raises(RecordingError, match=message):
            Recording.open(out)
    manifest.unlink()
    with pytest.raises(RecordingError, match="holds no recording"):
        Recording.open(out)


def test_a_shard_that_does_not_fit_its_manifest_is_named(tmp_path):
    out = record(echo(frames=20, episode=19), tmp_path / "echo")
    shard = out / "shard-00000.npz"
    with np.load(shard) as archive:
        arrays = dict(archive)
    for name, changed, message in (
        ("episode", arrays["episode"] + 1, "does not fit the shards at episode 0"),
        ("frames", arrays["frames"][:, :2], r"holds frames as uint8 \[20, 2, 6, 3\]"),
    ):
        write_shard(shard, arrays | {name: changed})
        table = json.loads((out / MANIFEST).read_text())
        table["shards"][0]["bytes"] = shard.stat().st_size
        (out / MANIFEST).write_text(json.dumps(table))
        with pytest.raises(RecordingError, match=message):
            Recording.open(out, verify=False).load()


def test_frames_are_views_unless_that_wastes_memory(tmp_path):
    recording = Recording.open(record(echo(), tmp_path / "echo"))
    assert all(episode.frames.base is not None for episode in recording.load("train")[:4])
    assert recording.load("heldout")[0].frames.base is None
    with pytest.raises(ValueError, match=r"'test'.*train, heldout"):
        recording.load("test")
