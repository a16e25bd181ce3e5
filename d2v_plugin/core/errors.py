"""Errors that several packages raise."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and everything that is wrong with it."""
