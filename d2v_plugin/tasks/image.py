"""Images: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Grid, Modality, as_grid
from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.batches import ReadBatch, batch_rows, fill_batch
from d2v_plugin.data.buffers import Buffers
from d2v_plugin.data.dataset import ImageManifest
from d2v_plugin.data.image import ImageReadingConfig, Normalizer, augment, draw_size, fit
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.labels import LabelKind, RowLabels
from d2v_plugin.data.mixture import arrange
from d2v_plugin.data.order import RowBatch, Share, share_batch
from d2v_plugin.data.reader import LabelledReader, TrainReader
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.patches import PatchConfig, show_size
from d2v_plugin.tasks.base import Task

Transform = Callable[[Tensor, int, int, Grid], Tensor]
"""Changes a decoded image: (image, row, epoch, size) -> (C, height, width)."""


@dataclass(kw_only=True)
class ImagePretrainingConfig(Checked):
    """Settings of ``image_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batch_size: PositiveInt = 2048
    """Images per update, over all ranks."""

    max_batch_size: PositiveInt | None = None
    """Most images in one forward pass on one rank; more are accumulated. None = no limit."""

    image: ImageReadingConfig = field(default_factory=ImageReadingConfig)
    """How images become tensors."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable images a run puts up with."""


class ImagePretrainingTask(Task[ImagePretrainingConfig, ImageManifest]):
    """Reads an ``image_manifest``."""

    modality = Modality.IMAGE
    family = ImageManifest

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "no labels"

    @property
    @override
    def has_fixed_shapes(self) -> bool:
        return not self.config.image.sizes

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        super().check_model(model, splits)
        image, patches = self.config.image, model.config.frontends.get(Modality.IMAGE)
        if not isinstance(patches, PatchConfig):
            return
        expected, (down, across) = patches.image_shape, patches.patch_shape
        if as_grid(image.size) != expected:
            raise RecipeError(
                f"`task.config.image.size` is {show_size(image.size)}, but the model takes images of {expected[0]} x "
                f"{expected[1]} pixels; make it {show_size(patches.image_size)}, or set the model's `image_size`."
            )
        for size in image.sizes:
            height, width = as_grid(size)
            if height % down or width % across:
                raise RecipeError(
                    f"`task.config.image.sizes` has {show_size(size)}, which the model's patches of {down} x {across} pixels do "
                    "not divide."
                )
        if image.num_channels != patches.num_channels:
            raise RecipeError(
                f"`task.config.image.mean` and `std` are of {image.num_channels} channel(s), but the model's `num_channels` is "
                f"{patches.num_channels}. Give a number for each channel, or `report` for those that `fairseq2 recipe manifest "
                f"image --channels {patches.num_channels}` measures."
            )

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        share = share_batch(config.batch_size, config.max_batch_size, rank=gangs.dp.rank, world_size=gangs.dp.size)

        def transform(image: Tensor, row: int, epoch: int, size: Grid) -> Tensor:
            return augment(image, config.image, seed, epoch, row, size)

        # A quarter of the bytes to copy; other channels than three may be of 16 bits.
        read, bad_samples = self._open_images(
            config.split, transform, seed=seed, as_bytes=gangs.device.type == "cuda" and config.image.num_channels == 3
        )

        return self._order(share, gangs, seed, read, bad_samples)

    def _order(self, share: Share, gangs: Gangs, seed: int, read: ReadBatch, bad_samples: BadSamples) -> TrainReader:
        """Read all images of the split that is trained on, in random order."""
        manifest = self.dataset.split(self.config.split)
        order, mixture = arrange(manifest, np.arange(len(manifest)), seed)
        data_hash, to_fetch = manifest.hash_rows(), manifest.to_fetch

        return TrainReader(order, share, gangs, read, bad_samples, data_hash=data_hash, mixture=mixture, to_fetch=to_fetch)

    @override
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        labels = self.dataset.read_labels(split, self.labels)
        batch_size = self.config.max_batch_size or max(1, self.config.batch_size // gangs.dp.size)
        batches = batch_rows(np.arange(len(labels)), batch_size)

        to_fetch = self.dataset.split(split).to_fetch
        return LabelledReader(batches, gangs, *self._open_images(split, targets=RowLabels(labels)), to_fetch=to_fetch)

    @override
    def open_rows(self, split: str) -> RowReader:
        manifest = self.dataset.split(split)
        lengths = np.ones(len(manifest), dtype=np.int64)
        return RowReader(lengths, self.config.max_batch_size, *self._open_images(split), to_fetch=manifest.to_fetch)

    @override
    def locate(self, split: str, row: int) -> str:
        return str(self.dataset.split(split).location(row))

    def _open_images(
        self,
        split: str,
        transform: Transform | None = None,
        targets: RowLabels | None = None,
        *,
        seed: int = 0,
        as_bytes: bool = False,
    ) -> tuple[ReadBatch, BadSamples]:
        """
        :param transform: None = resize and crop the centre.
        :param seed: of the sizes that are drawn for ``transform``.
        :param as_bytes: whether scaling is left to :meth:`d2v_plugin.core.batch.Batch.to`; the numbers are the same.
        """
        config, manifest = self.config.image, self.dataset.split(split)
        bad_samples = BadSamples(
            manifest.path, len(manifest), manifest.name_of, self.config.bad_samples, self.report, manifest.file_of
        )
        buffers, normalizer = Buffers(), Normalizer(config)

        def read(batch: RowBatch) -> Batch | None:
            size = as_grid(config.size) if transform is None else draw_size(config, seed, batch.update)

            def write(row: int, epoch: int, place: NDArray[Any]) -> None:
                image = decode(manifest.location(row), config.num_channels)
                image = fit(image, config) if transform is None else transform(image, row, epoch, size)
                if as_bytes:
                    place[...] = image.numpy()
                else:
                    normalizer.write(image, place)

            shape = (len(batch.rows), config.num_channels, *size)
            places = np.empty(shape, np.uint8) if as_bytes else buffers.take(*shape)
            found = fill_batch(Modality.IMAGE, places, batch, bad_samples, write, targets)
            if as_bytes and found is not None:
                found.scaling = normalizer.scaling
            return found

        return read, bad_samples
