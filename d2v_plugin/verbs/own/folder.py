"""A folder of the user's: what kind of data it holds, and whether its folders are classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.data.dataset import AudioManifest, ImageManifest
from d2v_plugin.data.files import read_bytes
from d2v_plugin.data.headers import find_kind
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.preparation import audio, image
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.walking import walk
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import VOCABULARY_FILE

_TEXT_SUFFIXES: Final = frozenset({".txt", ".text", ".md", ".jsonl", ".json"})
_KINDS: Final = {
    **dict.fromkeys(audio.SUFFIXES, Modality.AUDIO),
    **dict.fromkeys(image.SUFFIXES, Modality.IMAGE),
    **dict.fromkeys(_TEXT_SUFFIXES, Modality.TEXT),
}
NAMES: Final = {Modality.AUDIO: "recordings", Modality.IMAGE: "pictures", Modality.TEXT: "texts"}

_SMALL_SHARE: Final = 0.05
"""So small a share of other files is an accident: a README among pictures, a few recordings beside the folders."""

_TRAIN_NAMES: Final = frozenset({"train", "training"})
_SPLIT_NAMES: Final = _TRAIN_NAMES | {"val", "valid", "validation", "dev", "test", "testing"}


@dataclass(frozen=True)
class Folder:
    """What the user's data are."""

    path: Path
    """Absolute; a file, if the data are one file of text."""

    modality: Modality

    is_dataset: bool = False
    """Whether it is a dataset with manifests already."""

    files: list[Path] = field(default_factory=list)
    """The files of the modality, below ``path``."""

    has_classes: bool = False
    """Whether the first folders below it are classes."""

    notes: list[str] = field(default_factory=list)
    """What was left out, or could be mistaken."""


def look_at(path: Path, modality: Modality | None = None) -> Folder:
    """Find out what a folder, or a file of text, holds.

    :param modality: what the user says it is; None = the kind of its files tells.
    :raises RecipeError: there is nothing to learn from, or things of several kinds.
    """
    if not path.exists():
        raise RecipeError(f"`data` is {path} (here: {path.absolute()}), which does not exist.")
    path = path.absolute()
    if (path / "train.tsv").is_file():
        return Folder(path, modality or _find_modality_of_dataset(path), is_dataset=True)

    if (split := _find_train_split(path)) is not None:
        below = look_at(split, modality)
        return replace(below, notes=[*below.notes, f"of the splits in {path} `{split.name}` is learned from"])
    files: dict[Modality, list[Path]] = {}
    others: Counter[str] = Counter()
    for root, name in walk([path], Report()):
        kind = _kind_of(Path(name))
        if kind is None:
            others[Path(name).suffix or Path(name).name] += 1
        else:
            files.setdefault(kind, []).append(root / name)
    found = _choose(path, files, others, modality)
    notes = [f"{len(some):,} {NAMES[kind]} beside them are left out" for kind, some in files.items() if kind is not found]
    has_classes, remark = _find_classes(path, files[found]) if found is not Modality.TEXT else (False, None)

    return Folder(path, found, files=files[found], has_classes=has_classes, notes=notes + ([remark] if remark else []))


def _find_train_split(path: Path) -> Path | None:
    """The folder of the training split, where the folders below are splits, not classes."""
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")] if path.is_dir() else []
    is_split = len(folders) > 1 and all(folder.name.lower() in _SPLIT_NAMES for folder in folders)

    return next((folder for folder in folders if is_split and folder.name.lower() in _TRAIN_NAMES), None)


def _kind_of(path: Path) -> Modality | None:
    """The modality of a file, by its name; ``.gz`` is text unless the name before it says something else."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return _KINDS.get(Path(path.stem).suffix.lower(), Modality.TEXT if not Path(path.stem).suffix else None)
    return _KINDS.get(suffix)


def _choose(path: Path, files: dict[Modality, list[Path]], others: Counter[str], wanted: Modality | None) -> Modality:
    counts = {kind: len(some) for kind, some in files.items()}
    listed = " and ".join(f"{count:,} {NAMES[kind]}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))
    if wanted is not None:
        if wanted not in counts:
            raise RecipeError(
                f"`modality` is {wanted.value}, but {path} has no {NAMES[wanted]}{f', only {listed}' if listed else ''}."
            )
        return wanted
    if not counts:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in others.most_common(5)) or "nothing"
        known = ", ".join(sorted(_KINDS))
        raise RecipeError(f"{path} has nothing to learn from; found: {kinds}. What is read: {known}, and .gz of text.")
    first = max(counts, key=lambda kind: counts[kind])
    if sum(counts.values()) - counts[first] > _SMALL_SHARE * sum(counts.values()):
        choices = " or ".join(f"`modality={kind.value}`" for kind in counts)
        raise RecipeError(f"{path} has {listed}; say which of them to learn from: {choices}.")

    return first


def _find_classes(path: Path, files: list[Path]) -> tuple[bool, str | None]:
    """Whether the first folders are classes, and what the user should know about that."""
    names = [file.relative_to(path).parts for file in files]
    sizes = Counter(parts[0] for parts in names if len(parts) > 1)
    beside = len(names) - sum(sizes.values())
    if len(sizes) < 2:
        return False, None
    if max(sizes.values()) < 2 or beside > _SMALL_SHARE * len(names):
        why = f"{beside:,} files lie beside them" if beside else "none has two files"
        return False, f"the {len(sizes):,} folders are not taken as classes, since {why}"

    return True, f"{beside:,} files beside the folders of classes are left out" if beside else None


def _find_modality_of_dataset(path: Path) -> Modality:
    """
    :raises RecipeError: the first row tells nothing.
    """
    if (path / VOCABULARY_FILE).is_file():
        return Modality.TEXT
    for kls, modality in ((AudioManifest, Modality.AUDIO), (ImageManifest, Modality.IMAGE)):
        problems = Problems()
        manifest = Manifest(path / "train.tsv", kls.columns, problems, check_files=False)
        if not problems.messages and len(manifest):
            is_picture = _is_picture(manifest)
            if is_picture is not None:
                return Modality.IMAGE if is_picture else Modality.AUDIO
            if kls is ImageManifest:
                return modality
    raise RecipeError(f"{path / 'train.tsv'} does not tell what its data are; add `modality=audio` or `modality=image`.")


def _is_picture(manifest: Manifest) -> bool | None:
    """Whether the first row is a picture; None = it cannot be read."""
    try:
        return find_kind(read_bytes(manifest.location(0))) is not None
    except OSError:
        return None
