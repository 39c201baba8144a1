"""Wan's weights from and to the files that people publish."""

from forcing.convert.wan import Form, Written, convert_wan, load_wan, save_wan

__all__ = ["Form", "Written", "convert_wan", "load_wan", "save_wan"]
