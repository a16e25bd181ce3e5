"""What an update of one sample takes of a GPU, counted on the meta device, where nothing is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import torch
from fairseq2.recipe.base import RecipeContext
from torch import Tensor, nn

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.distillation import Teacher
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.data2vec1 import blocks
from d2v_plugin.models.data2vec2 import encoder
from d2v_plugin.models.families import FAMILIES
from d2v_plugin.verbs.own.memory import read_model
from d2v_plugin.verbs.train.config import TrainConfig
from tools.flops import count_flops


class Kept:
    """Adds up the tensors that the backward pass needs, each storage once, parameters left out."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = {p.untyped_storage()._cdata for p in parameters}
        self._sizes: dict[int, int] = {}

    @property
    def num_bytes(self) -> int:
        return sum(self._sizes.values())

    @contextmanager
    def watch(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._parameters:
                self._sizes[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


@dataclass(frozen=True)
class Model:
    """Numbers of parameters."""

    trained: int
    """Those that have gradients and moments."""

    teacher: int
    """Those that follow by averaging."""

    other: int


def size_up(module: nn.Module) -> Model:
    teacher = {id(p) for part in module.modules() if isinstance(part, Teacher) for p in part.parameters()}
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    averaged = sum(p.numel() for p in module.parameters() if id(p) in teacher)

    return Model(trained, averaged, sum(p.numel() for p in module.parameters()) - trained - averaged)


class Needs:
    """Counts for the model and criterion of a recipe; what is computed again to save memory or time does not count."""

    def __init__(self, context: RecipeContext) -> None:
        """:param context: of a training recipe."""
        config = context.get_config_as(TrainConfig)
        section = config.model
        assert section.family is not None and section.arch is not None
        with torch.device("meta"):
            model = FAMILIES[section.family].create(read_model(vars(section)))
            attach_criterion(model, create(context.resolver, Criterion, config.criterion), None, called="the criterion")
        self._model: EncoderModel = model.requires_grad_(True).train()
        (self._modality,) = self._model.config.frontends
        self._known: dict[tuple[torch.Size, torch.dtype], tuple[float, int]] = {}

    @property
    def size(self) -> Model:
        return size_up(self._model)

    def flops(self, shape: torch.Size) -> float:
        """:param shape: of the inputs of a batch, whose needs are in proportion to those of one sample."""
        return shape[0] * self._count(shape[1:], torch.float32)[0]

    def activations(self, shape: torch.Size) -> float:
        """Bytes kept for the backward pass if all are bfloat16; under autocast norms keep some in fp32."""
        return shape[0] * self._count(shape[1:], torch.bfloat16)[1]

    def _count(self, size: torch.Size, dtype: torch.dtype) -> tuple[float, int]:
        if (size, dtype) not in self._known:
            with torch.device("meta"):
                inputs = torch.ones(1, *size, dtype=torch.long if self._modality is Modality.TEXT else dtype)
                batch = Batch(self._modality, inputs, torch.zeros(1, dtype=torch.long))
            self._model.to(dtype)
            kept = Kept(self._model.parameters())

            def run() -> None:
                with kept.watch():
                    output = self._model(batch, StepInfo(number=1, seed=1))
                output.loss.backward()

            # The kernel that GPUs take: PyTorch's choice on the meta device, which has no autocast, either, keeps all weights.
            kernels = patch.object(encoder, "attend", _attend), patch.object(blocks, "attend", _attend)
            with kernels[0], kernels[1], patch.object(torch, "autocast", lambda *args, **options: nullcontext()):
                self._known[size, dtype] = count_flops(run), kept.num_bytes
            self._model.zero_grad()

        return self._known[size, dtype]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.size(2))
    arguments = (q, k, v, bias, torch.is_grad_enabled(), 0.0)

    return torch.ops.aten._scaled_dot_product_efficient_attention(*arguments)[0]  # type: ignore[no-any-return]
