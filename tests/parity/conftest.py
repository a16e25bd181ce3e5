"""What the original computed with random weights, one folder for each modality; see tests/golden/README.md."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.drawing import split_mask
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontends.base import select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.weights.convert import eat
from d2v_plugin.weights.convert.fairseq_config import convert_config

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from comparison import GOLDEN, read_ema, strip_prefix

SCOPES = {"audio": "context", "image": "all", "text": "blocks", "spectrogram": "all"}


@dataclass
class Golden:
    """One model of the original and what came out of it."""

    name: str

    @property
    def modality(self) -> Modality:
        return Modality.AUDIO if self.name == "spectrogram" else Modality(self.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self._folder / "config.json").read_text())

    @property
    def _folder(self) -> Path:
        return GOLDEN / f"d2v2_{self.name}_tiny"

    def load(self, name: str) -> dict[str, Tensor]:
        """Tensors under our names: EAT, whose spectrograms are images to fairseq, calls its frontend so."""
        state = load_file(self._folder / f"{name}.safetensors")
        return eat.rename_modality(state) if self.name == "spectrogram" else state

    def build_model(self) -> Data2VecModel:
        """The student with the original's weights, and its treatment of padding."""
        vocab = self.config["vocab"] or {}
        settings, weights = self.config["model"], strip_prefix(self.load("weights"), "model/")
        if self.name == "spectrogram":
            settings = eat.as_audio(settings, weights["modality_encoders.AUDIO.fixed_positional_encoder.positions"])
        config = convert_config(settings, vocab_size=vocab.get("size"))
        config.original_padding = True
        model = create_model(config)
        model.load_state_dict(weights)

        return model

    def attach_criterion(self, model: Data2VecModel, num_samples: int, *, ema: EmaConfig | None = None) -> Data2Vec2Criterion:
        """The original's objective, with its teacher."""
        original = self.config["model"]
        config = Data2Vec2Config(
            num_views=original["clone_batch"],
            teacher_scope=SCOPES[self.name],
            targets=TargetConfig(
                num_layers=original["average_top_k_layers"],
                instance_norm_layers=original["instance_norm_target_layer"],
                layer_norm=original["layer_norm_targets"],
            ),
            loss_scale=original["loss_scale"],
            cls_weight=original["cls_loss"] * num_samples * original["clone_batch"],
            ema=ema or read_ema(original),
        )
        unused = RandomMaskSampler(RandomMaskConfig())
        criterion = Data2Vec2Criterion(config, dict.fromkeys(Modality, unused))
        criterion.build(model)
        teacher = strip_prefix(self.load("weights"), "ema/")
        criterion.teacher.load_state_dict(self.name_teacher(teacher))
        model.criterion = criterion
        model.requires_grad_(True)

        return criterion

    def name_teacher(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original's names for a teacher of blocks alone lack the first part."""
        return {f"blocks.{k}" if SCOPES[self.name] == "blocks" else k: v for k, v in state.items()}

    def make_batch(self, io: dict[str, Tensor]) -> tuple[Batch, Tensor, Tensor]:
        """The batch, and the masks and the noise that the original drew for it."""
        mask = io["mask"].bool()
        _, masked = split_mask(mask, int(mask[0].sum()))
        ids = torch.arange(io["source"].size(0))

        return Batch(self.modality, io["source"], ids, io.get("padding_mask")), mask, select_tokens(io["noise_full"], masked)


@pytest.fixture(params=list(SCOPES))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(params=["audio", "image", "text"])
def trained_golden(request: pytest.FixtureRequest) -> Golden:
    """Of whom there are updates by fairseq's trainer."""
    return Golden(request.param)


@pytest.fixture
def audio_golden() -> Golden:
    return Golden("audio")
