"""How often a training clip goes without what it could be told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Withhold:
    """How often a training clip goes without: `actions` alone (the free regime), or everything (guidance's null)."""

    actions: float = 0.35
    everything: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.actions <= 1 or not 0 <= self.everything <= 1 or self.actions + self.everything > 1:
            raise ValueError(f"withheld shares must lie in [0, 1] and not exceed 1 together, got {self}")
