"""Weights of Hugging Face's models under our names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Names:
    """What a Transformer layer of one of Hugging Face's models calls its parts."""

    query: str
    key: str
    value: str
    parts: dict[str, str]
    """Ours -> theirs."""


VIT = Names(
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)
ROBERTA = Names(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    {
        "attn.proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
)
WAV2VEC2 = Names(
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    {
        "attn.proj": "attention.out_proj",
        "norm1": "layer_norm",
        "norm2": "final_layer_norm",
        "mlp.fc1": "feed_forward.intermediate_dense",
        "mlp.fc2": "feed_forward.output_dense",
    },
)

# Names of transformers 5 -> those of 4, which the tests use.
VIT_RENAMED = {
    r"^vit\.layers\.": "vit.encoder.layer.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


class HuggingFace:
    """Draws weights for their model and gives them our names."""

    vit, roberta, wav2vec2 = VIT, ROBERTA, WAV2VEC2

    @staticmethod
    def rename_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights, or gradients, of a ViT of any version of their library under the names of version 4."""
        renamed = {}
        for name, tensor in state.items():
            for pattern, replacement in VIT_RENAMED.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor

        return renamed

    @staticmethod
    def gradients(model: nn.Module) -> dict[str, Tensor]:
        """The gradients of all parameters that have one."""
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    @staticmethod
    def assert_gradients(model: nn.Module, expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
        """Each gradient of ours is theirs to 1e-5 of the largest.

        :param but: names of which theirs have none.
        """
        gradients = HuggingFace.gradients(model)
        assert gradients.keys() - set(but) == expected.keys()
        for name, gradient in expected.items():
            assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * max(1.0, float(gradient.abs().max())), name

    @staticmethod
    def randomise(model: nn.Module) -> None:
        """Weights, biases and norms that all matter: new models have zeros and ones in many places."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    @staticmethod
    def convert_layers(state: dict[str, Tensor], theirs: str, ours: str, num_layers: int, names: Names) -> dict[str, Tensor]:
        """The layers ``theirs.0`` … as the blocks ``ours.0`` …"""
        converted = {}
        for i in range(num_layers):
            for kind in ("weight", "bias"):
                parts = (names.query, names.key, names.value)
                converted[f"{ours}.{i}.attn.qkv.{kind}"] = torch.cat([state[f"{theirs}.{i}.{part}.{kind}"] for part in parts])
                for our_part, their_part in names.parts.items():
                    converted[f"{ours}.{i}.{our_part}.{kind}"] = state[f"{theirs}.{i}.{their_part}.{kind}"]

        return converted

    @staticmethod
    def convert(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
        """Whole modules or single parameters, ours -> theirs."""
        converted = {}
        for ours, theirs in names.items():
            found = {key: value for key, value in state.items() if key == theirs or key.startswith(f"{theirs}.")}
            assert found, theirs
            converted |= {ours + key.removeprefix(theirs): value for key, value in found.items()}

        return converted


@pytest.fixture
def hugging_face() -> type[HuggingFace]:
    return HuggingFace
