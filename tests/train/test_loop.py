"""The loop: averages, clipping, rates, whose turn it is, and when to give up."""

from dataclasses import dataclass, replace

import pytest
import torch
from toys import FRAMES, shaken, shrunk, starts, toy_material, wild

from forcing.data.clips import Sampler
from forcing.recipe import Optim, Schedule
from forcing.stages import Loss, Update
from forcing.train.loop import Diverged, fit, take
from forcing.train.run import _begin
from forcing.train.state import State, average, optimizers_of


@pytest.fixture(scope="module")
def data():
    return toy_material()


def begun(data, name):
    recipe = shrunk(name, data)
    return recipe, _begin(recipe, starts(data)), Sampler(data.train, recipe.batch, recipe.seed)


def run(recipe, state, source, steps, after=lambda state, metrics: True):
    schedule = Schedule(warmup=1, decay=0.0)
    return fit(recipe.stage, state, source, steps=steps, seed=0, clip=1.0, schedule=schedule, after_step=after)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_an_average_moves_by_exactly_the_decay(decay):
    old, new = wild(1, torch.float64), wild(2, torch.float64)
    expected = [decay * a + (1 - decay) * b for a, b in zip(weights(old), weights(new), strict=True)]
    source = weights(new)
    average(old, new, decay)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-15) for a, b in zip(weights(old), expected, strict=True))
    assert same(weights(new), source) and (decay > 0 or same(weights(old), source))


@pytest.mark.parametrize("name", ["ar", "cd", "dmd-2step"])
def test_the_students_average_follows_it_and_is_the_product(data, name):
    recipe, state, source = begun(data, name)
    decay = recipe.roles["student"].ema
    expected = weights(state.models["student_ema"])
    assert same(expected, weights(state.models["student"]))

    def after(state, metrics):
        if "student/loss" in metrics:  # DMD's student rests on some steps, and so does its average
            for mine, its in zip(expected, weights(state.models["student"]), strict=True):
                mine.mul_(decay).add_((1 - decay) * its)
        theirs = weights(state.models["student_ema"])
        return all(torch.allclose(a, b, rtol=0, atol=5e-7) for a, b in zip(expected, theirs, strict=True))

    assert run(recipe, state, source, 4, after)
    assert state.product() is state.models["student_ema"] and not same(expected, weights(state.models["student"]))
    assert not any(p.requires_grad for p in state.product().parameters())


def test_without_an_average_the_weights_are_the_product(data):
    recipe = shrunk("base", data)
    recipe = replace(recipe, roles={"student": replace(recipe.roles["student"], ema=None)})
    state = _begin(recipe, {})
    assert state.product() is state.models["student"] and "student_ema" not in state.models


def test_frozen_roles_stay_as_they_are_and_trained_ones_move(data):
    recipe, state, source = begun(data, "dmd-2step")
    before = {role: weights(model) for role, model in state.models.items()}
    run(recipe, state, source, 2)
    moved = {role for role, model in state.models.items() if not same(before[role], weights(model))}
    assert moved == {"student", "critic", "student_ema", "critic_ema"}
    assert {role for role, model in state.models.items() if any(p.requires_grad for p in model.parameters())} == {
        "student",
        "critic",
    }


def test_a_role_takes_its_turn_every_so_many_steps(data):
    recipe, state, source = begun(data, "dmd-2step")
    assert recipe.stage.critic_updates == 2
    told = []
    run(recipe, state, source, 6, lambda state, metrics: told.append(set(metrics)) or True)
    turns = ["student/loss" in metrics for metrics in told]
    assert all("critic/loss" in metrics for metrics in told)
    assert sum(turns) == 3 and turns in ([True, False] * 3, [False, True] * 3)


@dataclass(frozen=True)
class Listening:
    """A stage of two updates that notes which clips it is given and which noise it draws."""

    draws: list
    roles = ("student",)

    def updates(self):
        return [Update("student", (self.loss,)), Update("student", (self.loss,))]

    def loss(self, models, batch, rng):
        self.draws.append((batch.latents.numpy().tobytes(), torch.rand(3, generator=rng).numpy().tobytes()))
        return Loss(sum(p.sum() for p in models["student"].parameters()), {})


def test_every_update_of_every_step_has_clips_and_noise_of_its_own(data):
    recipe = shrunk("base", data)
    stage = Listening([])
    for _ in range(2):
        state = _begin(recipe, {})
        source = Sampler(data.train, 4, 0)
        fit(
            stage, state, source, steps=3, seed=0, clip=1.0, schedule=Schedule(), after_step=lambda state, metrics: True
        )
    first, again = stage.draws[:6], stage.draws[6:]
    assert first == again  # a function of (seed, step, update), and of nothing else
    assert len({clips for clips, _ in first}) == len({noise for _, noise in first}) == 6


def test_stopping_and_going_on_changes_nothing(data):
    recipe, whole, source = begun(data, "ar")
    run(recipe, whole, source, 5)
    _, halves, _ = begun(data, "ar")
    assert run(recipe, halves, source, 5, lambda state, _: state.step < 2) is False and halves.step == 2
    assert run(recipe, halves, source, 5) is True and halves.step == 5
    assert same(weights(whole.models["student"]), weights(halves.models["student"]))


@dataclass(frozen=True)
class Slope:
    """A loss with a known gradient: the sum of all weights, `height` times."""

    height: float = 1.0

    def loss(self, models, batch, rng):
        return Loss(self.height * sum(p.sum() for p in models["student"].parameters()), {})


def stepped(data, heights, *, clip, factor=1.0, optim=None):
    recipe = shrunk("base", data)
    state = State.begin({"student": shaken(recipe.backbone.build())}, {"student": optim or Optim("adamw", 0.1)}, {})
    grads = []
    for optimizer in state.optimizers["student"]:
        optimizer.register_step_pre_hook(
            lambda o, *_: grads.extend(p.grad.clone() for g in o.param_groups for p in g["params"])
        )
    update = Update("student", tuple(Slope(height).loss for height in heights))
    batch = Sampler(data.train, 2, 0).batch_at(0, 0)
    metrics = take(update, state, batch, torch.Generator(), clip, factor)
    return state, metrics, torch.cat([grad.flatten() for grad in grads])


def test_losses_add_up_and_gradients_are_clipped(data):
    state, metrics, grad = stepped(data, (1.0, 2.0), clip=1e9)
    assert (grad == 3).all() and torch.allclose(metrics["norm"], 3 * torch.tensor(float(grad.numel())).sqrt())
    assert all(p.grad is None for p in state.models["student"].parameters())
    _, clipped, grad = stepped(data, (1.0, 2.0), clip=0.5)
    assert torch.allclose(grad.norm(), torch.tensor(0.5), rtol=1e-3) and torch.equal(clipped["norm"], metrics["norm"])


def test_rates_are_a_factor_of_their_peak(data):
    state, _, _ = stepped(data, (1.0,), clip=1.0, factor=0.25, optim=Optim("muon", 0.02, 0.004))
    rates = [group["lr"] for optimizer in state.optimizers["student"] for group in optimizer.param_groups]
    assert rates == [0.005, 0.001]


def test_muon_has_the_matrices_of_blocks_and_adamw_all_else(data):
    model = shrunk("base", data).backbone.build()
    muon, adam = optimizers_of(model, Optim("muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in (muon, adam)]
    assert all(name.startswith("blocks.") and name.endswith("weight") and "norm" not in name for name in held[0])
    assert sorted(held[0] + held[1]) == sorted(names.values()) and "head.weight" in held[1]
    (only,) = optimizers_of(model, Optim("adamw"))
    assert sum(len(group["params"]) for group in only.param_groups) == len(names)


@pytest.mark.parametrize("height", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_touched(data, height):
    recipe = shrunk("base", data)
    state = State.begin({"student": shaken(recipe.backbone.build())}, {"student": Optim()}, {})
    before = weights(state.models["student"])
    batch = Sampler(data.train, 2, 0).batch_at(0, 0)
    with pytest.raises(Diverged, match=r"step 0, student: loss -?(nan|inf)"):
        take(Update("student", (Slope(height).loss,)), state, batch, torch.Generator(), 1.0, 1.0)
    assert same(before, weights(state.models["student"])) and batch.latents.shape[1] == FRAMES


def test_a_role_waits_for_its_start(data):
    recipe, state, source = begun(data, "dmd-2step")
    recipe = replace(recipe, stage=replace(recipe.stage, critic_first=3))
    told = []
    run(recipe, state, source, 6, lambda state, metrics: told.append(set(metrics)) or True)
    assert ["student/loss" in metrics for metrics in told] == [False, False, False, True, False, True]
