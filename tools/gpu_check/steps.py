"""The steps by name; each runs in a process of its own, see driver.py."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import PackageNotFoundError, entry_points, version
from io import StringIO
from statistics import median
from typing import Any, Final

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import torch
from torch import Tensor

from tools.gpu_check.driver import Options

PACKAGES: Final = (
    *("fairseq2", "fairseq2n", "numpy", "scipy", "torchvision", "transformers", "triton", "safetensors", "sentencepiece"),
    *("soundfile", "soxr"),
)


class Findings(dict[str, Any]):
    """What a step finds; on disk as soon as it is known, for a step that is cut."""

    def __init__(self, name: str, options: Options) -> None:
        super().__init__()
        self._path = options.out / f"{name}.json"
        options.out.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._path.write_text(json.dumps(self, indent=1, default=str) + "\n")


def run_step(name: str, options: Options) -> Findings:
    """Run a step.

    :raises AssertionError: what it found is not as it must be.
    """
    from tools.gpu_check import exactness, kernels, ranks, speed

    steps: dict[str, Callable[[Options, Findings], None]] = {
        "environment": check_environment,
        "parity": exactness.check_parity,
        "masks": exactness.check_masks,
        "curves": exactness.check_curves,
        "kernels": kernels.check_kernels,
        "ranks": ranks.check_ranks,
        "reading": check_reading,
    }
    findings = Findings(name, options)
    if name.startswith("speed_"):
        speed.check_speed(name.removeprefix("speed_"), options, findings)
    else:
        steps[name](options, findings)

    return findings


def check_environment(options: Options, findings: Findings) -> None:
    """Versions, and the rates of products and copies that all other numbers are measured against."""
    findings["torch"] = f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    findings["python"] = f"{sys.version.split()[0]}, {platform.platform()}"
    for package in PACKAGES:
        try:
            findings[package] = version(package)
        except PackageNotFoundError:
            findings[package] = None
    findings["entry points"] = [point.value for point in entry_points(group="fairseq2.extension")]
    if options.device == "cuda":
        findings["device"] = str(torch.cuda.get_device_properties(0))
    size = 512 if options.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=options.device, dtype=dtype) for _ in range(2))
        findings[f"product, {dtype}, TFLOP/s"] = 2 * size**3 / time_call(partial(torch.mm, a, b), options) / 1e12
    source = torch.empty(2**20 if options.tiny else 2**31, device=options.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    findings["copy, TB/s"] = 2 * source.numel() / time_call(lambda: target.copy_(source), options) / 1e12
    host = torch.empty(2**20 if options.tiny else 2**28, dtype=torch.uint8)
    for name, memory in (("pageable", host), *((("pinned", host.pin_memory()),) if options.device == "cuda" else ())):
        seconds = time_call(partial(memory.to, options.device, non_blocking=True), options)
        findings[f"{name} memory to device, GB/s"] = host.numel() / seconds / 1e9


def check_reading(options: Options, findings: Findings) -> None:
    """How fast this host's processors read data."""
    from tools.benchmark.__main__ import main

    inputs = ["--inputs", "text", "--seconds", "0.1"] if options.tiny else ["--seconds", "1.5"]
    with redirect_stdout(StringIO()) as table:
        main(["data", *inputs, "--repeats", "1"])
    findings["table"] = table.getvalue().splitlines()


def time_call(run: Callable[[], object], options: Options, repeats: int = 5) -> float:
    """Seconds that a call takes on the device, median; after two more to warm up (one alone in a dry run)."""

    def now() -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times = []
    num_warm_up, repeats = (0, 1) if options.tiny else (2, repeats)
    for _ in range(num_warm_up + repeats):
        start = now()
        run()
        times.append(now() - start)

    return median(times[num_warm_up:])


def describe_error(error: BaseException) -> str:
    """The first line of what went wrong."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, output.detach())
