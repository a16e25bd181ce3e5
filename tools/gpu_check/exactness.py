"""Whether a GPU computes what it should: parity with the originals, masks bit for bit, curves like those of a CPU, resuming."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from d2v_plugin.cli.main import main
from tools.gpu_check.driver import ROOT, Options
from tools.gpu_check.steps import Findings, describe_error

PROCESSES = multiprocessing.get_context("forkserver")
"""Where processes start that have imported everything already; none of them has used the device."""
PROCESSES.set_forkserver_preload(["d2v_plugin", "fairseq2.recipe", "d2v_plugin.verbs.train.recipe", "d2v_plugin.cli.main"])

QUIET = (
    *(
        "probing.probes=[]",
        "pictures.enabled=false",
        "regime.publish_metrics_every_n_steps=1",
        "regime.validate_every_n_steps=null",
    ),
    *("lr_scheduler={name: passthrough, config: null}", "optimizer.config.lr=0.0005", "common.torch.allow_tf32=false"),
)
"""Settings of runs whose losses are compared: every one is told, and at a rate at which rounding does not grow."""
TINY = ("task.config.batch_size=4", "criterion.config.num_views=1")


def check_parity(options: Options, findings: Findings) -> None:
    """tests/parity on the device in the deterministic mode, to 1e-5 as on a CPU."""
    errors = options.out / "parity_errors.json"
    variables = {"PARITY_DEVICE": options.device, "PARITY_ERRORS": str(errors)}
    tests = ["tests/parity/test_data2vec2.py", "-k", "image"] if options.tiny else ["tests/parity"]
    # Of bfloat16 on CPUs, whose kernels are others.
    words = [*tests, "--deselect", "tests/parity/test_bf16_gradients.py", "-p", "tools.gpu_check.parity_plugin"]
    run_tests(words, options, findings, variables)
    findings["errors"] = json.loads(errors.read_text())
    assert findings["failures"] == {} and findings["errors"]


def check_masks(options: Options, findings: Findings) -> None:
    """All tests that are marked `gpu`, those of keys, masks and noise among them; without a GPU they are skipped."""
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    run_tests(["-m", "gpu", *marked], options, findings, {})
    assert findings["failures"] == {} and (findings["passed"] or options.device == "cpu")


def run_tests(words: Sequence[str], options: Options, findings: Findings, variables: dict[str, str]) -> None:
    report = options.out / "report.xml"
    report.unlink(missing_ok=True)
    process = PROCESSES.Process(
        target=run_pytest, args=([*words, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"], variables)
    )
    process.start()
    process.join()
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    failures = {
        case.get("name"): part.get("message", "")[:300] for case in cases for part in case if part.tag in ("failure", "error")
    }
    findings["failures"] = failures
    findings["skipped"] = sum(case.find("skipped") is not None for case in cases)
    findings["passed"] = len(cases) - len(failures) - findings["skipped"]


def run_pytest(words: list[str], variables: Mapping[str, str]) -> None:
    """In the new process."""
    os.environ.update(variables)
    os.chdir(ROOT)
    pytest.main(words)


def check_curves(options: Options, findings: Findings) -> None:
    """The demos, from the same weights: on the CPU and on the device, exact, and stopped and resumed half-way; in bf16, fast."""
    updates = 2 if options.tiny else 20
    names = ("digits",) if options.tiny else ("digits", "words", "books")
    for name in names:
        try:
            findings[name] = compare_curves(
                ROOT / "recipes" / "demo" / f"{name}.yaml", options.out / "runs" / name, updates, options
            )
        except RuntimeError as ex:
            findings[name] = {"error": describe_error(ex)}
    for name in names:
        assert "error" not in findings[name], findings[name]["error"]
        assert findings[name]["difference of first losses"] < 1e-4, f"{name}: the first losses differ"
        assert findings[name]["weights that resuming changes"] == [], f"{name}: resuming is not exact"


def compare_curves(recipe: Path, out: Path, updates: int, options: Options) -> dict[str, Any]:
    train(recipe, out / "start", 1, options, "trainer.mixed_precision.mode=off", device="cpu")
    same = f"init.path={out / 'start'}"
    exact = (same, "trainer.mixed_precision.mode=off", "trainer.deterministic=true")
    cpu = train(recipe, out / "cpu", updates, options, *exact, device="cpu")
    gpu = train(recipe, out / "gpu", updates, options, *exact)
    half_way = f"checkpoints/step_{updates // 2}"
    shutil.copytree(out / "gpu" / half_way, out / "resumed" / half_way)
    resumed = train(recipe, out / "resumed", updates, options, *exact)
    half = train(recipe, out / "bf16", updates, options, same, "trainer.mixed_precision.mode=auto")
    if not len(cpu) == len(gpu) == len(half) == 2 * len(resumed) == updates:
        raise RuntimeError("a run has ended early")
    whole, again = (load_weights(out / run, updates) for run in ("gpu", "resumed"))

    return {
        "losses": {"cpu": cpu, "device": gpu, "resumed": resumed, "bf16": half},
        "difference of first losses": find_difference(cpu[:1], gpu[:1]),
        "difference of cpu and device": find_difference(cpu, gpu),
        "difference of fp32 and bf16": find_difference(gpu, half),
        "difference of whole and resumed": find_difference(gpu[-len(resumed) :], resumed),
        "weights that resuming changes": [key for key, value in whole.items() if not torch.equal(again[key], value)],
    }


def train(recipe: Path, out: Path, updates: int, options: Options, *changes: str, device: str | None = None) -> list[float]:
    """Train in this process: the losses of all updates in the output directory.

    :param device: None = that of the options.
    """
    interval = max(1, updates // 2)
    length = [f"regime.num_steps={updates}", f"regime.checkpoint_every_n_steps={interval}", "regime.keep_last_n_checkpoints=2"]
    words = [
        "recipe",
        "train",
        "--config-file",
        str(recipe),
        str(out),
        "--config",
        *QUIET,
        *length,
        *changes,
        *(TINY if options.tiny else ()),
    ]
    with patch.dict(os.environ, {"FAIRSEQ2_DEVICE": name_device(device or options.device)}):
        try:
            main(words)
        except SystemExit as ex:
            if ex.code not in (0, None):
                raise RuntimeError(f"{out}: the training ended with {ex.code}") from ex
        finally:
            torch.use_deterministic_algorithms(False)  # the next run in this process may be a fast one

    return read_losses(out)


def name_device(device: str) -> str:
    return "cuda:0" if device == "cuda" else device


def read_losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics" / "train.jsonl").read_text().splitlines())

    return list({line["Step"]: line["Loss"] for line in lines}.values())


def load_weights(out: Path, update: int) -> dict[str, Tensor]:
    """Weights and teacher in the checkpoint of a run of one process."""
    (path,) = (out / "checkpoints" / f"step_{update}" / "model").rglob("*.pt")

    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def find_difference(expected: Sequence[float], actual: Sequence[float]) -> float:
    """The largest of the relative differences, 0 = bit for bit."""
    return max(abs(a - b) / abs(a) for a, b in zip(expected, actual, strict=False))
