"""Common to all tests: few threads, tests marked ``gpu`` only where there is one, and a tiny recipe to run."""

from __future__ import annotations

import gc
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores, and sums keep one order
os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # or each process that tests start compiles what it imports: 4 seconds, of 7
os.environ.setdefault("FAIRSEQ2_EXTENSION_TRACE", "1")  # a broken extension fails instead of being left out

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import fairseq2.recipe  # noqa: F401  # before fairseq2's other modules, which need it
import pytest
import torch
from fairseq2.assets.metadata_provider import StandardPackageAssetMetadataLoader
from safetensors.torch import load_file

from d2v_plugin.cli.main import main

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent

# Small enough for a step in milliseconds; what a test does not override is the same everywhere.
TINY_RECIPE = f"""
task:
  name: image_pretraining
  config:
    batch_size: 8
    image: {{size: 32, crop_scale: [0.6, 1.0], flip: 0.0, eval_resize: 1.0}}
dataset:
  family: image_manifest
  config_overrides: {{path: {ROOT / "manifests" / "digits"}}}
model:
  arch: image_tiny
  config_overrides: {{dim: 32, depth: 2, num_heads: 2}}
criterion:
  name: data2vec2
  config:
    num_views: 2
    masking: {{name: inverse_block, config: {{ratio: 0.8, block_size: 3, adjust: 0.07}}}}
    ema: {{start: 0.9, end: 0.99, anneal_steps: 10}}
    targets: {{num_layers: 2}}
    cls_weight: 1.0
optimizer: {{config: {{lr: 1.0e-3}}}}
pictures: {{enabled: false}}
regime:
  num_steps: 4
  publish_metrics_every_n_steps: 2
common:
  torch: {{num_threads: 1}}
"""


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the ``fairseq2`` command in this process."""

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        status = 0
        try:
            main([str(word) for word in words])
        except SystemExit as ex:
            status = ex.code if isinstance(ex.code, int) else 1
        out, err = capfd.readouterr()

        return Outcome(status, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_recipe_text() -> str:
    """A recipe that pre-trains a tiny model on the digits for 4 steps."""
    return TINY_RECIPE


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_recipe_text: str) -> Path:
    """The file of that recipe."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 digits, three batches of the tiny recipe, and as many for validation and probes."""
    digits, folder = ROOT / "manifests" / "digits", tmp_path_factory.mktemp("few_pictures")
    for split in ("train", "valid", "probe"):
        root, *rows = (digits / f"{split}.tsv").read_text().splitlines()
        header = [row for row in rows if row.startswith("#")]
        rows = [str(digits / root), *header, *rows[len(header) : len(header) + 24]]
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")

    return folder


FairseqCheckpoint = Callable[..., Path]


@pytest.fixture
def fairseq_checkpoint(tmp_path: Path) -> FairseqCheckpoint:
    """Writes a model of tests/golden as fairseq's trainer wrote it: ``write("audio", change)``, where ``change`` may edit
    the contents before they are saved."""

    def write(modality: str, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
        folder = ROOT / "tests" / "golden" / f"d2v2_{modality}_tiny"
        weights = load_file(folder / "weights.safetensors")
        model = OrderedDict((key[6:], tensor) for key, tensor in weights.items() if key.startswith("model/"))
        content = {
            "args": None,
            "cfg": json.loads((folder / "config.json").read_text())["cfg"],
            "model": model | {"_ema": {key[4:]: tensor for key, tensor in weights.items() if key.startswith("ema/")}},
            "criterion": None,
            "optimizer_history": [{"criterion_name": "ModelCriterion", "optimizer_name": "FairseqAdam", "num_updates": 7}],
            "task_state": {},
            "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": None},
        }
        if change is not None:
            change(content)
        path = tmp_path / f"{modality}.pt"
        torch.save(content, path)

        return path

    return write


SHORT_RUN = [
    "regime={num_steps: 1, publish_metrics_every_n_steps: 1}",
    "lr_scheduler={name: passthrough, config: null}",
    "criterion.config.num_views=1",
    "probing.probes=[]",
    "pictures.enabled=false",
    "common.torch.num_threads=1",
]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the output directory of recipes/demo/NAME.yaml after one update."""
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp("short") / name
            recipe = ROOT / "recipes" / "demo" / f"{name}.yaml"
            main(["recipe", "train", "--config-file", str(recipe), str(runs[name]), "--config", *SHORT_RUN])

        return runs[name]

    return run


LETTERS = "efghinorstuvwxz"
SENTENCES = {"path": f"{ROOT}/manifests/book_pairs", "vocabulary": f"{ROOT}/manifests/books"}

# Of each kind of head: arch, task, dataset, criterion, labels.
HEADS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], list[str] | None]] = {
    "transcripts": (
        "audio_tiny",
        {"name": "speech_recognition", "config": {}},
        {"family": "audio_manifest", "config_overrides": {"path": f"{ROOT}/manifests/words"}},
        {"name": "ctc", "config": {}},
        ["<blank>", "|", *LETTERS],
    ),
    "classes": (
        "image_tiny",
        {"name": "image_classification", "config": {"image": {"size": 32, "eval_resize": 1.0}}},
        {"family": "image_manifest", "config_overrides": {"path": f"{ROOT}/manifests/digits"}},
        {"name": "classification", "config": {}},
        list("0123456789"),
    ),
    "tags": (
        "audio_tiny",
        {"name": "audio_classification", "config": {"tags": True}},
        {"family": "audio_manifest", "config_overrides": {"path": f"{ROOT}/manifests/words"}},
        {"name": "audio_tagging", "config": {}},
        ["e", "o", "x"],
    ),
    "pairs": (
        "text_tiny",
        {"name": "text_classification", "config": {"max_length": 64}},
        {"family": "sentences", "config_overrides": {**SENTENCES, "layout": {"texts": ["first", "second"], "label": "book"}}},
        {"name": "classification", "config": {"pooling": "cls"}},
        ["devil", "jargon"],
    ),
    "numbers": (
        "text_tiny",
        {"name": "text_classification", "config": {"max_length": 64}},
        {"family": "sentences", "config_overrides": {**SENTENCES, "layout": {"label": "score", "numbers": True}}},
        {"name": "classification", "config": {"scores": ["pearson"]}},
        None,
    ),
}


@pytest.fixture(scope="session")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the directory of a tiny model with a random head of a kind of :data:`HEADS`."""
    from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
    from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
    from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
    from d2v_plugin.data.labels import LabelSet
    from d2v_plugin.evaluation.checkpoint import attach_criterion
    from d2v_plugin.models.base import drop_criterion
    from d2v_plugin.models.data2vec2.archs import ARCHS
    from d2v_plugin.models.families import create_model
    from d2v_plugin.weights.directory import ModelDirectory, write_directory
    from d2v_plugin.weights.provenance import Provenance

    classes = {
        "ctc": lambda config: CtcCriterion(CtcConfig(**config)),
        "audio_tagging": lambda config: AudioTaggingCriterion(AudioTaggingConfig(**config)),
        "classification": lambda config: ClassificationCriterion(ClassificationConfig(**config)),
    }
    folder = tmp_path_factory.mktemp("with_head")

    def create(kind: str) -> Path:
        if (folder / kind).exists():
            return folder / kind
        arch, task, dataset, section, names = HEADS[kind]
        labels = None if names is None else LabelSet(names)
        config = ARCHS[arch]()
        if config.text is not None:
            config.text.vocab_size = json.loads((ROOT / "manifests/books/vocabulary.json").read_text())["size"]
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = create_model(config)
            criterion = classes[section["name"]](section["config"])
            attach_criterion(model, criterion, labels)
            changed = [*(model.parameters() if kind == "classes" else ()), *criterion.parameters()]
            for parameter in changed:
                if parameter.dim() > 1:  # samples differ more than in a new model
                    torch.nn.init.normal_(parameter, std=0.3)
        provenance = Provenance({"task": task, "dataset": dataset, "criterion": section}, labels)
        student, head = drop_criterion(model.state_dict()), criterion.state_dict()
        write_directory(folder / kind, ModelDirectory(config=config, student=student, head=head, provenance=provenance))

        return folder / kind

    return create


@pytest.fixture(scope="session", autouse=True)
def _commands_begin_at_once() -> Iterator[None]:
    """Each command of a process would parse fairseq2's cards anew, and go through all objects of the session to free some."""
    load, parsed = StandardPackageAssetMetadataLoader.load, dict[str, Any]()

    def load_once(loader: StandardPackageAssetMetadataLoader, package: str) -> Any:
        if package not in parsed:
            parsed[package] = load(loader, package)
        return deepcopy(parsed[package])

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StandardPackageAssetMetadataLoader, "load", load_once)
        yield


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
