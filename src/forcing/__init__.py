"""Causal Forcing++: from a bidirectional video diffusion model to a real-time, interactive, frame-by-frame one."""

__version__ = "0.1.0"
