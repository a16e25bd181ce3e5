"""Pictures of features: principal components as colors, similarities of tokens, numbers by layer over time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.pictures.drawing import arrange, color, magnify
from d2v_plugin.pictures.inputs import IMAGE_SIDE, STRIP_HEIGHT, STRIP_WIDTH, show_image, show_waveform

BAR_HEIGHT = 14


def draw_features(batch: Batch, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Image.Image:
    """The first three principal components of each layer's features as red, green and blue.

    Tokens with the same color have similar features; colors of different layers cannot be compared.

    :param student: the output of each block, (N, S, D).
    :param teacher: likewise the teacher's; may be empty.
    """
    models = {"student": [color_by_components(x) for x in student], "teacher": [color_by_components(x) for x in teacher]}
    rows: list[tuple[str, list[Tensor]]] = []
    for sample, x in enumerate(batch.inputs):
        caption = f"sample {int(batch.ids[sample])}"
        if batch.modality is Modality.AUDIO:
            rows.append((f"{caption}: spectrogram", [show_waveform(x)]))
        for who, layers in models.items():
            if not layers:
                continue
            if batch.modality is Modality.IMAGE:
                cells = [show_image(x), *(_as_grid(layer[sample]) for layer in layers)]
                rows.append((f"{caption}: input, then the {who}'s layers from first to last", cells))
            else:
                strips = torch.cat([_as_strip(layer[sample]) for layer in layers], dim=1)
                rows.append((f"{caption}: the {who}'s layers, first above, last below", [strips]))

    return arrange(rows)


def color_by_components(x: Tensor) -> Tensor:
    """(N, S, D) features -> (N, S, 3) uint8; the components are those of all tokens together."""
    tokens = x.detach().flatten(0, 1).to("cpu", torch.float32)
    tokens = tokens - tokens.mean(dim=0)
    # The eigenvectors of the covariance; at most D x D, whatever the number of tokens.
    vectors = torch.linalg.eigh(tokens.T @ tokens).eigenvectors[:, -3:].flip(1)
    # A sign that does not depend on the solver.
    vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
    components = tokens @ vectors
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    shades = ((components - low) / (high - low).clamp_min(1e-9)).clamp(0.0, 1.0) * 255
    rgb: Tensor = F.pad(shades, (0, 3 - shades.size(1))).round().to(torch.uint8)

    return rgb.view(*x.shape[:2], 3)


def similarities(x: Tensor) -> Tensor:
    """Cosine similarity of the tokens of each sample: (N, S, D) -> (N, S, S)."""
    directions: Tensor = F.normalize(x.detach().float(), dim=-1)

    return directions @ directions.transpose(1, 2)


def draw_similarities(batch: Batch, layers: Sequence[Tensor]) -> Image.Image:
    """Similarity of the tokens of the first sample to each other, layer by layer; all alike means that a model collapses."""
    cells = [magnify(color(similarities(x[:1])[0].cpu(), -1.0, 1.0), IMAGE_SIDE, IMAGE_SIDE) for x in layers]

    return arrange(
        [(f"sample {int(batch.ids[0])}: cosine similarity of its tokens, first layer to last (-1 dark, 1 bright)", cells)]
    )


def draw_history(history: Sequence[Sequence[float]], steps: Sequence[int], what: str) -> Image.Image:
    """A number per layer over time: layers from below, updates to the right.

    :param history: one row per moment, one number per layer.
    """
    x = torch.tensor(history).T.flip(0)
    caption = f"{what}: layers 0 (below) to {x.size(0) - 1}, updates {steps[0]:,} to {steps[-1]:,}; {_range_of(x)}"

    return arrange([(caption, [magnify(color(x), x.size(0) * BAR_HEIGHT, STRIP_WIDTH)])])


def draw_scales(scales: Tensor) -> Image.Image:
    """The learned ALiBi scales, one row per layer (one if shared), one column per head.

    :param scales: (1 or L, 1, H or 1, 1, 1)
    """
    x = scales.detach().float().cpu().clamp_min(0.0).flatten(1)
    caption = f"ALiBi scale: heads to the right, layers downwards; {_range_of(x)}"

    return arrange([(caption, [magnify(color(x), x.size(0) * 24, max(x.size(1) * 24, 120))])])


def _range_of(x: Tensor) -> str:
    return f"{float(x.min()):.3g} dark, {float(x.max()):.3g} bright"


def _as_grid(x: Tensor) -> Tensor:
    # (S, 3) -> (3, H, W)
    return magnify(x.T.unflatten(1, Modality.IMAGE.grid_shape(len(x))), IMAGE_SIDE, IMAGE_SIDE)


def _as_strip(x: Tensor) -> Tensor:
    # (S, 3) -> (3, 1, S)
    return magnify(x.T.unsqueeze(1), max(BAR_HEIGHT, STRIP_HEIGHT // 4), STRIP_WIDTH)
