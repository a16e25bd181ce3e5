"""A checkpoint without all that only training needs: the encoder, for use elsewhere."""

from __future__ import annotations

from pathlib import Path

from d2v_plugin.weights.directory import ModelDirectory
from d2v_plugin.weights.sources import Weights, find_source
from d2v_plugin.weights.state import build_skeleton, compare


def export_encoder(path_or_name: str | Path, weights: Weights = "student") -> ModelDirectory:
    """Read a checkpoint and keep what computes features: no decoder, no prediction head, no teacher, no criterion.

    :param path_or_name: as for :func:`d2v_plugin.load`.
    :param weights: which of the two become the model's.
    :raises CheckpointError: as for :func:`d2v_plugin.load`.
    """
    source = find_source(path_or_name)
    state = source.read(weights)
    config = source.config.without_prediction()
    expected = build_skeleton(config, num_tensors=len(state)).state_dict()
    whole = build_skeleton(source.config, num_tensors=len(state)).state_dict()
    compare(whole, state).raise_if_any(f"{source.path} does not hold the weights of its own configuration:")
    info = {"source": {"format": "d2v_plugin", "checkpoint": str(path_or_name), "weights": weights}}

    return ModelDirectory(config=config, student={key: state[key] for key in expected}, info=info)
