"""Replayed passes are passes: the copies in and out of recorded memory lose and mix nothing. CUDA needs a GPU."""

import shutil
from dataclasses import replace

import pytest
import torch
from engine_toys import Changed, setup, told, world
from test_schedule import serve
from test_session import close, plainly, sizes

from forcing.engine.graphs import Graphs, by_hand, compiled, on_cuda
from forcing.engine.schedule import Engine
from forcing.layout import Past, after, full, teacher_forced


@sizes
@pytest.mark.parametrize("plan", ["1 step", "2 steps"])
@pytest.mark.parametrize("policy", ["merge", "eager"])
def test_replayed_passes_show_the_same(double, plan, chunk, window, sink, policy):
    made, shown, runs = setup(world(), plan, chunk, window, sink), {}, []
    model = made.world.model
    engine = Engine(made, sessions=2, policy=policy, recorder=by_hand)
    engine.warm()
    recorded = len(engine.model)
    assert recorded == 2 * (3 if chunk + sink < window else 0) or chunk == window
    engine.model.model = Changed(model, lambda model, *args: runs.append(args[0].shape) or model(*args))
    viewers = [told(chunk, seed, switch=chunk * (window + 2)) for seed in range(2)]
    sessions = [engine.open(listen, seed=seed) for seed, listen in enumerate(viewers)]
    serve(engine, 90, shown)
    assert len(engine.model) == recorded
    engine.model.model = model
    for seed, session in enumerate(sessions):
        out = torch.cat(shown[session])
        assert len(out) > 2 * window and close(out, plainly(made, viewers[seed], len(out), seed))
    # memory that another session leaves is used again
    engine.close(sessions[0])
    again, shown = engine.open(viewers[0], seed=0), {}
    serve(engine, 60, shown)
    out = torch.cat(shown[again])
    assert len(out) > window and close(out, plainly(made, viewers[0], len(out), 0)) and len(engine.model) == recorded


def test_most_passes_of_a_full_window_are_replayed(double):
    made, runs = setup(world(), "2 steps", 1, 5, 1), []
    model = made.world.model
    engine = Engine(made, sessions=1, policy="merge", recorder=by_hand)
    engine.warm()
    engine.model.model = Changed(model, lambda model, *args: runs.append(1) or model(*args))
    for one in engine.model._known.values():
        replay = one.replay
        one.replay = lambda replay=replay: runs.append("replayed") or replay()
    engine.open(told(1))
    serve(engine, 100, {})
    assert runs.count(1) == 100 and runs.count("replayed") > 85


def test_guidance_and_batches_go_past_the_recorder(double):
    made, shown = setup(world(), "2 steps", guidance=2.0), {}
    engine = Engine(made, sessions=2, batch=2, recorder=by_hand)
    engine.warm()
    sessions = [engine.open(told(1, seed), seed=seed) for seed in range(2)]
    serve(engine, 30, shown)
    for seed, session in enumerate(sessions):
        out = torch.cat(shown[session])
        assert close(out, plainly(made, told(1, seed), len(out), seed))


def test_without_recording_it_is_the_model(double):
    made, shown = setup(world(), "1 step"), {}
    engine = Engine(made, recorder=by_hand)
    session = engine.open(told(1))
    serve(engine, 10, shown)
    assert len(engine.model) == 0 and isinstance(engine.model, Graphs)
    assert close(torch.cat(shown[session]), plainly(made, told(1), 10))


def test_a_fork_is_replayed_too_and_nothing_said_is_kept(double):
    made, runs, shown = setup(world(), "2 steps", 1, 5, 1), [], {}
    engine = Engine(made, sessions=2, policy="merge", recorder=by_hand)
    engine.warm()
    one = engine.open(told(1))
    serve(engine, 41, shown)
    other = engine.fork(one, told(1))
    serve(engine, 4, shown)
    engine.close(one)
    for recorded in engine.model._known.values():
        replay = recorded.replay
        recorded.replay = lambda replay=replay: runs.append(1) or replay()
    serve(engine, 40, shown)
    assert len(runs) == 40 and other.frame > 30
    engine.close(other)
    assert not any(recorded.said for recorded in engine.model._known.values())
    assert close(torch.cat(shown[one]), plainly(made, told(1), len(shown[one])))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_show_the_same(double):
    made, shown = setup(world(), "2 steps", 1, 4), {}
    listen = told(1, switch=6)
    expected = plainly(made, listen, 12)
    engine = Engine(replace(made, world=replace(made.world, model=compiled(made.world.model))))
    engine.warm()
    session = engine.open(listen)
    serve(engine, 60, shown)
    assert torch.allclose(torch.cat(shown[session])[:12], expected, rtol=0, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_on_a_gpu_are_the_times():
    here = torch.device("cuda", 0)
    for layout in (full(3), after(Past(0, 2**24, (), {}), 3), teacher_forced(4, 2)):
        assert torch.equal(layout.on(here).cpu(), layout.times) and layout.on(here).device == here


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_show_the_same():
    here = world()
    here.model.cuda()
    made, shown = setup(here, "2 steps", 1, 5, 1), {}
    engine, eager = Engine(made, sessions=1, recorder=on_cuda()), Engine(made, sessions=1)
    engine.warm()
    for each in (engine, eager):
        session = each.open(told(1))
        serve(each, 60, shown)
    (one, two) = (torch.cat(latents)[:20] for latents in shown.values())
    assert session is not None and torch.allclose(one, two, rtol=0, atol=1e-3)
