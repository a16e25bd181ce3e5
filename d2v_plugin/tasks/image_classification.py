"""Image classification: the augmentation of supervised training, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Grid
from d2v_plugin.core.ranges import PositiveInt, Probability
from d2v_plugin.core.validation import report
from d2v_plugin.data.batches import ReadBatch
from d2v_plugin.data.image import ImageReadingConfig, augment
from d2v_plugin.data.image_mixing import MixingConfig, erase, mix, one_hot
from d2v_plugin.data.labels import LabelKind, LabelSet, RowLabels
from d2v_plugin.data.order import RowBatch, share_batch
from d2v_plugin.data.rand_augment import RandAugmentConfig, rand_augment
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask


@dataclass(kw_only=True)
class ImageClassificationConfig(ImagePretrainingConfig):
    """Settings of ``image_classification``."""

    batch_size: PositiveInt = 512
    """Images per update, over all ranks."""

    image: ImageReadingConfig = field(default_factory=lambda: ImageReadingConfig(crop_scale=(0.08, 1.0)))
    """How images become tensors."""

    rand_augment: RandAugmentConfig = field(default_factory=RandAugmentConfig)
    """Random changes of shape and colour; ``{num_operations: 0}`` = off."""

    erasing: Probability = 0.0
    """Probability of putting noise into a rectangle of the image; published 0.25."""

    mixing: MixingConfig = field(default_factory=MixingConfig)
    """MixUp and CutMix; off by default. They need an even number of images in every forward pass."""

    @override
    def validate(self) -> ValidationResult:
        channels, is_on = self.image.num_channels, self.rand_augment.num_operations > 0
        return report(
            (
                is_on and channels != 3,
                f"`rand_augment` is for 3 channels, but `image.mean` has {channels}; set `rand_augment: {{num_operations: 0}}`.",
            ),
            base=super().validate(),
        )


class ImageClassificationTask(ImagePretrainingTask):
    """Reads an ``image_manifest`` with labels."""

    config: ImageClassificationConfig

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "classes"

    @override
    def _read_labels(self) -> LabelSet:
        return LabelSet(self.dataset.class_names)

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)
        if share.items % 2 and not config.mixing.is_off:
            raise RecipeError(
                f"`task.config.mixing` mixes pairs of images, but a forward pass of one rank has {share.items}: choose "
                "`batch_size` and `max_batch_size` so that the number is even."
            )
        labels = self.dataset.read_labels(config.split, self.labels)
        fill = [round(255 * value) for value in config.image.mean]

        def transform(image: Tensor, row: int, epoch: int, size: Grid) -> Tensor:
            image = augment(image, config.image, seed, epoch, row, size)
            if not config.rand_augment.num_operations:
                return image
            return rand_augment(image, config.rand_augment, fill, seed=seed, epoch=epoch, sample_id=row)

        read, bad_samples = self._open_images(config.split, transform, RowLabels(labels), seed=seed)

        return self._order(share, gangs, seed, self._regularize(read, seed), bad_samples)

    def _regularize(self, read: ReadBatch, seed: int) -> ReadBatch:
        """Erase and mix what ``read`` returns."""
        config, num_classes = self.config, len(self.labels or ())

        def read_regularized(rows: RowBatch) -> Batch | None:
            batch = read(rows)
            if batch is None or batch.labels is None:
                return batch
            places = find_places(rows.rows.tolist(), batch.ids.tolist())
            keys = [(int(rows.epochs[place]), int(rows.rows[place])) for place in places]
            if config.erasing > 0.0:
                for image, (epoch, row) in zip(batch.inputs, keys, strict=True):
                    erase(image, config.erasing, seed=seed, epoch=epoch, sample_id=row)
            if not config.mixing.is_off:
                batch.labels = one_hot(batch.labels, num_classes)
                pairs = find_pairs(places)
                mix(batch.inputs, batch.labels, pairs, [keys[first] for first, _ in pairs], config.mixing, seed=seed)

            return batch

        return read_regularized


def find_places(rows: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Find the rows that could be read among all rows of a batch."""
    places: list[int] = []
    for place, row in enumerate(rows):
        if len(places) < len(kept) and row == kept[len(places)]:
            places.append(place)
    return places


def find_pairs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Find neighbours 0 and 1, 2 and 3, … among the samples at these places; one whose neighbour is missing has none."""
    neighbors = range(len(places) - 1)
    return [(i, i + 1) for i in neighbors if places[i] % 2 == 0 and places[i + 1] == places[i] + 1]
