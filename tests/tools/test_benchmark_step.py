"""The benchmark of whole updates: counted FLOPs, parts, table and plot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torchvision.io import decode_png, read_file

from d2v_plugin.models.data2vec2.frontend_config import AudioFrontendConfig, DecoderConfig, ImageFrontendConfig
from tools.benchmark import __main__ as benchmark
from tools.benchmark import step as benchmark_step
from tools.benchmark.cards import CARDS, find_card
from tools.benchmark.needs import Kept
from tools.benchmark.update import GEMM_SIZES, Setting, Update, count_needs, count_synchronisations, draw_batch, measure


def count_by_shapes(update: Update, input_length: int, num_samples: int) -> float:
    """FLOPs of an update of data2vec 2.0 by formulas, for a model with one frontend whose teacher averages all of it.

    Forward passes through which gradients flow count three times (output, gradient of the input, gradient of the weights), the
    teacher's once; a local encoder has no gradient of its input.
    """
    config, modality = update.model.config, update.setting.modality
    (frontend,) = config.frontends.values()
    (decoder,) = (found for found in (frontend.decoder, config.shared_decoder) if found is not None)
    settings = update.criterion.settings[modality]
    passes = 3 if settings.teacher_scope == "all" else 2  # forward and gradient of the weights, and the teacher's own
    num_views = update.criterion.config.num_views
    if isinstance(frontend, ImageFrontendConfig):
        grid: tuple[int, ...] = (input_length // frontend.patch_size,) * 2
    else:
        grid = (update.model.frontend(modality).output_length(input_length),)
    num_tokens, num_masked = torch.Size(grid).numel(), update.criterion.samplers[modality].num_masked(grid)
    rows, whole = num_samples * num_views, frontend.num_extra_tokens + num_tokens
    kept = whole - num_masked
    dim, hidden_dim, num_blocks = config.dim, int(config.dim * config.mlp_ratio), frontend.prenet_depth + config.depth

    def encode(num_rows: int, length: int) -> float:
        linear = 2 * num_rows * length * (4 * dim**2 + 2 * dim * hidden_dim)
        return num_blocks * (linear + 4 * num_rows * length**2 * dim)

    flops = 3 * encode(rows, kept) + encode(num_samples, whole)
    if isinstance(frontend, ImageFrontendConfig):
        embed_dim = dim if frontend.embed_dim is None else frontend.embed_dim
        flops += passes * 2 * num_samples * num_tokens * frontend.num_channels * frontend.patch_size**2 * embed_dim
        flops += 0 if embed_dim == dim else (passes + 1) * 2 * num_samples * num_tokens * embed_dim * dim
    if isinstance(frontend, AudioFrontendConfig):
        flops += count_audio(frontend, dim, num_samples, input_length, num_tokens, num_views, passes)

    return flops + 3 * count_decoder(decoder, dim, rows, num_tokens, num_masked, len(grid))


def count_audio(
    frontend: AudioFrontendConfig, dim: int, num_samples: int, length: int, num_tokens: int, num_views: int, passes: int
) -> float:
    flops, in_channels = 0.0, 1
    for i, (channels, kernel_size, stride) in enumerate(frontend.conv_layers):
        length = (length - kernel_size) // stride + 1
        flops += (passes + (i > 0)) * 2 * num_samples * length * kernel_size * in_channels * channels
        in_channels = channels
    flops += (passes + 1) * 2 * num_samples * num_tokens * in_channels * dim
    kernel_size = max(3, frontend.position_width // frontend.position_depth)
    positions = 2 * num_samples * num_tokens * frontend.position_depth * kernel_size * dim**2 / frontend.position_groups

    # Every view has positions of its own, of the whole sequence; so has the teacher.
    return flops + (3 * num_views + 1) * positions


def count_decoder(decoder: DecoderConfig, dim: int, rows: int, num_tokens: int, num_masked: int, spatial_dims: int) -> float:
    """One forward pass: convolutions over all tokens, the projection of the masked ones."""
    flops, in_dim = 0.0, dim
    for _ in range(decoder.num_layers):
        flops += 2 * rows * num_tokens * decoder.kernel_size**spatial_dims * in_dim * decoder.dim / decoder.num_groups
        in_dim = decoder.dim
    hidden_dim = int(decoder.dim * decoder.projection_ratio)
    for _ in range(decoder.projection_layers - 1):
        flops += 2 * rows * num_masked * in_dim * hidden_dim
        in_dim = hidden_dim

    return flops + 2 * rows * num_masked * in_dim * dim


@pytest.mark.parametrize("arch", ["image_tiny", "audio_tiny", "text_tiny"])
def test_flops_are_those_of_the_shapes(arch: str) -> None:
    setting = Setting(arch, views=4, seconds=0.5, tokens=100, precision="bf16", checkpoint_every=1)
    shape = draw_batch(setting).inputs.shape

    expected = count_by_shapes(Update(setting), shape[-1], shape[0])
    assert shape[0] == 2 and count_needs(setting).flops(shape) == pytest.approx(expected, rel=1e-6)


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


def test_the_teacher_is_compiled_as_in_training() -> None:
    """Blocks are compiled when first called, not here."""
    update = Update(Setting("image_tiny", views=2, compiled=True))

    for blocks in (update.model.blocks, update.criterion.teacher.blocks):
        assert len(blocks) > 0 and all(block._compiled_call_impl is not None for block in blocks)


def test_the_yardstick_of_gpus_is_no_launch() -> None:
    rows, inner, columns = GEMM_SIZES["cuda"]

    assert min(2 * rows * inner * columns / card.half for card in CARDS) > 100e-6


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_cards_are_known_by_what_pytorch_calls_them(device: str, name: str | None) -> None:
    card = find_card(device)

    assert (card and card.name) == name


def test_what_the_backward_pass_needs_is_counted_once_and_without_parameters() -> None:
    weight, x = torch.nn.Parameter(torch.ones(8, 4)), torch.ones(2, 8)
    kept = Kept([weight])
    with kept.watch():
        y = x @ weight
        (y * y).exp().sum()  # needs x for the weight, y twice, and what exp returns

    assert kept.num_bytes == x.nbytes + y.nbytes + y.nbytes


def test_a_row_has_its_numbers_and_the_table_its_parts() -> None:
    row = measure(Setting("image_tiny", views=2, budget=0.0, threads=1, sample_data=True))

    assert row["updates"] == 3
    assert row["seconds_per_update"] > 0 and row["gemm_gflops"] > row["model_gflops"] > 0
    assert row["share"] == pytest.approx(row["model_gflops"] / row["gemm_gflops"])
    assert row["peak_memory_gib"] >= row["memory_after_imports_gib"] > 0
    memory = row["memory_gib"]
    assert memory["moments"] == pytest.approx(2 * memory["gradients"]) and memory["weights"] > memory["teacher"] > 0
    assert memory["noise"] * 2**30 == 2 * 2 * 52 * 96 * 4  # images, views, masked of 64 patches, width, fp32
    assert memory["activations"] > memory["noise"] and row["mfu"] is None
    assert set(row["parts"]) == {"loader", "forward", "backward", "clipping", "optimizer", "teacher's average"}
    assert sum(row["parts"].values()) == pytest.approx(row["seconds_per_update"], rel=0.5)
    assert "| image_tiny | 2 x 2 views | fp32 |" in benchmark_step.format_row(row)
    assert len(benchmark_step.format_parts([row, row]).splitlines()) == 4
    assert len(benchmark_step.format_memory([row]).splitlines()) == 3


def test_sweeps_are_measured_one_after_the_other_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(setting: Setting) -> dict[str, Any]:
        assert setting.views is not None
        return {
            **vars(setting),
            **{"seconds_per_update": 1.0 + setting.views, "samples_per_second": 2.0, "model_gflops": 1.0, "gemm_gflops": 2.0},
            **{"share": 0.5, "peak_memory_gib": 1.0, "host_synchronisations": 0, "parts": {"forward": 1.0, "backward": 2.0}},
            **{"memory_gib": {"weights": 1.0}, "mfu": 0.25},
        }

    monkeypatch.setattr(benchmark_step, "measure_apart", pretend)
    command = ["step", "--arch", "image_tiny", "--sweep", "views", "--plot", str(tmp_path / "views.png")]
    benchmark.main([*command, "--json", str(tmp_path / "views.json")])

    assert [row["views"] for row in json.loads((tmp_path / "views.json").read_text())] == [1, 2, 4, 8, 16]
    assert decode_png(read_file(str(tmp_path / "views.png"))).float().std() > 0
    printed = capsys.readouterr().out
    assert "| image_tiny | 2 x 16 views | fp32 | 17 |" in printed and "| 50% | 25.0% |" in printed


def test_the_table_has_the_base_models_in_both_precisions() -> None:
    parser = argparse.ArgumentParser()
    benchmark_step.add_arguments(parser)
    settings = benchmark_step.list_settings(parser.parse_args(["--table"]))

    assert [(s.arch, s.precision) for s in settings] == [
        (f"{name}_base", precision) for precision in ("fp32", "bf16") for name in ("image", "audio", "text")
    ]
