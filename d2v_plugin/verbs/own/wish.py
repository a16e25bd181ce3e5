"""What the user asks for: the words of ``pretrain`` and ``finetune`` that are no settings of the training recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.store import is_url

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
KEYS: Final = ("data", "budget", "modality")


@dataclass(frozen=True)
class Wish:
    """What the user asks for."""

    data: Path | None = None
    """Absolute."""

    seconds: float | None = None
    """Time to train."""

    modality: Modality | None = None

    settings: Sequence[str] = field(default_factory=list)
    """The other words after ``--config``."""

    extensions: Sequence[Path] = field(default_factory=list)
    """Files that register more."""

    def __str__(self) -> str:
        said = [] if self.data is None else [f"data={self.data}"]
        said += [] if self.seconds is None else [f"budget={self.seconds:g}s"]
        said += [] if self.modality is None else [f"modality={self.modality.value}"]
        return " ".join(said)

    def setting(self, key: str) -> str | None:
        """The value that the user gave a setting of the recipe; None = none."""
        values = [word.partition("=")[2] for word in self.settings if word.partition("=")[0] == key]
        return values[-1] if values else None

    @property
    def num_steps(self) -> int | None:
        """``regime.num_steps``, if the user gave it.

        :raises RecipeError: it is no number.
        """
        value = self.setting("regime.num_steps")
        if value is None:
            return None
        if not re.fullmatch(r"[\d_]+", value) or int(value) < 1:
            raise RecipeError(f"`regime.num_steps` must be a number from 1, but is `{value}`.")
        return int(value)


def take_wish(words: Sequence[str], extensions: Sequence[Path] = ()) -> tuple[list[str], Wish]:
    """Take ``data=``, ``budget=`` and ``modality=`` from the values of ``--config``.

    :returns: the other words, and what was asked for.
    :raises RecipeError: a value is not valid.
    """
    kept: list[str] = []
    found: dict[str, str] = {}
    settings: list[str] = []
    is_setting = False
    for word in words:
        if word.startswith("--"):
            is_setting = word == "--config"
        key, equals, value = word.partition("=")
        if is_setting and equals and key in KEYS:
            if key in found:
                raise RecipeError(f"`{key}` is given twice; once is meant.")
            found[key] = value
            continue
        if is_setting and not word.startswith("--"):
            settings.append(word)
        kept.append(word)
    if found.get("modality") not in (None, *(modality.value for modality in Modality)):
        raise RecipeError(f"`modality` must be audio, image or text, but is `{found['modality']}`.")
    if found.get("data") == "":
        raise RecipeError("`data` must be a folder, as in `data=FOLDER`.")
    if is_url(found.get("data", "")):
        raise RecipeError(
            f"`data` is {found['data']}, but must be a local folder; `fairseq2 recipe manifest KIND {found['data']} MANIFESTS` "
            "writes manifests of what is on a store, and `data=MANIFESTS` reads them."
        )
    wish = Wish(
        Path(found["data"]).expanduser().absolute() if "data" in found else None,
        parse_budget(found["budget"]) if "budget" in found else None,
        Modality(found["modality"]) if "modality" in found else None,
        settings,
        extensions,
    )
    if wish.seconds is not None and wish.num_steps is not None:
        raise RecipeError("`budget` and `regime.num_steps` both say how long to train; give one of them.")

    return kept, wish


def parse_budget(text: str) -> float:
    """``90s``, ``30m``, ``2h``, ``1.5d`` in seconds.

    :raises RecipeError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"`budget` must be a time such as 90s, 30m, 2h or 1d, but is `{text}`.")
    return float(found[1]) * _UNITS[found[2]]


def format_seconds(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
