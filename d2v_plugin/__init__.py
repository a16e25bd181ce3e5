"""data2vec for fairseq2: importing this package makes fairseq2 importable, :func:`setup_fairseq2_extension` fills it.

fairseq2 needs ``libsndfile.so.1``, which not every machine has. The ``soundfile`` wheel carries a copy, so the first
thing this package does is to load that copy where the system has none; nothing here imports fairseq2 before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2v_plugin._libsndfile import preload_libsndfile

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from fairseq2.runtime.dependency import DependencyContainer

    from d2v_plugin.models.families import AnyModel
    from d2v_plugin.weights.sources import Weights

__version__ = "0.1.0"

preload_libsndfile()


def load(
    path_or_name: str | Path,
    *,
    weights: Weights = "student",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AnyModel:
    """Load a model for use; see :func:`d2v_plugin.weights.loading.load`."""
    from d2v_plugin.weights.loading import load

    return load(path_or_name, weights=weights, device=device, dtype=dtype)


def read_audio(path: str | Path, *, normalize: bool = True) -> torch.Tensor:
    """Read a recording for a model; see :func:`d2v_plugin.data.single.read_audio`."""
    from d2v_plugin.data.single import read_audio

    return read_audio(path, normalize=normalize)


def read_image(path: str | Path, *, size: int = 224, eval_resize: float = 256 / 224) -> torch.Tensor:
    """Read an image for a model; see :func:`d2v_plugin.data.single.read_image`."""
    from d2v_plugin.data.single import read_image

    return read_image(path, size=size, eval_resize=eval_resize)


def read_text(path: str | Path, vocabulary: str | Path) -> torch.Tensor:
    """Read a text for a model; see :func:`d2v_plugin.data.single.read_text`."""
    from d2v_plugin.data.single import read_text

    return read_text(path, vocabulary)


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    """Register everything this package brings; fairseq2 calls it through the ``fairseq2.extension`` entry point."""
    import fairseq2.recipe  # noqa: F401  # first: fairseq2.trainer and others cannot be imported before it

    from d2v_plugin.verbs.registration import register_everything

    register_everything(container)
