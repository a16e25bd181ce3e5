"""Settings that count updates, fitted to the length of the run: shares such as ``10%``, and a recipe that is made shorter.

What fits stays as it is. What does not, since ``regime.num_steps`` was changed alone, is changed with it, and a line says so.
Works on plain data, before it is read into the classes of the configuration, whose fields are whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

from d2v_plugin.verbs.recipe_files import look_up

WARMUP: Final = "lr_scheduler.config.num_warmup_steps"
ANNEALING: Final = "criterion.config.ema.anneal_steps"
FREEZING: Final = "criterion.config.freeze_updates"
_PUBLISH, _VALIDATE, _CHECKPOINT, _KEEP = (
    "regime.publish_metrics_every_n_steps",
    "regime.validate_every_n_steps",
    "regime.checkpoint_every_n_steps",
    "regime.keep_checkpoint_every_n_steps",
)
_OTHERS: Final = (
    *("regime.validate_after_n_steps", "regime.checkpoint_after_n_steps", "regime.publish_metrics_after_n_steps"),
    *("guard.collapse_every_n_steps", "pictures.every_n_steps"),
)
SHARES: Final = (WARMUP, ANNEALING, FREEZING, _PUBLISH, _VALIDATE, _CHECKPOINT, _KEEP, *_OTHERS)
"""The settings that may be a share of the run, such as ``10%``."""

_USUAL_WARMUP: Final = 0.1


class ShareError(ValueError):
    """Shares that are none; the message names each."""


class Fitted:
    """Settings of a run, as they fit its length."""

    def __init__(self, config: Mapping[str, Any], recipe_steps: object = None) -> None:
        """
        :param config: what the user wrote, merged.
        :param recipe_steps: ``regime.num_steps`` of the recipe file, whose other numbers were chosen for it; None = unknown.
        :raises ShareError: a share is none.
        """
        self.changes: dict[str, int] = {}
        """What differs from the configuration, by dotted key."""
        self.notes: list[str] = []
        """A sentence for each setting that was changed since it did not fit; shares are as they were meant."""
        self._config = config
        num_steps = look_up(config, "regime.num_steps")
        if problems := list(_check_shares(config, num_steps)):
            raise ShareError("\n".join(problems))
        if not _is_count(num_steps):
            return
        self._num_steps: int = num_steps
        # Numbers of a recipe are only known to be for its own length.
        self._recipe_steps = recipe_steps if _is_count(recipe_steps) and recipe_steps > num_steps else None
        self._resolve_shares()
        self._fit_schedules()
        self._fit_intervals()

    def _value(self, key: str) -> int | None:
        value = self.changes.get(key, look_up(self._config, key))
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def _change(self, key: str, value: int, why: str) -> None:
        before = self._value(key)
        if value != before:
            self.changes[key] = value
            self.notes.append(f"`{key}` is {value:,} instead of {before:,}: {why}.")

    def _resolve_shares(self) -> None:
        for key in SHARES:
            value = look_up(self._config, key)
            if isinstance(value, str):
                least = 0 if key in (WARMUP, FREEZING) or "_after_" in key else 1
                self.changes[key] = max(least, round(_parse_share(value) * self._num_steps))

    def _fit_schedules(self) -> None:
        warmup, annealing, freezing = (self._value(key) for key in (WARMUP, ANNEALING, FREEZING))
        # A recipe may well end before its own warm-up does; a schedule of no length it cannot have.
        is_impossible = warmup == self._num_steps or look_up(self._config, "lr_scheduler.name") == "polynomial_decay"
        if warmup is not None and warmup >= self._num_steps and (is_impossible or self._recipe_steps is not None):
            share = self._share_of_recipe(warmup)
            fitting = min(round((_USUAL_WARMUP if share is None else share) * self._num_steps), self._num_steps - 1)
            self._change(WARMUP, fitting, self._explain(share, "a warm-up must be shorter than the run"))
        # A teacher that is meant to anneal beyond the end of the recipe still does.
        if annealing is not None and annealing > self._num_steps and (share := self._share_of_recipe(annealing)) is not None:
            self._change(ANNEALING, max(1, round(share * self._num_steps)), self._explain(share, ""))
        if freezing is not None and freezing >= self._num_steps and (share := self._share_of_recipe(freezing)) is not None:
            self._change(FREEZING, round(share * self._num_steps), self._explain(share, ""))

    def _share_of_recipe(self, value: int) -> float | None:
        return None if self._recipe_steps is None or value > self._recipe_steps else value / self._recipe_steps

    def _explain(self, share: float | None, otherwise: str) -> str:
        return (
            otherwise
            if share is None
            else f"the same share of {self._num_steps:,} updates as of the {self._recipe_steps:,} of the recipe"
        )

    def _fit_intervals(self) -> None:
        """Make the intervals multiples of each other, as the trainer wants them."""
        publish, validate, checkpoint, keep = (self._value(key) for key in (_PUBLISH, _VALIDATE, _CHECKPOINT, _KEEP))
        if 0 in (publish, validate, checkpoint, keep):
            return
        longer = [interval for interval in (validate, checkpoint) if interval is not None]
        if publish is not None and longer and publish > min(longer):
            publish = min(longer)
            self._change(_PUBLISH, publish, "metrics are published whenever the model is validated or saved")
        if validate is not None and publish is not None:
            validate = _nearest_multiple(validate, publish)
            self._change(_VALIDATE, validate, f"a multiple of `{_PUBLISH}` ({publish:,})")
        keeps_best = look_up(self._config, "regime.keep_best_n_checkpoints") is not None
        unit, name = (validate, _VALIDATE) if keeps_best and validate is not None else (publish, _PUBLISH)
        if checkpoint is not None and unit is not None:
            checkpoint = _nearest_multiple(checkpoint, unit)
            self._change(_CHECKPOINT, checkpoint, f"a multiple of `{name}` ({unit:,})")
        if keep is not None and checkpoint is not None:
            self._change(_KEEP, _nearest_multiple(keep, checkpoint), f"a multiple of `{_CHECKPOINT}` ({checkpoint:,})")


def _check_shares(config: Mapping[str, Any], num_steps: object) -> Iterator[str]:
    for key in SHARES:
        value = look_up(config, key)
        if not isinstance(value, str):
            continue
        if not re.fullmatch(r"\d+(\.\d+)?%", value) or _parse_share(value) > 1.0:
            yield f"`{key}` is `{value}`, but must be a number of updates or a share of the run from 0% to 100%, such as 10%."
        elif not _is_count(num_steps):
            yield f"`{key}` is {value} of a run whose length is not known: set `regime.num_steps`."


def _parse_share(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _nearest_multiple(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit
