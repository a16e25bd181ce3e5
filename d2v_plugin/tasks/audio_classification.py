"""Classification of whole recordings: one class for each, or any number of tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.data.labels import LabelKind, LabelSet, RowLabels
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.problems import Problems
from d2v_plugin.tasks.audio import LabelledAudioTask
from d2v_plugin.tasks.audio_settings import LabelledAudioConfig

TAG_SEPARATOR: Final = ";"


@dataclass(kw_only=True)
class AudioClassificationConfig(LabelledAudioConfig):
    """Settings of ``audio_classification``; longer recordings than ``max_sample_size`` are cropped in training."""

    tags: bool = False
    """Read the column ``tags`` (any number of names, with ``;`` in between) instead of ``label`` (one name)."""


class AudioClassificationTask(LabelledAudioTask):
    """Reads an ``audio_manifest`` with classes or tags."""

    crops = True

    config: AudioClassificationConfig

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "tags" if self.config.tags else "classes"

    @override
    def _read_labels(self) -> LabelSet:
        splits = self.dataset.splits.values()
        if not self.config.tags or any(split.declared_classes is not None for split in splits):
            # Which also makes sure that all splits declare the same.
            return LabelSet(self.dataset.class_names)
        found = {tag for split in splits for row in range(len(split)) for tag in _read_tags(split, row)}
        if not found:
            raise RecipeError(
                f"No recording in {self.dataset.path} has tags, but `task.config.tags` is on: write them into a column `tags`."
            )

        return LabelSet(sorted(found))

    @override
    def read_targets(self, split: str) -> RowLabels:
        if not self.config.tags:
            return RowLabels(self.dataset.read_labels(split, self.labels))
        assert self.labels is not None
        problems = Problems()
        tags = _number_tags(self.dataset.split(split), self.labels, problems)
        problems.raise_if_any()
        return RowLabels(tags)


def _number_tags(manifest: Manifest, labels: LabelSet, problems: Problems) -> Tensor:
    """(rows, C)"""
    applies = torch.zeros((len(manifest), len(labels)), dtype=torch.bool)
    for row in range(len(manifest)):
        tags = _read_tags(manifest, row)
        if unknown := [tag for tag in tags if tag not in labels.indices]:
            message = f"tag(s) `{'`, `'.join(unknown)}` are none of the model's {len(labels)} tags"
            problems.add(*manifest.place_of(row), message)
        for tag in tags:
            if tag in labels.indices:
                applies[row, labels.indices[tag]] = True

    return applies


def _read_tags(manifest: Manifest, row: int) -> list[str]:
    return [tag for part in (manifest.text("tags", row) or "").split(TAG_SEPARATOR) if (tag := part.strip())]
