"""Whole updates of the base models in bf16 at growing batches, eager and compiled, by the benchmark; where their time goes."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tools.benchmark.update import Setting, Update, draw_batch, measure
from tools.gpu_check.driver import Options
from tools.gpu_check.steps import Findings, describe_error

BATCHES = {"image": (64, 128, 256), "audio": (8, 16, 32), "text": (16, 32, 64)}


def check_speed(modality: str, options: Options, findings: Findings) -> None:
    """Rows of the benchmark: batches as long as they fit, then the best one compiled; then a profile of it, eager."""
    if options.tiny:
        setting = Setting(f"{modality}_tiny", batch=2, views=2, seconds=0.5, tokens=64, budget=0.0)
    else:
        setting = Setting(f"{modality}_base", seconds=15.6, tokens=512, budget=1.5)
        # As fairseq2's runner sets it.
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    setting = replace(setting, precision="bf16", device=options.device)
    rows: list[dict[str, Any]] = []
    for batch in (setting.batch,) if options.tiny else BATCHES[modality]:
        rows.append(measure_row(replace(setting, batch=batch)))
        findings["rows"] = rows
        if "error" in rows[-1]:
            break
    best = max((row for row in rows if "error" not in row), key=lambda row: row["samples_per_second"])
    setting = replace(setting, batch=best["batch"])
    findings["profile"] = profile_updates(setting, options.out / f"profile_{modality}.txt")
    if not options.tiny:
        rows.append(measure_row(replace(setting, compiled=True)))
        findings["rows"] = rows
    assert all("error" not in row or row["error"].startswith("OutOfMemory") for row in rows)


def measure_row(setting: Setting) -> dict[str, Any]:
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return measure(setting)
    except RuntimeError as ex:
        # PyTorch's errors of memory are among them.
        return {"arch": setting.arch, "batch": setting.batch, "compiled": setting.compiled, "error": describe_error(ex)}
    finally:
        gc.collect()


def profile_updates(setting: Setting, path: Path, count: int = 2) -> dict[str, Any]:
    """The kernels that take longest in an update, and those of attention; the whole table goes to a file."""
    update, batch, on_gpu = Update(setting), draw_batch(setting), setting.device == "cuda"
    update.run(batch)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(count):
            update.run(batch)
        if on_gpu:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    path.write_text(averages.table(sort_by=key, row_limit=40, max_name_column_width=90))
    events = [event for event in averages if not on_gpu or str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)

    return {
        "ms of an update": total / count / 1e3,
        "kernels of an update": sum(event.count for event in events) // count,
        "longest": {event.key[:100]: getattr(event, key) / total for event in events[:15]},
        "attention": sorted(
            {event.key[:100] for event in averages if any(word in event.key.lower() for word in ("fmha", "flash", "attention"))}
        ),
    }
