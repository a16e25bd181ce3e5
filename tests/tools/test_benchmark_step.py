"""The benchmark of whole updates: counted FLOPs, parts, table and plot."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import decode_png, read_file

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import benchmark  # noqa: E402
import benchmark_step  # noqa: E402
from benchmark_update import Setting, Update, count_synchronisations, draw_batch, measure  # noqa: E402

from d2v_plugin.models.data2vec2 import encoder  # noqa: E402


def count_convolution_backward(
    grad_shape: Any, x_shape: Any, weight_shape: Any, *arguments: Any, out_shape: Any, **options: Any
) -> int:
    """PyTorch's own formula takes the gradient of a grouped weight for that of a dense one."""
    output_mask = arguments[-1]
    positions = torch.Size(grad_shape).numel() // grad_shape[1]

    return 2 * positions * torch.Size(weight_shape).numel() * sum(output_mask[:2])


@pytest.mark.parametrize("arch", ["image_tiny", "audio_tiny", "text_tiny"])
def test_flops_are_those_that_pytorch_counts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Our attention computes a product again in its backward pass, which is not the model's.
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    monkeypatch.setattr(encoder, "attend", attend)
    setting = Setting(arch, views=4, seconds=0.5, tokens=100)
    update = Update(setting)
    batch = draw_batch(setting)
    custom = {
        torch.ops.aten.convolution_backward: count_convolution_backward,
        torch.ops.aten.addmm_: lambda total, a, b, **options: 2 * a[0] * a[1] * b[1],  # unknown to PyTorch's counter
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=custom) as counter:
        update.run(batch)

    assert update.count_flops(batch) == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("arch", ["image_tiny", "audio_tiny", "text_tiny"])
def test_an_update_waits_for_nothing(arch: str) -> None:
    """No operator whose result the host needs, from the masks to the teacher's average."""
    setting = Setting(arch, views=2, seconds=0.5, tokens=100)
    update, batch = Update(setting), draw_batch(setting)
    update.run(batch)

    assert count_synchronisations(lambda: update.run(batch), torch.device("cpu")) == 0
    assert count_synchronisations(lambda: batch.inputs.max().item(), torch.device("cpu")) == 1  # type: ignore[arg-type, return-value]


def test_every_nth_block_of_the_student_is_computed_again() -> None:
    setting = Setting("image_tiny", views=2, checkpoint_every=2)
    update = Update(setting)
    update.run(draw_batch(setting))

    checkpointed = [isinstance(block, CheckpointWrapper) for block in update.model.blocks]
    assert checkpointed == [i % 2 == 0 for i in range(len(checkpointed))] and len(checkpointed) > 2
    assert not any(isinstance(module, CheckpointWrapper) for module in update.criterion.teacher.modules())


def test_a_row_has_its_numbers_and_the_table_its_parts() -> None:
    row = measure(Setting("image_tiny", views=2, budget=0.0, threads=1, sample_data=True))

    assert row["updates"] == 3
    assert row["seconds_per_update"] > 0 and row["gemm_gflops"] > row["model_gflops"] > 0
    assert row["share"] == pytest.approx(row["model_gflops"] / row["gemm_gflops"])
    assert row["peak_memory_gib"] >= row["memory_after_imports_gib"] > 0
    assert set(row["parts"]) == {"loader", "forward", "backward", "clipping", "optimizer", "teacher's average"}
    assert sum(row["parts"].values()) == pytest.approx(row["seconds_per_update"], rel=0.5)
    assert "| image_tiny | 2 x 2 views | fp32 |" in benchmark_step.format_row(row)
    assert len(benchmark_step.format_parts([row, row]).splitlines()) == 4


def test_sweeps_are_measured_one_after_the_other_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(setting: Setting) -> dict[str, Any]:
        assert setting.views is not None
        return {
            **vars(setting),
            **{"seconds_per_update": 1.0 + setting.views, "samples_per_second": 2.0, "model_gflops": 1.0, "gemm_gflops": 2.0},
            **{"share": 0.5, "peak_memory_gib": 1.0, "host_synchronisations": 0, "parts": {"forward": 1.0, "backward": 2.0}},
        }

    monkeypatch.setattr(benchmark_step, "measure_apart", pretend)
    command = ["step", "--arch", "image_tiny", "--sweep", "views", "--plot", str(tmp_path / "views.png")]
    benchmark.main([*command, "--json", str(tmp_path / "views.json")])

    assert [row["views"] for row in json.loads((tmp_path / "views.json").read_text())] == [1, 2, 4, 8, 16]
    assert decode_png(read_file(str(tmp_path / "views.png"))).float().std() > 0
    assert "| image_tiny | 2 x 16 views | fp32 | 17 |" in capsys.readouterr().out


def test_the_table_has_the_base_models_in_both_precisions() -> None:
    parser = argparse.ArgumentParser()
    benchmark_step.add_arguments(parser)
    settings = benchmark_step.list_settings(parser.parse_args(["--table"]))

    assert [(s.arch, s.precision) for s in settings] == [
        (f"{name}_base", precision) for precision in ("fp32", "bf16") for name in ("image", "audio", "text")
    ]
