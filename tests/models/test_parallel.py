"""Compiled blocks: the same numbers, and few graphs however long the inputs are."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.random_blocks import BlockMaskConfig, BlockMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.parallel import compile_blocks


def build(num_blocks: int, modality: Modality = Modality.AUDIO) -> Data2VecModel:
    torch.manual_seed(0)
    config = ARCHS[f"{modality.value}_tiny"]()
    config.depth = num_blocks
    model = create_model(config)
    sampler = BlockMaskSampler(BlockMaskConfig(ratio=0.5, block_size=3, adjust=0.05))
    criterion = Data2Vec2Criterion(
        Data2Vec2Config(num_views=2, teacher_scope="context", targets=TargetConfig(num_layers=num_blocks)),
        dict.fromkeys(Modality, sampler),
    )
    criterion.build(model)
    model.criterion = criterion
    model.requires_grad_(True).train()

    return model


def run(model: Data2VecModel, *shape: int) -> tuple[float, dict[str, Tensor]]:
    (modality,) = model.config.frontends
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    if modality is Modality.TEXT:
        inputs = (inputs * 100).long().abs() + 4
    output = model(Batch(modality, inputs, torch.arange(2)), StepInfo(number=1, seed=1))
    model.zero_grad()
    (output.loss / output.num_targets).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return float(output.loss.detach()) / output.num_targets, gradients


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_block_equals_an_eager_one() -> None:
    eager, compiled = build(1).blocks[0], build(1).blocks[0]
    x, bias = torch.randn(4, 16, 96), torch.randn(4, 4, 16, 16)
    torch.compiler.reset()
    compiled.compile()

    (y, tap), (compiled_y, compiled_tap) = eager(x, bias), compiled(x, bias)

    assert torch.allclose(compiled_y, y, rtol=1e-4, atol=1e-4)
    assert torch.allclose(compiled_tap, tap, rtol=1e-4, atol=1e-4)
    grad = torch.randn(4, 16, 96)
    y.backward(grad)
    compiled_y.backward(grad)
    for name, parameter in eager.named_parameters():
        gradient, compiled_gradient = parameter.grad, compiled.get_parameter(name).grad
        assert gradient is not None and compiled_gradient is not None
        assert torch.allclose(compiled_gradient, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


SHAPES = {
    Modality.AUDIO: [(4000,), (5000,), (6300,), (7100,), (8200,)],
    Modality.IMAGE: [(3, 32, 32), (3, 24, 40), (3, 40, 40), (3, 28, 36), (3, 48, 32)],
    Modality.TEXT: [(40,), (25,), (60,), (33,), (50,)],
}


@pytest.mark.parametrize(("modality", "shapes"), SHAPES.items())
def test_few_graphs_for_any_number_of_shapes_compute_what_eager_code_does(modality: Modality, shapes: Any) -> None:
    """Student and teacher, decoder, noise and targets, each for one shape and then for all; blocks share them.

    Those of the first shape go through everything but the code generator, which takes minutes for whole models.
    """
    graphs: list[int] = []

    def count(module: Any, inputs: Any) -> Any:
        graphs.append(1)
        return aot_eager(module, inputs) if not totals else module.forward

    eager, traced = build(2, modality), build(2, modality)
    torch.compiler.reset()
    compile_blocks(traced, backend=count, fullgraph=True)
    totals: list[int] = []
    for shape in shapes:
        loss, gradients = run(eager, *shape)
        traced_loss, traced_gradients = run(traced, *shape)
        totals.append(len(graphs))

        assert traced_loss == pytest.approx(loss, rel=1e-4)
        assert gradients.keys() == traced_gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(traced_gradients[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name

    # Blocks with and without gradients, decoder, noise, the first of the targets' layers and the others.
    assert totals[0] == 6
    assert totals[2:] == [totals[2]] * 3 and totals[2] <= 18, totals


def test_cuda_graphs_are_told_where_a_pass_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    model = build(1)
    compile_blocks(model, mode="reduce-overhead")
    with torch.compiler.set_stance("force_eager"):
        run(model, 4000)
        run(model, 4000)

    assert len(begun) == 2
