"""Datasets: a folder with one manifest per split (``train.tsv``, ``valid.tsv``, …)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from fairseq2.recipe.error import DatasetTypeNotValidError, RecipeError, SplitNotKnownError
from torch import Tensor
from typing_extensions import Self

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.remote import place
from d2v_plugin.core.shipped import find_shipped
from d2v_plugin.data.labels import LabelSet, sort_labels
from d2v_plugin.data.lines import read_content
from d2v_plugin.data.manifest import Manifest, check_finished
from d2v_plugin.data.manifest_text import Columns
from d2v_plugin.data.mixture import JoinedManifest
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.text import SENTENCEPIECE_FILE, Vocabulary, hash_tokenizer


@dataclass(kw_only=True)
class DatasetPart:
    """One of several datasets."""

    path: Path = Path()
    """As ``path`` of a single dataset."""

    weight: float | None = None
    """How many samples are drawn of it (of sound: batches), relative to the others; None for all = as many as it has."""


@dataclass(kw_only=True)
class ManifestConfig:
    """Settings of all dataset families."""

    path: Path = Path()
    """The folder with the manifests; relative to where the run is started, or one that came with the package."""

    parts: list[DatasetPart] = field(default_factory=list)
    """Several such folders in place of ``path``, drawn by weight and read as one."""

    check_files: bool = True
    """Whether to look for every file that is named when the dataset is opened."""


class ManifestDataset:
    """The splits of a dataset."""

    columns: ClassVar[Columns]

    parts: Sequence[Self] = ()
    """The datasets that it is joined of; none = it is one."""

    def __init__(self, path: Path, splits: Mapping[str, Manifest]) -> None:
        self.path = path
        self.splits = splits

    @classmethod
    def open(cls, config: ManifestConfig) -> Self:
        """Open all manifests of a folder.

        :raises RecipeError: there are none.
        :raises ManifestError: lines of them are wrong; names them all. Or they do not belong together.
        """
        if config.parts:
            return cls._join(config)
        folder = find_shipped(place(config.path))
        try:
            check_finished(folder)
            paths = sorted(folder.glob("*.tsv"))
        except OSError as ex:
            raise RecipeError(f"`dataset.config_overrides.path`: {ex.filename}: {ex.strerror}.") from None
        if not paths:
            raise RecipeError(
                f"`dataset.config_overrides.path` is `{place(config.path)}` (here: {folder.absolute()}), which holds no manifest "
                "(train.tsv, valid.tsv, …). Write one with `fairseq2 recipe manifest`."
            )
        problems = Problems()
        splits = {path.stem: Manifest(path, cls.columns, problems, check_files=config.check_files) for path in paths}
        problems.raise_if_any()

        return cls(folder, splits)

    @classmethod
    def _join(cls, config: ManifestConfig) -> Self:
        weights = [part.weight for part in config.parts]
        given = [weight for weight in weights if weight is not None]
        if len(given) not in (0, len(weights)) or not all(0.0 < weight < float("inf") for weight in given):
            raise RecipeError(
                f"`dataset.config_overrides.parts` needs a positive `weight` for each dataset or for none, but has {weights}."
            )
        parts = [cls.open(replace(config, path=part.path, parts=[])) for part in config.parts]
        splits = {}
        for name in dict.fromkeys(name for part in parts for name in part.splits):
            found = [(part.splits[name], part) for part in parts if name in part.splits]
            missing = [part.path for part in parts if name not in part.splits]
            splits[name] = JoinedManifest([split for split, _ in found], given or None, missing)

        joined = cls(parts[0].path, splits)
        joined.parts = parts
        return joined

    def split(self, name: str) -> Manifest:
        """:raises SplitNotKnownError: there is no such manifest."""
        if name not in self.splits:
            raise SplitNotKnownError(str(self.path), name, sorted(self.splits))
        return self.splits[name]

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, by class index: as declared, else all labels of all splits, sorted.

        :raises ManifestError: the splits declare different classes.
        """
        if self.parts:
            names = {tuple(part.class_names): part.path for part in self.parts if part.class_names}
            if len(names) > 1:
                first, other = list(names.values())[:2]
                raise ManifestError(f"{first} and {other} have different classes; declare the same `#classes` in both.")
            return [name for classes in names for name in classes]
        declared = {tuple(split.declared_classes) for split in self.splits.values() if split.declared_classes is not None}
        if len(declared) > 1:
            raise ManifestError(f"The manifests in {self.path} declare different `#classes`; they must be the same.")
        if declared:
            return list(declared.pop())
        return sort_labels(label for split in self.splits.values() for label in split.distinct("label"))

    def read_labels(self, split: str, known: LabelSet | None = None) -> Tensor:
        """(rows,) int64: the class index of each sample of a split.

        :param known: the classes of a trained model; None = those of this dataset.
        :raises RecipeError: samples have no label.
        :raises ManifestError: labels are not known; names them all.
        """
        manifest = self.split(split)
        indices = (LabelSet(self.class_names) if known is None else known).indices
        labels = [manifest.text("label", row) for row in range(len(manifest))]
        if None in labels:
            row = labels.index(None)
            raise RecipeError(
                f"{manifest.path} has {labels.count(None):,} samples without a label (the first on line "
                f"{manifest.place_of(row)[1]}), but the split `{split}` is to be read with labels."
            )
        problems = Problems()
        for row, label in enumerate(labels):
            if label not in indices:
                problems.add(*manifest.place_of(row), f"the label `{label}` is none of the {len(indices)} known")
        problems.raise_if_any()

        return torch.tensor([indices[label] for label in labels if label is not None])


DatasetT = TypeVar("DatasetT")


def expect_dataset(dataset: object, kls: type[DatasetT]) -> DatasetT:
    """:raises DatasetTypeNotValidError: the recipe opened a dataset of another family than its task reads."""
    if not isinstance(dataset, kls):
        raise DatasetTypeNotValidError(type(dataset), kls, section_name="dataset")
    return dataset


class ImageManifest(ManifestDataset):
    """Images, with optional labels."""

    columns = Columns(names=("path", "label"))


class AudioManifest(ManifestDataset):
    """Recordings, or segments of them, perhaps with labels, transcripts or tags; fairseq's TSV (path, size) as it is."""

    columns = Columns(
        names=("path", "size", "label", "start", "rate", "mean", "variance", "tags", "speaker"),
        required=("path", "size"),
        integers=("size", "start", "rate"),
    )


def check_vocabulary(manifest: Manifest, vocabulary: Vocabulary) -> None:
    """:raises ManifestError: the ids of a manifest were made with another vocabulary."""
    if manifest.declared_vocabulary not in (None, vocabulary.tokenizer):
        raise ManifestError(
            f"{manifest.path} was written with another vocabulary than the one beside it; make both with the same tokenizer, or "
            "remove the manifest."
        )


class TextManifest(ManifestDataset):
    """Runs of token ids: shards to train on, or labelled samples."""

    columns = Columns(names=("path", "tokens", "label"), required=("path", "tokens"), integers=("tokens",))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """:raises RecipeError: the folder has none, or manifests were written with another one."""
        vocabulary = Vocabulary.load(self.path)
        tokenizers = {(part.vocabulary.size, part._find_tokenizer()): part.path for part in self.parts}
        if len(tokenizers) > 1:
            first, other = list(tokenizers.values())[:2]
            raise RecipeError(f"{first} and {other} have different vocabularies; make both with the same --tokenizer.")
        for split in self.splits.values():
            check_vocabulary(split, vocabulary)
        return vocabulary

    def _find_tokenizer(self) -> str | None:
        model = self.path / SENTENCEPIECE_FILE
        return self.vocabulary.tokenizer or (hash_tokenizer(read_content(model)) if model.is_file() else None)


@dataclass(kw_only=True)
class MultimodalConfig:
    """Settings of the dataset family ``multimodal_manifest``."""

    audio: ManifestConfig | None = None
    """Where the manifests of recordings are; None = there are none."""

    image: ManifestConfig | None = None
    """Where the manifests of images are; None = there are none."""

    text: ManifestConfig | None = None
    """Where the manifests of token ids are; None = there are none."""


class MultimodalManifests:
    """One dataset for each of several modalities."""

    def __init__(self, parts: Mapping[Modality, ManifestDataset]) -> None:
        self.parts = parts

    @classmethod
    def open(cls, config: MultimodalConfig) -> Self:
        """Open the datasets of all modalities; errors are those of :meth:`ManifestDataset.open`."""
        families = {Modality.AUDIO: AudioManifest, Modality.IMAGE: ImageManifest, Modality.TEXT: TextManifest}
        parts = {modality: getattr(config, modality.value) for modality in families}
        return cls({modality: families[modality].open(part) for modality, part in parts.items() if part is not None})

    def part(self, modality: Modality) -> ManifestDataset:
        """:raises RecipeError: there is none for this modality."""
        if modality not in self.parts:
            raise RecipeError(f"A task reads {modality.value}, but `dataset.config_overrides.{modality.value}.path` is not set.")
        return self.parts[modality]
