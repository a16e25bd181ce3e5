"""How the model is sharded, checkpointed and compiled: block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairseq2.error import NotSupportedError
from fairseq2.models.utils.ac import apply_layerwise_ac
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from torch import nn

from d2v_plugin.models.data2vec import Data2VecModel
from d2v_plugin.models.encoder import BlockList


def apply_fsdp(model: Data2VecModel, granularity: str, wrapper: FSDPWrapper) -> Data2VecModel:
    """Shard every block by itself, student's and teacher's alike, so that both have the same shards for the EMA."""
    if granularity not in ("layer", "stack"):
        raise NotSupportedError(f"`trainer.fsdp.granularity` must be `layer`, but is `{granularity}`.")
    for blocks in _find_block_lists(model):
        apply_layerwise_fsdp(blocks, wrapper)

    return model


def apply_activation_checkpointing(model: Data2VecModel, every_nth_layer: int) -> Data2VecModel:
    """Recompute the student's blocks in the backward pass; the teacher has none."""
    for blocks in _find_block_lists(model):
        if any(parameter.requires_grad for parameter in blocks.parameters()):
            apply_layerwise_ac(blocks, every_nth_layer)

    return model


def compile_blocks(model: Data2VecModel, *args: Any, **kwargs: Any) -> None:
    """Compile each block in place; equal blocks share their graphs."""
    for blocks in _find_block_lists(model):
        for block in blocks:
            block.compile(*args, **kwargs)


def _find_block_lists(model: nn.Module) -> Iterator[BlockList]:
    return (module for module in list(model.modules()) if isinstance(module, BlockList))
