"""Hold on checkpoints while updates are skipped: what comes then may be worth less than what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from typing_extensions import override

from d2v_plugin.training.checkpoints.manager import VerifiedCheckpointManager
from d2v_plugin.training.observers import Observer


@final
class HoldObserver(Observer):
    """Tells the checkpoints whether the last update was skipped: none is written between two intervals then, and none removed."""

    def __init__(self, checkpoints: VerifiedCheckpointManager) -> None:
        self._checkpoints = checkpoints

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        self._checkpoints.is_held = skipped
