"""What is imported: nothing heavy before somebody needs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from d2v_plugin.cli.listing import REGISTERED
from d2v_plugin.cli.registered import describe_registered

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("transformers", "tensorboard", "torchvision", "matplotlib", "sklearn", "scipy", "sacrebleu", "tiktoken", "sympy"),
    *("torch._dynamo", "torcheval.metrics.audio", "torcheval.metrics.classification", "huggingface_hub", "pandas", "av", "s3fs"),
)

CHECK = f"""
import sys
from d2v_plugin.cli.main import main

def run(*words):
    try: main(["recipe", *words])
    except SystemExit as ex: return ex.code

run("list")
assert "torch" not in sys.modules and "fairseq2" not in sys.modules
# A mistake that only the classes of the configuration know; before it is found, a run is as good as set up.
assert run("train", "--config-file", "recipes/demo/digits.yaml", sys.argv[1], "--config", "criterion.config.num_views=0") == 2
from d2v_plugin.verbs.predict import recipe
from d2v_plugin.verbs import evaluate, export, extract, inspect, loading
for verb in ("evaluate", "export", "extract", "inspect"):
    __import__(f"d2v_plugin.verbs.{{verb}}.recipe")
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found

# What was left out is there as soon as it is used, and what fairseq2 asks of it is what it would have been.
import fairseq2.assets.download_manager as downloads, fairseq2.metrics, torcheval.metrics
assert not isinstance(1, downloads.HfHubHTTPError) and "huggingface_hub" not in sys.modules
assert issubclass(fairseq2.metrics.Mean, torcheval.metrics.Mean)
downloads.snapshot_download.use()
import huggingface_hub
assert downloads.HfHubHTTPError is huggingface_hub.errors.HfHubHTTPError
assert "s3" in fairseq2.file_system.filesystem("s3").protocol and "s3fs" in sys.modules
assert torcheval.metrics.functional.mean and torcheval.metrics.AUC and "torchvision" in sys.modules
"""


def test_heavy_libraries_are_imported_when_they_are_used(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "`num_views` must be" in done.stderr


def test_what_is_listed_is_what_is_registered() -> None:
    """After a change: ``fairseq2 recipe list --registered > d2v_plugin/cli/registered.txt``."""
    assert REGISTERED.read_text(encoding="utf-8") == describe_registered([]) + "\n"
