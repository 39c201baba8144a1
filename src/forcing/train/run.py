"""One recipe, from its starting worlds to its product: resumable at any moment, by running it again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from forcing import files
from forcing.backbones import Network
from forcing.recipe import Recipe
from forcing.train import checkpoint
from forcing.train.compute import Placed
from forcing.train.log import Interrupt, Journal, Meter
from forcing.train.loop import Metrics, fit
from forcing.train.material import Material
from forcing.train.state import State
from forcing.world import World


class Interrupted(RuntimeError):
    """The run was asked to stop. Everything up to here is saved; the same command continues."""


def train(
    recipe: Recipe,
    folder: Path,
    starts: Mapping[str, World],
    data: Material,
    console: Console,
    *,
    device: str = "cpu",
) -> World:
    """Train `recipe` in `folder`, from where it stopped. Returns the product, also saved as `folder`/world.

    The models of `starts` whose roles are frozen are used as they are, not copied.
    """
    source = data.source(recipe)
    state = _begin(recipe, starts, device)
    origin = dict(state.sources)
    state.sources["recording"] = data.digest
    with files.alone(folder):  # a second process would write into the same journal
        path = checkpoint.latest(folder / "checkpoints")
        if path is not None:
            checkpoint.load(state, path, recipe)
            console.print(f"{recipe.name}: continuing from step {state.step} of {recipe.steps}", highlight=False)
        journal = Journal(folder / "metrics.jsonl", state.step)
        with Interrupt() as interrupt, Meter(recipe.name, recipe.steps, state.step, console) as meter:
            after = _after_step(recipe, folder, data, journal, meter, interrupt)
            fit(
                Placed(recipe.stage, device, recipe.precision, recipe.pieces),
                state,
                source,
                steps=recipe.steps,
                seed=recipe.seed,
                clip=recipe.clip,
                schedule=recipe.schedule,
                after_step=after,
            )
        if state.step < recipe.steps:
            raise Interrupted(
                f"{interrupt.asked}: {recipe.name} stopped at step {state.step} of {recipe.steps}, all of it saved in "
                f"{folder}; run the same command to continue"
            )
        world = data.world(state.product().eval().requires_grad_(False), recipe, origin)
        world.save(folder / "world")
        return world


def _begin(recipe: Recipe, starts: Mapping[str, World], device: str = "cpu") -> State:
    models = {role: _model(recipe, role, starts).to(device) for role in recipe.roles}
    optims = {role: how.optim for role, how in recipe.roles.items() if how.optim is not None}
    state = State.begin(models, optims, {role: how.ema for role, how in recipe.roles.items() if how.ema is not None})
    state.sources = {how.start: starts[how.start].digest for how in recipe.roles.values() if how.start is not None}
    return state


def _model(recipe: Recipe, role: str, starts: Mapping[str, World]) -> Network:
    how = recipe.roles[role]
    if how.start is None:
        with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global generator
            torch.manual_seed(recipe.seed)
            return recipe.backbone.build()
    given = starts[how.start]
    if how.optim is None and how.ema is None:
        return given.model
    model = replace(given.model.config, checkpoint=recipe.backbone.checkpoint).build()
    model.load_state_dict(given.model.state_dict())
    return model


def _after_step(
    recipe: Recipe, folder: Path, data: Material, journal: Journal, meter: Meter, interrupt: Interrupt
) -> Callable[[State, Metrics], bool]:
    def after(state: State, metrics: Metrics) -> bool:
        done = state.step == recipe.steps
        state.recent |= {name: value.item() for name, value in metrics.items()}
        if state.step % recipe.log == 0 or done:
            values, state.recent = state.recent, {}
            if state.step // recipe.log % 2 or done:  # the first line too: a short run should show where it is going
                seen = data.watch(state.product(), recipe)
                values |= {f"gauge/{name}": value for name, value in seen.items()}
            journal.write(state.step, values)
            meter.show(
                state.step, "  ".join(f"{name} {value:.3g}" for name, value in values.items() if "norm" not in name)
            )
        stop = interrupt.asked is not None  # read once: what is asked from here on waits for the next step
        if state.step % recipe.save == 0 or done or stop:
            checkpoint.save(state, recipe, folder / "checkpoints", recipe.keep)
        return not stop

    return after
