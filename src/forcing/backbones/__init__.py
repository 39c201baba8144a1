"""Networks that meet the `Backbone` protocol."""

from forcing.backbones.tiny import Tiny

Network = Tiny  # what a recipe's backbone builds: a union, once there is a second one
