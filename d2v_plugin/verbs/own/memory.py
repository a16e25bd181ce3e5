"""An estimate of the memory that training takes, made before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.structured import StandardValueConverter

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.families import FAMILIES, create_model

# Values that one block keeps of a token for its backward pass, as multiples of the width: measured between 17 and 25.
_VALUES_PER_BLOCK: Final = 22
_VALUES_PER_CONVOLUTION: Final = 4
_SHORTEST_PASS: Final = 160_000
"""Samples of sound: ten seconds; where recordings are not cut, longer ones come alone."""

_IMPORTED: Final = {"cpu": 700 << 20, "cuda": 600 << 20}
"""What a process takes before it has a model: PyTorch and fairseq2, or the context of the GPU and its libraries."""


def read_model(section: Mapping[str, Any]) -> Data2VecConfig:
    """The configuration of a model: its arch, with the overrides."""
    family, converter = FAMILIES[section["family"]], StandardValueConverter()
    arch = converter.unstructure(family.archs[section["arch"]]())
    merged = StandardConfigMerger().merge(arch, section.get("config_overrides") or {})
    config: Data2VecConfig = converter.structure(merged, family.config_kls)

    return config


def count_parameters(config: Data2VecConfig) -> int:
    """The number of parameters of the student."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(config).parameters())


def estimate_memory(recipe: Mapping[str, Any], device: str) -> int:
    """Estimate the bytes that a process takes at most, to a factor of about 1.5.

    :param recipe: sections of a plan for one modality.
    :param device: ``cpu`` or ``cuda``; the latter in bf16, whose activations take half.
    """
    config = read_model(recipe["model"])
    task, criterion = recipe["task"]["config"], recipe["criterion"]["config"]
    modality = Modality(recipe["task"]["name"].partition("_")[0])
    frontend = config.frontends[modality]
    inputs, num_tokens = _count_inputs(modality, task, config)
    kept = num_tokens * criterion["num_views"] * (1 - criterion["masking"]["config"]["ratio"])
    values = kept * config.dim * _VALUES_PER_BLOCK * (config.depth + frontend.prenet_depth)
    if frontend.decoder is not None:
        width = frontend.decoder.dim * _VALUES_PER_CONVOLUTION * frontend.decoder.num_layers + 3 * config.dim
        values += num_tokens * criterion["num_views"] * width
    # Whole samples pass the frontend with gradients and the teacher without.
    values += num_tokens * config.dim * (2 * _VALUES_PER_BLOCK + config.depth) + inputs
    # Weights, gradients, two moments, and the teacher.
    weights = count_parameters(config) * 5 * 4

    return int(_IMPORTED[device] + weights + values * (4 if device == "cpu" else 2.5))


def _count_inputs(modality: Modality, task: Mapping[str, Any], config: Data2VecConfig) -> tuple[float, float]:
    """Values that the local encoder keeps, and tokens, of one forward pass of one rank."""
    match modality:
        case Modality.AUDIO:
            assert config.audio is not None
            sound, kept, stride = task["max_num_elements"], 0.0, 1
            for channels, _, step in config.audio.conv_layers:
                stride *= step
                kept += 3 * channels * sound / stride
            return kept, sound / stride
        case Modality.IMAGE:
            assert config.image is not None
            size = task["image"]["size"]
            batch = task.get("max_batch_size") or task["batch_size"]
            return 3.0 * batch * size**2, batch * math.ceil(size / config.image.patch_size) ** 2
        case Modality.TEXT:
            batch = task.get("max_batch_size") or task["batch_size"]
            return 0.0, batch * task["tokens_per_sample"]


def halve_pass(task: dict[str, Any]) -> bool:
    """Let an update take twice as many forward passes of half the size; false = they cannot be smaller.

    :param task: the settings of the task; changed.
    """
    if "max_num_elements" in task:
        if task["max_num_elements"] // 2 < task.get("max_sample_size", _SHORTEST_PASS):
            return False
        task["max_num_elements"] //= 2
        task["batches_per_update"] *= 2
        return True
    size = task.get("max_batch_size") or task["batch_size"]
    if size < 2:
        return False
    task["max_batch_size"] = size // 2

    return True
