"""All that a run needs to continue exactly: models, optimizers, averages, and the step."""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from forcing.backbones import Network
from forcing.recipe import Optim


@dataclass
class State:
    """`models`: by role, with "<role>_ema" for averages. `optimizers`: of each trained role. `ema`: decay by role.

    recent: the newest of each metric since the journal's last line, as not every role is updated in every step.
    sources: digests of what the run is made from: the worlds its roles start from, and its recording. Frozen models are
    loaded from there again, so a run can only continue from the same.
    """

    models: dict[str, Network]
    optimizers: dict[str, list[Optimizer]]
    ema: dict[str, float]
    step: int = 0
    recent: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def begin(models: dict[str, Network], optims: dict[str, Optim], ema: dict[str, float]) -> "State":
        """A state at step 0. Roles without an optimizer are frozen."""
        models = dict(models)
        for role in ema:
            models[role + "_ema"] = copy.deepcopy(models[role])
        for role, model in models.items():
            model.requires_grad_(role in optims)
        optimizers = {role: optimizers_of(models[role], optim) for role, optim in optims.items()}
        return State(models, optimizers, ema)

    def product(self, role: str = "student") -> Network:
        """What a run is for: the role's average where there is one, else its weights."""
        return self.models.get(role + "_ema", self.models[role])


def optimizers_of(model: nn.Module, optim: Optim) -> list[Optimizer]:
    """Muon on the weight matrices inside blocks and AdamW on the rest, or AdamW on everything."""
    named = list(model.named_parameters())
    hidden = [p for name, p in named if optim.method == "muon" and p.ndim == 2 and name.startswith("blocks.")]
    chosen = {id(p) for p in hidden}
    others = [p for _, p in named if id(p) not in chosen]
    adam_lr = optim.adam_lr if hidden else optim.lr
    made: list[Optimizer] = []
    if hidden:
        made.append(torch.optim.Muon(hidden, lr=optim.lr, weight_decay=optim.weight_decay))
    made.append(torch.optim.AdamW(others, lr=adam_lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, decay: float) -> None:
    """target <- decay target + (1 - decay) source."""
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.lerp_(new, 1 - decay)
