"""data2vec 2.0 of images on timm's layers: a Vision Transformer with norms behind the residual connections.

No model of timm's own has such blocks. This file needs timm, torch and safetensors; it is meant to lie beside the
``model.safetensors`` and ``config.json`` that it reads.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


class PostNormBlock(Block):
    """A Transformer block that normalises the sums."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(N, 1 + S, D) -> (N, 1 + S, D)"""
        x = self.norm1(x + self.drop_path1(self.attn(x, attn_mask=attn_mask, is_causal=is_causal)))
        return self.norm2(x + self.drop_path2(self.mlp(x)))


def embed_patches(**arguments: Any) -> PatchEmbed:
    """A linear map of patches with a bias, which timm leaves out before a norm."""
    return PatchEmbed(**{**arguments, "bias": True})


def create_model(folder: str | Path = Path(__file__).parent, **changes: Any) -> VisionTransformer:
    """Create the model and load its weights, in evaluation mode.

    ``forward_features`` gives (N, 1 + S, D), the CLS token first; the model itself the logits of its head or, without one, pooled
    features. ``timm.data.resolve_model_data_config`` says how pictures are read.

    :param folder: has ``config.json`` and ``model.safetensors``.
    :param changes: of the arguments of timm's ``VisionTransformer``, such as ``drop_path_rate=0.2``; with another
        ``num_classes`` the head is new.
    """
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    model = VisionTransformer(
        block_fn=PostNormBlock,
        embed_layer=embed_patches,
        norm_layer=partial(nn.LayerNorm, eps=config["norm_eps"]),
        # The norm of patches and CLS token, before the blocks; the CLS token has no position.
        pre_norm=True,
        no_embed_class=True,
        **{**config["model_args"], **changes},
    )
    state = load_file(Path(folder, "model.safetensors"))
    if "num_classes" in changes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
        state |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    model.load_state_dict(state)
    model.pretrained_cfg = model.default_cfg = config["pretrained_cfg"]
    # Sines and cosines are not learned.
    model.pos_embed.requires_grad_(False)

    return model.eval()


if __name__ == "__main__":
    model = create_model()
    side = model.pretrained_cfg["input_size"][-1]
    print(tuple(model.forward_features(torch.zeros(1, 3, side, side)).shape))
