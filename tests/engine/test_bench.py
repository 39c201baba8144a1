"""The benchmark of streaming: it runs end to end, what it counts is right, and what cannot be is named. No timings."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_toys import setup, world

from forcing import cli
from forcing.cli.bench import SIZES
from forcing.cli.setting import shipped
from forcing.codecs.taehv import TAEHV
from forcing.engine.bench import service, speed
from forcing.engine.bench.drawn import random_wan, random_world
from forcing.engine.bench.trial import Trial, ratio
from forcing.engine.graphs import by_hand
from forcing.kit import RandomKit
from forcing.recipes import wan

TINY = ("--wan", "tiny", "--size", "32x16", "--window", "4")
FAST = ("--rounds", "1", "--frames", "1", "--device", "cpu")


def bench(*args: str) -> int:
    return cli.main(["bench", "stream", *args])


def measured(path, *args: str) -> dict:
    assert bench(*FAST, "--out", str(path), *args) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize(("given", "chunks"), [((), [1]), (TINY, [1, 2])], ids=["shipped", "Wan"])
def test_it_measures_everything(given, chunks, tmp_path, capsys):
    sizes = ("--steps", "1", "2", "--chunk", *map(str, chunks), "--sessions", "2")
    found = measured(tmp_path / "b.json", *given, *sizes, "--soak", "0.2")
    rows = {(row["steps"], row["chunk"]): row for row in found["speed"]}
    assert list(rows) == [(steps, chunk) for steps in (1, 2) for chunk in chunks]
    for (steps, _), row in rows.items():
        assert row["passes"] == {"plain": steps + 1, "engine": steps}
        assert row["GFLOP"] > 0 and row["share"] > 0 and row["GFLOP/s product"] > 0
        assert set(row["ratio"]) == {"engine", "decoded"} and set(row["without"]) == set(speed.SAVINGS)
        for part in ("ratio", "without", "ms"):
            assert all(value > 0 for value in row[part].values())
    assert [(row["steps"], row["policy"]) for row in found["latency"]] == [
        (steps, policy) for steps in (1, 2) for policy in ("merge", "eager")
    ]
    for row in found["latency"]:
        assert row["counts"] == {"first": 1, "action": 3, "between": 1}
        assert row["fps"] > 0 and row["first"]["p50"] > 0 and 0 < row["action"]["p50"] <= row["action"]["p95"]
    assert [(row["steps"], row["sessions"], row["batch"]) for row in found["sessions"]] == [
        (steps, count, count) for steps in (1, 2) for count in (1, 2)
    ]
    assert [row["ratio"] for row in found["sessions"]][::2] == [1, 1]
    assert all(0 < row["evenness"] <= 1 for row in found["sessions"])
    assert found["soak"]["drift"] is None and found["soak"]["minutes"][0]["chunks"] > 0
    assert found["machine"]["torch"] == torch.__version__ and found["options"]["seed"] == 0
    assert all(value > 0 for value in found["peak MB"].values())
    assert "orientation" in capsys.readouterr().out and list(tmp_path.iterdir()) == [tmp_path / "b.json"]


def test_pictures_can_be_left_out(tmp_path, capsys):
    found = measured(tmp_path / "b.json", *TINY, "--steps", "1", "--chunk", "1", "--no-decode", "--fps", "200")
    assert set(found["speed"][0]["ratio"]) == {"engine"} and found["latency"][0]["fps"] == 200
    assert "soak" not in found and "decoded" not in capsys.readouterr().out


def test_operations_are_counted():
    # by hand: every matrix product of one frame of one step, settling the frame before in the same pass
    config = SIZES["tiny"]
    made = random_world(wan.recipes(wan.Facts(config))["wan-dmd-4step"], (16, 32))
    here = setup(made, "1 step", window=4)
    row = speed.speed(replace(here, how=replace(here.how, sink=0)), Trial(1, 1), speed.More(decode=False))
    dim, ffn, text, last = config.dim, config.ffn_dim, config.text_len, config.num_layers - 1
    tokens, held = 2, 4  # of a frame; frames that each half of the pass sees
    assert row["tokens"] == tokens

    def block(frames: int) -> int:
        n = frames * tokens
        keys = 2 * (2 * tokens) * dim**2  # of both frames, whatever else is made
        # one masked call: both frames are compared with all that is there
        seen = 2 * n * (held + 1) * tokens * dim
        return keys + 2 * n * dim**2 + seen + 2 * n * dim**2 + 2 * n * text * dim + 2 * n * dim * ffn

    ends = 2 * tokens * 64 * dim + tokens * dim * 64
    assert row["GFLOP"] * 1e9 == 2 * (last * block(2) + block(1) + ends)


def test_recorded_passes_are_measured_too():
    recorded = []
    more = speed.More(False, lambda run: recorded.append(1) or by_hand(run))
    row = speed.speed(setup(world(), "2 steps"), Trial(1, 2), more)
    assert set(row["ratio"]) == {"engine", "graphs"} and len(recorded) == 2  # merged with settling, and alone
    (one, other) = service.latency([(setup(world(), "1 step"), 500.0)], Trial(1, 2), by_hand)
    assert (one["policy"], other["policy"]) == ("merge", "eager")
    rows = service.sharing(setup(world(), "1 step"), (2,), Trial(1, 2), batch=1, policy="merge", recorder=by_hand)
    assert [row["sessions"] for row in rows] == [1, 2]


@pytest.mark.parametrize("name", speed.SAVINGS)
def test_every_saving_can_be_left_out_and_changes_no_frame(double, name):
    made, trial = setup(world(), "2 steps", chunk=2, window=10), Trial()
    whole, less = (
        speed.started(each, trial, ring=ring)
        for each, ring in ((made, True), (replace(made, savings=speed.without(name)), name != "ring"))
    )
    assert less.stream.savings != whole.stream.savings or less.stream.past is not less.ring
    assert whole.ring.held == whole.ring.most
    for _ in range(3):
        assert torch.allclose(whole.next().latents, less.next().latents, rtol=0, atol=1e-9)
    another = speed.started(made, trial, whole)
    assert another.ring.held == whole.ring.held and another.ring.where != whole.ring.where


def test_everything_takes_turns():
    order, ticks = [], []
    trial = Trial(3, 1, tick=ticks.append)
    took = trial.race({name: lambda name=name: order.append(name) for name in "ab"}, torch.device("cpu"))
    assert order == ticks == ["a", "b", "b", "a", "a", "b"] and [len(each) for each in took.values()] == [3, 3]
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2  # of each round, not of the medians


def test_a_soak_is_told_by_the_minute(monkeypatch):
    monkeypatch.setattr(service, "MINUTE", 0.1)
    told = []
    found = service.soak(setup(world(), "1 step"), 0.35, Trial(), policy="auto", tell=told.append)
    assert len(found["minutes"]) == 4 and found["drift"] > 0 and told == sorted(told) and told[-1] >= 0.35
    assert sum(minute["chunks"] for minute in found["minutes"]) == len(told)


def test_a_session_that_fails_ends_the_measurement():
    made = setup(world(), "1 step")
    made.world.model.head.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        service.sharing(made, (2,), Trial(1, 1), batch=2, policy="auto")


def test_a_random_kit(tmp_path):
    kit = RandomKit((16, 32), (4, 8))
    one, other, none = kit.text.encode(["a", "b", None])
    assert one.shape == (4, 8) and not torch.equal(one, other)
    assert torch.equal(kit.text.encode(["b"])[0], other) and torch.equal(kit.text.null(2)[1], none)
    latents = kit.codec.encode(np.zeros((1, 5, 16, 32, 3), np.uint8))
    assert latents.shape == (1, 2, *kit.codec.size(16, 32)) and kit.codec.decode(latents).shape == (1, 5, 16, 32, 3)
    torch.rand(1)
    same, differs = (RandomKit((16, 32), (4, 8), seed).codec.network[1].weight for seed in (0, 1))
    assert torch.equal(kit.codec.network[1].weight, same) and not torch.equal(same, differs)
    # it is the network of the public file
    weights = {f"decoder.{name}": value for name, value in kit.codec.network.state_dict().items()}
    assert len(weights) == 64 and weights["decoder.1.weight"].shape == (256, 16, 3, 3)
    assert [len(weights[f"decoder.{at}.conv.weight"]) for at in (7, 13, 19)] == [256, 2 * 128, 2 * 64]
    torch.save(weights, tmp_path / "tiny.pth")
    again = TAEHV.load(tmp_path / "tiny.pth")
    assert np.array_equal(again.decode(latents), kit.codec.decode(latents))
    with pytest.raises(ValueError, match="17 x 32 pixels"):
        kit.codec.size(17, 32)
    with pytest.raises(ValueError, match="not kept"):
        kit.document()


def test_random_weights_follow_the_seed():
    state = torch.random.get_rng_state()
    one, same, other = (random_wan(SIZES["tiny"], seed=seed, dtype=torch.bfloat16) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.head.head.weight, same.head.head.weight)
    assert not torch.equal(one.head.head.weight, other.head.head.weight)
    assert one.head.head.weight.dtype == torch.bfloat16 and one.head.modulation.dtype == torch.float32
    assert abs(float(one.patch_embedding.weight.detach().float().std()) - 0.02) < 0.002


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--wan", "7B"), "7B"),
        ((*TINY, "--size", "40x16"), "size is 40x16: the width must be a multiple of 16"),
        (("--size", "64x64"), "this codec takes 56 x 56"),
        ((*TINY, "--steps", "0"), "steps is 0"),
        ((*TINY, "--chunk", "0"), "chunk is 0"),
        ((*TINY, "--chunk", "5"), "window is 4 frames"),
        ((*TINY, "--sink", "-1"), "sink must be at least 0"),
        ((*TINY, "--sessions", "1", "0"), "sessions is 0"),
        ((*TINY, "--batch", "0"), "batch is 0"),
        ((*TINY, "--threads", "0"), "threads is 0"),
        ((*TINY, "--rounds", "0"), "rounds is 0"),
        ((*TINY, "--frames", "0"), "frames is 0"),
        ((*TINY, "--seed", "-1"), "seed is -1"),
        ((*TINY, "--fps", "0"), "fps is 0"),
        ((*TINY, "--soak", "-1"), "soak is -1"),
        ((*TINY, "--dtype", "int8"), "dtype is 'int8'"),
        (("--dtype", "bfloat16"), "small world, and computes in float32"),
        ((*TINY, "--graphs", "--device", "cpu"), "--graphs"),
        ((*TINY, "--world", "w"), "--world and --wan exclude each other"),
        (("--world", "nowhere"), "nowhere is not a world"),
        (("--world", str(shipped()["base"])), "base is bidirectional"),
    ],
)
def test_what_cannot_be_is_named(given, said, capsys, tmp_path):
    assert bench("--out", str(tmp_path / "b.json"), *given) == 2
    assert said in capsys.readouterr().err.replace("\n", " ") and not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_file(tmp_path, monkeypatch, capsys):
    def stop(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(service, "sharing", stop)
    out = tmp_path / "b.json"
    assert bench(*TINY, *FAST, "--steps", "1", "--chunk", "1", "--no-decode", "--out", str(out)) == 130
    assert not list(tmp_path.iterdir())
