"""TensorBoard's embedding projector: a point for each sample, with its label and, of images, how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from fairseq2.device import Device
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.data.dataset import ManifestDataset
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.pooling import pool_tokens
from d2v_plugin.pictures.inputs import to_rgb

THUMBNAIL = 96


@torch.no_grad()
def write_projector(
    log_dir: Path, model: EncoderModel, rows: RowReader, num_samples: int, *, names: Sequence[str] | None, device: Device
) -> None:
    """Write the mean features of the first samples of a split.

    :param model: in evaluation mode.
    :param names: what each row is called; None = nothing.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes most of a second, and boto3 with it where that is installed

    vectors: dict[int, Tensor] = {}
    looks: dict[int, Tensor] = {}
    for batch in rows.read(0, min(num_samples, len(rows)), 32):
        batch.to(device)
        features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        pooled = pool_tokens(features.x, features.padding_mask, "mean")
        vectors |= dict(zip(batch.ids.tolist(), pooled.float().cpu(), strict=True))
        if batch.modality is Modality.IMAGE:
            looks |= {row: _make_thumbnail(x) for row, x in zip(batch.ids.tolist(), batch.inputs, strict=True)}
    found = sorted(vectors)
    with SummaryWriter(log_dir) as writer:
        writer.add_embedding(
            torch.stack([vectors[row] for row in found]),
            metadata=None if names is None else [names[row] for row in found],
            label_img=torch.stack([looks[row] for row in found]) if looks else None,
            tag="mean_features",
        )


def _make_thumbnail(x: Tensor) -> Tensor:
    # (C, H, W) -> (3, 96, 96)
    return F.interpolate(torch.from_numpy(to_rgb(x)).permute(2, 0, 1)[None], size=(THUMBNAIL, THUMBNAIL))[0]


def name_samples(dataset: object, split: str, num_rows: int) -> list[str] | None:
    """Read the label of each row; None = there are none, or samples are no rows of the manifest (running text)."""
    if not isinstance(dataset, ManifestDataset):
        return None
    manifest = dataset.split(split)
    if len(manifest) != num_rows:
        return None
    labels = [manifest.text("label", row) for row in range(len(manifest))]

    return None if None in labels else [str(label) for label in labels]
