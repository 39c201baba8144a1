"""The only training loop."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from forcing.data import Source
from forcing.data.order import seeded
from forcing.recipe import Schedule
from forcing.stages import Batch, Stage, Update
from forcing.train.state import State, average

Metrics = Mapping[str, Tensor]


class Diverged(RuntimeError):
    """A loss or a gradient is no longer finite."""


def fit(
    stage: Stage,
    state: State,
    source: Source,
    *,
    steps: int,
    seed: int,
    clip: float,
    schedule: Schedule,
    after_step: Callable[[State, Metrics], bool],
) -> bool:
    """Train until `steps`; True when reached, False when `after_step` asked to stop by returning False.

    What a step does is a function of (state, seed, step): stopping and continuing changes nothing.
    """
    while state.step < steps:
        metrics: dict[str, Tensor] = {}
        factor = schedule.at(state.step, steps)
        for n, update in enumerate(stage.updates()):
            if state.step >= update.start and (state.step + 1) % update.every == 0:
                rng = seeded(seed, "step", state.step, n)
                taken = take(update, state, source.batch_at(state.step, n), rng, clip, factor)
                metrics |= {f"{update.role}/{name}": value for name, value in taken.items()}
        state.step += 1
        if not after_step(state, metrics):
            return state.step >= steps
    return True


def take(update: Update, state: State, batch: Batch, rng: torch.Generator, clip: float, factor: float) -> Metrics:
    """One optimizer step of one role. Losses go backward one after another, so their graphs never coexist."""
    model, metrics, total = state.models[update.role], {}, torch.zeros(())
    for loss in update.losses:
        value, extra = loss(state.models, batch, rng)
        value.backward()
        total = total + value.detach()
        metrics |= {name: item.detach() for name, item in extra.items()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if not (torch.isfinite(total) and torch.isfinite(norm)):
        raise Diverged(f"step {state.step}, {update.role}: loss {total.item()}, gradient norm {norm.item()}")
    for optimizer in state.optimizers[update.role]:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if update.role in state.ema:
        average(state.models[update.role + "_ema"], model, state.ema[update.role])
    return {"loss": total, "norm": norm, **metrics}
