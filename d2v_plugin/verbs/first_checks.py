"""Checks of a command before anything heavy is imported: keys, names, types, ranges, files, splits, labels and sample rates.

Importing PyTorch and fairseq2 takes seconds; all this is known before, and told at once. Whether settings fit each other is
checked later, by the classes of the configuration. What cannot be read here is left to them, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.plain_yaml import PlainYamlError, parse_yaml
from d2v_plugin.core.store import is_url
from d2v_plugin.core.text import unknown_name
from d2v_plugin.verbs.known_settings import KnownSettings
from d2v_plugin.verbs.recipe_files import RecipeFileError, look_up, merge, read_whole

_FLAGS: Final = ("--config-file", "--config", "--dump-config", "--no-rich", "--no-exit-on-error", "--checkpoint-dir", "--verbose")
_SUPERVISED: Final = ("classification", "ctc", "audio_tagging")
_COLUMNS: Final = {"audio": ("path", "size", "label"), "image": ("path", "label"), "text": ("path", "tokens", "label")}
_UNFINISHED: Final = "???"


def find_mistakes(words: Sequence[str], verb: str = "train", *, extended: bool = False) -> list[str]:
    """Find what is wrong with a command, as far as it can be known so early; files are those of a training command.

    :param words: its arguments.
    :param extended: as for :class:`KnownSettings`.
    :returns: a sentence for each mistake; none if it cannot be told.
    """
    if any(word.startswith("--") and word.partition("=")[0] not in _FLAGS for word in words):
        return []
    path, settings, has_output = _read_words(words)
    if not has_output and "--dump-config" not in words:
        return []
    try:
        in_file = [] if path is None else read_whole(path)
    except RecipeFileError as ex:
        return [str(ex)]
    overrides = [*map(_nest, settings)]
    config, given = merge([*in_file, *overrides]), merge(overrides)
    source = "" if path is None else f"{path}: "

    mistakes = []
    for place, sentence in KnownSettings(extended=extended).find_mistakes(config, verb):
        is_given = place and look_up(given, ".".join(place)) is not None
        mistakes.append(("--config: " if is_given else source if place else "") + sentence)
    if verb != "train":
        return mistakes
    if "--dump-config" not in words:
        mistakes += [*_check_paths(config), *_check_dataset(config)]
    regime = look_up(config, "regime")
    if mistakes and (regime is None or isinstance(regime, Mapping)) and look_up(config, "regime.num_steps") is None:
        # Alone it is told with what else the classes of the configuration find.
        mistakes.append("`regime.num_steps` must be set: the number of updates to train for.")

    return mistakes


def _read_words(words: Sequence[str]) -> tuple[Path | None, list[str], bool]:
    """The recipe file, the settings of the command line, and whether an output directory is named."""
    path, settings, flag, has_output = None, [], "", False
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--config-file" and equals:
            path, flag = Path(value), ""
        elif word.startswith("--"):
            # What follows a switch is the output directory.
            flag = word if word in ("--config-file", "--config", "--checkpoint-dir") else ""
        elif flag == "--config":
            settings.append(word)
        elif flag:
            path, flag = (Path(word) if flag == "--config-file" else path), ""
        else:
            has_output = True

    return path, settings, has_output


def _nest(setting: str) -> dict[str, Any]:
    """A setting of the command line as fairseq2 reads it; nothing if it would refuse it."""
    key, equals, text = setting.strip().partition("=")
    *sections, name = key.strip().removeprefix("set:").split(".")
    if not equals or key.startswith("del:"):
        return {}
    try:
        value = parse_yaml(text.lstrip())
    except PlainYamlError:
        return {}
    nested: dict[str, Any] = {"_set_": {name: value}}
    for section in reversed(sections):
        nested = {section: nested}

    return nested


def _check_paths(config: Mapping[str, Any]) -> Iterator[str]:
    start = look_up(config, "init.path")
    # A name may be one of a registered model; what has a separator is a path.
    if isinstance(start, str) and "/" in start and not is_url(start) and not Path(start).exists():
        yield f"`init.path` is {start} (here: {Path(start).absolute()}), which does not exist."
    for key in ("dataset.config_overrides.path", *(f"dataset.config_overrides.{name}.path" for name in _COLUMNS)):
        path = look_up(config, key)
        if look_up(config, key.removesuffix("path") + "parts"):
            continue  # in its place, and told when they are opened
        if path == _UNFINISHED:
            yield f"`{key}` must be set: the folder with train.tsv; see manifests/README.md."
        elif isinstance(path, str) and not is_url(path) and not Path(path).is_dir():
            fault = "is no folder" if Path(path).exists() else "does not exist"
            yield f"`{key}` is {path} (here: {Path(path).absolute()}), which {fault}."


def _check_dataset(config: Mapping[str, Any]) -> Iterator[str]:
    """Check the manifests of one modality: whether splits are there, have labels, and the model's sample rate."""
    family, path = look_up(config, "dataset.family"), look_up(config, "dataset.config_overrides.path")
    if look_up(config, "dataset.config_overrides.parts"):
        return
    if family not in tuple(f"{name}_manifest" for name in _COLUMNS) or not isinstance(path, str) or not Path(path).is_dir():
        return
    modality, folder = family.removesuffix("_manifest"), Path(path)
    known = sorted(file.stem for file in folder.glob("*.tsv"))
    if not all(file.is_file() and os.access(file, os.R_OK) for file in folder.glob("*.tsv")):
        return  # told by the reader of manifests
    if not known:
        yield (
            f"`dataset.config_overrides.path` is {folder}, which holds no manifest (train.tsv, …); `fairseq2 recipe pretrain OUT "
            "--config data=FOLDER` writes them from a folder of files, and trains."
        )
        return
    for key, split, needs_labels in _find_splits(config):
        if split not in known:
            yield f"{key}: {unknown_name(f'split of {folder}', split, known)}"
        elif needs_labels and not _has_labels(folder / f"{split}.tsv", modality):
            path = folder / f"{split}.tsv"
            yield f"{key} is `{split}`, but {path} has no labels; name a labelled split, or write them into the manifest."
    if modality == "audio" and look_up(config, "task.config.audio.resample") is not True:
        yield from _check_rates(config, folder, known)


def _find_splits(config: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """The splits that are read: the key, the name, and whether with labels."""
    is_supervised = look_up(config, "criterion.name") in _SUPERVISED
    yield "`task.config.split`", look_up(config, "task.config.split") or "train", is_supervised
    if look_up(config, "probing.probes"):
        yield "`probing.train_split`", look_up(config, "probing.train_split") or "train", True
        yield "`probing.valid_split`", look_up(config, "probing.valid_split") or "valid", True
    splits = look_up(config, "validation.splits")
    if is_supervised:
        for split in ["valid"] if splits is None else splits if isinstance(splits, list) else []:
            yield "`validation.splits`", str(split), True


def _has_labels(path: Path, modality: str) -> bool:
    """Whether any row has a label, also in letter labels beside the manifest; rows without are told when all are read."""
    if modality == "audio" and path.with_suffix(".ltr").exists():
        return True
    columns, rows = _open_table(path, modality)
    # Tags and transcripts are labels, too.
    indices = [index for index, name in enumerate(columns) if name in ("label", "tags")]
    return any(index < len(row) and row[index] for row in rows for index in indices)


def _check_rates(config: Mapping[str, Any], folder: Path, known: Sequence[str]) -> Iterator[str]:
    wanted = str(look_up(config, "task.config.audio.sample_rate") or 16_000)
    for split in dict.fromkeys(split for _, split, _ in _find_splits(config) if split in known):
        columns, rows = _open_table(folder / f"{split}.tsv", "audio")
        if "rate" not in columns:
            continue
        index = columns.index("rate")
        rates = {row[index] for row in rows if index < len(row) and row[index]} - {wanted}
        if rates:
            yield (
                f"{folder / f'{split}.tsv'} has recordings of {', '.join(sorted(rates, key=len))} samples per second, but the "
                f"model takes {wanted}. Set `task.config.audio.resample: true`, or convert them."
            )


def _open_table(path: Path, modality: str) -> tuple[Sequence[str], Iterator[list[str]]]:
    """The columns of a manifest, and its rows."""

    def read() -> Iterator[list[str]]:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            next(lines, "")  # the roots
            for line in lines:
                yield line.rstrip("\r\n").split("\t")

    rows = read()
    columns: Sequence[str] = _COLUMNS[modality]
    for row in rows:
        if row[0] == "#columns":
            columns = row[1:]
        elif not row[0].startswith("#"):
            return columns, _prepend(row, rows)

    return columns, iter(())


def _prepend(first: list[str], others: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from others
