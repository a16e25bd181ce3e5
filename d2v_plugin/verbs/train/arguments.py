"""The command line as fairseq2 reads it: numbers that were measured or depend on the length of the run are written out."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.plain_yaml import read_yaml
from d2v_plugin.core.remote import place
from d2v_plugin.core.shipped import find_shipped
from d2v_plugin.data.log_mel import LogMelConfig
from d2v_plugin.data.preparation.common import REPORT
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.verbs.recipe_files import look_up, merge, nest
from d2v_plugin.verbs.train.fitting import Fitted, ShareError
from d2v_plugin.weights.run_folder import RunFolder

_MEASURED: Final = "report"
_PATH: Final = "dataset.config_overrides.path"
_SPECTROGRAM: Final = "model.config_overrides.spectrogram"
_STATISTICS: Final = {
    **{f"task.config.image.{name}": (name,) for name in ("mean", "std")},
    **{f"{_SPECTROGRAM}.log_mel_{name}": ("log_mel", name) for name in ("mean", "std")},
}


def complete_arguments(args: Namespace, recipe_steps: object) -> tuple[Namespace, list[str]]:
    """Put numbers of the dataset's report in the place of the word ``report``, and fit settings that count updates to the run.

    :param args: fairseq2's parsed command line, bases resolved; a copy is returned.
    :param recipe_steps: see :class:`Fitted`.
    :returns: also what was read or changed, in sentences.
    :raises RecipeError: a share is none, or a number was not measured, or is not the one that the run began with.
    """
    overrides = args.config_overrides or []
    config = merge(overrides)
    measured = {key: _read_statistic(config, key) for key in _STATISTICS if look_up(config, key) == _MEASURED}
    if measured and args.output_dir is not None:
        _check_began_alike(measured, RunFolder(args.output_dir).config)
    try:
        fitted = Fitted(config, recipe_steps)
    except ShareError as ex:
        raise RecipeError(str(ex)) from None
    notes = [f"`{key}` is {value}, as {look_up(config, _PATH)}/{REPORT} says." for key, value in measured.items()]

    return Namespace(**vars(args) | {"config_overrides": [*overrides, nest(measured | fitted.changes)]}), notes + fitted.notes


def _read_statistic(config: Mapping[str, Any], key: str) -> Any:
    """What ``fairseq2 recipe manifest`` measured of the dataset."""
    folder = look_up(config, _PATH)
    if not isinstance(folder, str | Path):
        raise RecipeError(f"`{key}` is `{_MEASURED}`, that of the dataset in `{_PATH}`, but none is named there; write numbers.")
    path = find_shipped(place(folder)) / REPORT
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError, TypeError) as ex:
        raise RecipeError(f"`{key}` is `{_MEASURED}`, but {path} cannot be read: {type(ex).__name__}: {ex}.") from None
    names = _STATISTICS[key]
    if (value := look_up(facts, ".".join(names))) is None:
        raise RecipeError(
            f"`{key}` is `{_MEASURED}`, but {path} has no `{'.'.join(names)}`; run `fairseq2 recipe manifest` again."
        )
    if "log_mel" in names:
        _check_bands(config, facts["log_mel"], path)

    return value


def _check_bands(config: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Statistics are those of one kind of spectrogram."""
    create, own = ARCHS.get(look_up(config, "model.arch")), look_up(config, _SPECTROGRAM)
    default = (None if create is None else create().spectrogram) or LogMelConfig()
    for field in fields(LogMelConfig):
        wanted = own.get(field.name, getattr(default, field.name))
        if wanted != found.get(field.name):
            raise RecipeError(
                f"{path} has statistics of spectrograms with `{field.name}` {found.get(field.name)}, but `{_SPECTROGRAM}` has "
                f"{wanted}; measure with `fairseq2 recipe manifest audio --num-mels N --sample-rate N`, or write numbers."
            )


def _check_began_alike(measured: Mapping[str, Any], path: Path) -> None:
    """A run that goes on sees its inputs scaled as before."""
    if not path.is_file():
        return
    began = read_yaml(path)
    for key, value in measured.items():
        if (before := look_up(began, key)) not in (None, value):
            raise RecipeError(
                f"`{key}` is `{_MEASURED}`, which is {value} now, but {path} says that the run began with {before}: write "
                "that to go on, or choose another output directory."
            )
