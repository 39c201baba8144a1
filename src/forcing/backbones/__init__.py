"""Networks that meet the `Backbone` protocol."""

from forcing.backbones.tiny import Tiny, TinyConfig
from forcing.backbones.wan import Wan, WanConfig

Network = Tiny | Wan  # what a recipe's backbone builds
NetworkConfig = TinyConfig | WanConfig
