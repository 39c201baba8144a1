"""Letting people in: a gateway without torch, engine processes beside it, and a page."""
