"""Every number of a model's configuration has a range, and values beyond it are named before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from d2v_plugin.models.data2vec1.archs import ARCHS as ARCHS1
from d2v_plugin.models.data2vec2.archs import ARCHS as ARCHS2
from d2v_plugin.models.data2vec2.frontend_config import AlibiConfig
from d2v_plugin.models.families import create_model

MODALITIES = {"audio": "audio", "image": "vision", "text": "text"}

CONFIGS = {
    **{f"data2vec {modality}": ARCHS2[f"{modality}_tiny"] for modality in ("audio", "image", "text")},
    **{f"data2vec1 {modality}": ARCHS1[f"{name}_tiny"] for modality, name in MODALITIES.items()},
}


def walk(config: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every number, or list of numbers: its owner, its name, and its value."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "alibi":
            value = config.alibi = AlibiConfig(num_heads=1)
        if is_dataclass(value):
            yield from walk(value)
        elif isinstance(value, int | float | list | tuple) and not isinstance(value, bool):
            yield config, field.name, value


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_beyond_its_range_is_named(name: str) -> None:
    numbers = list(walk(CONFIGS[name]()))
    assert len(numbers) > 12
    for place, (_, field, _) in enumerate(numbers):
        for wrong in (-(10**30), 10**30, float("nan"), float("-inf")):
            config = CONFIGS[name]()
            owner, _, value = list(walk(config))[place]
            if isinstance(value, list):  # of convolutions
                value = [(*value[0][:2], wrong), *value[1:]]
            elif isinstance(value, tuple):
                value = (0.0, wrong)
            else:
                value = wrong
            setattr(owner, field, value)
            with pytest.raises(ValueError, match=rf"`{field}` must be (between|greater)"):
                create_model(config)


@pytest.mark.parametrize(("family", "name", "value", "message"), [
    (ARCHS2, "audio.position_groups", 7, r"`audio.position_groups` must divide `dim` \(96\), but is 7"),
    (ARCHS2, "audio.conv_layers", [], "`audio.conv_layers` must name at least one convolution"),
    (ARCHS2, "audio.conv_layers", [(60_000, 60_000, 1)] * 2, "`audio.conv_layers` give the convolutions over the waveform 2e"),
    (ARCHS2, "audio.decoder.num_groups", 5, "`audio.decoder.num_groups` must divide `audio.decoder.dim`"),
    (ARCHS2, "image.decoder.kernel_size", 65_535, r"The settings of `image.decoder` give the decoder"),
    (ARCHS2, "image.patch_size", 5, r"`patch_size` must divide `image_size` \(32\), but is 5"),
    (ARCHS2, "image.image_size", 60_000, "`image.image_size` .60,000. and `image.patch_size` .4. make 225,000,000 patches"),
    (ARCHS2, "text.pad_idx", 2000, r"`text.pad_idx` must be less than `text.vocab_size` \(2,000\), but is 2000"),
    (ARCHS2, "image.dim", 65_536 - 1024, "`depth`, `dim` and `mlp_ratio` give the blocks"),
    (ARCHS1, "text.mask_idx", 9_999_99, r"`text.mask_idx` must be less than `text.vocab_size`"),
    (ARCHS1, "audio.position_groups", 7, r"`audio.position_groups` must divide `dim`"),
    (ARCHS1, "image.ffn_dim", 65_536, None),
])  # fmt: skip
def test_what_does_not_go_together_is_named(family: Any, name: str, value: object, message: str | None) -> None:
    modality, *keys = name.split(".")
    config = owner = family[f"{modality if family is ARCHS2 else MODALITIES[modality]}_tiny"]()
    if hasattr(getattr(config, modality), keys[0]):
        owner = getattr(config, modality)
    for key in keys[:-1]:
        owner = getattr(owner, key)
    setattr(owner, keys[-1], value)
    if keys == ["dim"]:
        config.depth = 24
    if message is None:
        create_model(config)
        return

    with pytest.raises(ValueError, match=message):
        create_model(config)
