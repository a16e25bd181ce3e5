"""Updates on a device that is not there, whose tensors have shapes and dtypes but no values: what would wait for them shows.

Without a driver PyTorch indexes no tensor of CUDA and computes no gradient there. So updates run on the ``meta`` device in fp32,
and in bf16, since autocast does not know that device, on fake tensors of a CPU, with the functions that GPUs run.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from fairseq2.composition import _register_library
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.registry import ComponentSection, create, registered_names
from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import BLANK
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.layers.attention import attend
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import FAMILIES, create_model
from d2v_plugin.training.health import update_guard
from d2v_plugin.training.health.collapse import CollapseObserver
from d2v_plugin.training.health.update_guard import UpdateGuard
from d2v_plugin.training.observers import EmaObserver
from d2v_plugin.training.optimizer import Data2VecAdamWConfig, build_adamw
from d2v_plugin.training.unit import CriterionUnit

CONTAINER = DependencyContainer()
_register_library(CONTAINER, no_progress=True)
CONTAINER.register_type(ComponentManager, _StandardComponentManager, singleton=True)

LAST = {"targets": {"num_layers": 1}}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("data2vec2", "data2vec image_tiny", LAST | {"num_views": 2, "cls_weight": 1.0}),
    ("data2vec2", "data2vec audio_tiny", LAST | {"num_views": 2}),
    ("data2vec2", "data2vec text_tiny", LAST | {"num_views": 2}),
    ("data2vec1", "data2vec1 vision_tiny", LAST | {"masking": {"name": "beit_block", "config": {"num_patches": 30}}}),
    ("data2vec1", "data2vec1 audio_tiny", LAST),
    ("data2vec1", "data2vec1 text_tiny", LAST),
    ("last_layer_regression", "data2vec image_tiny", {}),
    ("mae", "data2vec image_tiny", {"decoder_depth": 1}),
    ("masked_lm", "data2vec text_tiny", {}),
    ("wav2vec2", "data2vec audio_tiny", {}),
    ("classification", "data2vec image_tiny", {}),
    ("classification", "data2vec1 text_tiny", {}),
    ("ctc", "data2vec audio_tiny", {}),
    ("audio_tagging", "data2vec audio_tiny", {"pooling": "mean", "mixup": 0.5}),
]

# Where the host waits for the device, or moves something to or from it, and why that stays.
GUARD = "update_guard.py: _read"
LOOK = {f"statistics.py: {name}" for name in ("describe", "rank_me", "alpha_req", "lidar")} | {"collapse.py: judge"}
NORM = "update_guard.py: _take_norm"
WAITS = {
    NORM: "copies one number, in the first update",
    GUARD: "one wait an update, when all of it is queued: whether it counts, and what observers and log are told",
    **dict.fromkeys(LOOK, "once in `guard.collapse_every_n_steps` updates, on rank 0"),
}


class Recorder(TorchDispatchMode):
    """Notes what passes between host and device, and gives the host a number where it wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and (args[0].is_meta or isinstance(args[0], FakeTensor)):
            self.note()
            return 1.0
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "meta" and kwargs.get("device") == CPU:
            self.note()
            dtype = kwargs.get("dtype", args[0].dtype)
            return torch.full(args[0].shape, dtype != torch.bool, dtype=dtype)  # no mask marks anything
        output = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {leaf.device.type for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)}
            if len(devices) > 1:
                self.note()
        return output

    def note(self) -> None:
        places = [frame for frame in traceback.extract_stack() if "/d2v_plugin/" in frame.filename] or traceback.extract_stack()[
            -3:-2
        ]
        self.found.add(f"{places[-1].filename.rpartition('/')[2]}: {places[-1].name}")


CPU = torch.device("cpu")


def attend_by_formula(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """What the kernels compute; the fused ones of GPUs turn down biases that are not contiguous along the keys."""
    assert attn_mask is None or attn_mask.stride(-1) == 1
    return torch.ops.aten._scaled_dot_product_attention_math(q, k, v, attn_mask, dropout_p)[0]  # type: ignore[no-any-return]


def fake_ctc_loss(log_probs: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, **options: object) -> Tensor:
    """The real one knows values only; with lengths on a device it would wait."""
    assert lengths.device.type == target_lengths.device.type == "cpu"
    return log_probs.sum(dim=(0, 2))


def structure(value: Any) -> None:
    """As a recipe's sections are read, those in others, too."""
    if isinstance(value, ComponentSection):
        value.structure(CONTAINER)
    for field in fields(value) if is_dataclass(value) else ():
        structure(getattr(value, field.name))


def make_model(criterion_name: str, arch: str, settings: dict[str, Any]) -> EncoderModel:
    family, arch = arch.split()
    config = FAMILIES[family].archs[arch]()
    config.depth = 1
    model = create_model(config)
    section = CriterionSection(name=criterion_name, config=settings)
    structure(section)
    labels = LabelSet([BLANK, "|", "a", "b"] if criterion_name == "ctc" else ["a", "b"])
    attach_criterion(model, create(CONTAINER, Criterion, section), labels)
    model.requires_grad_(True)
    model.train()

    return model


def make_batch(criterion_name: str, arch: str) -> Batch:
    """As it comes to the model: padded, where samples have lengths; lengths stay on the host."""
    (frontend,) = {name for name in ("image", "audio", "text", "vision") if name in arch}
    lengths = None
    if frontend in ("image", "vision"):
        modality, inputs, padding_mask = Modality.IMAGE, torch.randn(2, 3, 32, 32), None
    else:
        modality = Modality(frontend)
        with unset_fake_temporarily():
            lengths = torch.tensor([8000, 6000] if frontend == "audio" else [40, 30], device="cpu")
        inputs = torch.randn(2, 8000) if frontend == "audio" else torch.randint(4, 100, (2, 40))
        padding_mask = torch.zeros(inputs.shape, dtype=torch.bool)
    labels, label_lengths = torch.ones(2, dtype=torch.int64), None
    if criterion_name == "ctc":
        labels, label_lengths = torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2], device="cpu")
    if criterion_name == "audio_tagging":
        labels = torch.ones(2, 2)
    batch = Batch(modality, inputs, torch.zeros(2, dtype=torch.int64), padding_mask, None, labels, label_lengths)
    if lengths is not None:
        batch.lengths, batch.min_length = lengths, 6000 if frontend == "audio" else 30

    return batch


def test_no_criterion_is_left_out() -> None:
    assert {name for name, *_ in CASES} == set(registered_names(CONTAINER, Criterion))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("criterion_name", "arch", "settings"), CASES)
def test_an_update_waits_once(
    monkeypatch: pytest.MonkeyPatch, criterion_name: str, arch: str, settings: dict[str, Any], precision: str
) -> None:
    monkeypatch.setattr(F, "ctc_loss", fake_ctc_loss)
    recorder = Recorder()
    with torch.device("meta"):
        model = make_model(criterion_name, arch, settings)
    with ExitStack() as stack:
        if precision == "fp32":
            monkeypatch.setattr(F, "scaled_dot_product_attention", attend_by_formula)
            monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        else:
            for name in ("attention", "convolution", "cpu", "dropout", "feed_forward", "layer_drop", "packing"):
                monkeypatch.setattr(f"d2v_plugin.layers.{name}.uses_own_kernels", lambda x: False, raising=False)
            # Its matrices are as large as their values say, which fakes have none of.
            monkeypatch.setattr(CollapseObserver, "judge", lambda *args: None)
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            model.to_empty(device=CPU)
        with torch.device("meta" if precision == "fp32" else "cpu"):
            batch = make_batch(criterion_name, arch)
        guard = UpdateGuard([EmaObserver(model), CollapseObserver(1)], rank=0)
        unit = CriterionUnit(model, model.criterion, guard, seed=1)  # type: ignore[arg-type]
        # The default, with which the teacher's step is queued before the host waits, knows no meta device.
        impl = "foreach" if precision == "fp32" else "fused"
        optimizer = build_adamw(model, Data2VecAdamWConfig(impl=impl))
        monkeypatch.setattr(update_guard, "_host_waits_for", lambda x: True)
        guard.attach(model, optimizer)
        stack.enter_context(recorder)
        unit.set_step_nr(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss, num_targets = unit.process_batch(batch, MagicMock())
        (loss / num_targets).backward()
        get_data_parallel_facade(model).clip_grad_norm(1.0)
        waits = set(recorder.found)
        optimizer.step()

    assert loss.dtype == torch.float32
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None} == set()
    assert waits <= {NORM}
    assert {GUARD} <= recorder.found <= WAITS.keys()


def test_a_bias_on_cuda_comes_to_kernels_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def note(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        chosen.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    with FakeTensorMode(), torch.no_grad():
        q = torch.empty(2, 2, 8, 4, device="cuda", dtype=torch.bfloat16)
        for bias in (None, torch.empty(2, 2, 8, 8, device="cuda"), torch.empty(2, 1, 1, 8, device="cuda", dtype=torch.bool)):
            attend(q, q, q, bias, 0.0)

    assert chosen == [(True, True), (False, True), (False, True)]
