"""The command does what its help says, and mistakes end with one line that says what to write instead."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.main import main
from d2v_plugin.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]

# What the user writes -> what the answer must contain. `{tmp}` is a directory, `{recipe}` a correct recipe.
MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    # names
    "task": ("task.name=image_pretrainin", ("`image_pretrainin` is not a known task", "Did you mean `image_pretraining`?")),
    "criterion": ("criterion={{name: data2vec3}}", ("known criterion", "Did you mean `data2vec2`?")),
    "mask sampler": (
        "criterion.config={{masking: {{name: blok}}}}",
        ("`blok` is not a known mask sampler", "block, inverse_block, random"),
    ),
    "probe": ("probing.probes=[{{name: lineer}}]", ("`lineer` is not a known probe", "knn, linear")),
    "model family": ("model.family=data2vek", ("known model family", "Did you mean `data2vec`?", "wav2vec2")),
    "arch": ("model.arch=image_tinny", ("known arch of the model family `data2vec`", "`image_tiny`", "audio_base")),
    "dataset family": ("dataset.family=image_manifes", ("known dataset family", "Did you mean `image_manifest`?")),
    "optimizer": ("optimizer={{name: adamx}}", ("known optimizer", "adafactor, adamw, data2vec_adamw")),
    "lr scheduler": ("lr_scheduler={{name: cosin}}", ("known lr scheduler", "cosine_annealing", "tri_stage")),
    "metric": ("probing.probes=[{{name: knn}}] regime.score_metric=knn", ("known metric", "probe_knn")),
    "train split": ("task.config.split=trian", ("`trian` is not a known split", "Did you mean `train`?", "valid")),
    "probe split": (
        "probing.probes=[{{name: knn}}] probing.valid_split=validd",
        ("`validd` is not a known split", "Did you mean `valid`?"),
    ),
    "cluster": ("common.cluster=slum", ("known cluster", "Did you mean `slurm`?")),
    # keys
    "section": ("optimiser.config.lr=1", ("`optimiser` is not a known key", "Did you mean `optimizer`?", "lr_scheduler")),
    "key of a section": ("regime.num_step=3", ("--config: ", "key of `regime`", "Did you mean `num_steps`?")),
    "key of a component": ("criterion.config.num_view=3", ("key of `criterion.config`", "Did you mean `num_views`?")),
    "key inside a component": ("criterion.config.ema.star=1", ("key of `criterion.config.ema`", "`start`")),
    "key of a mask sampler": (
        "criterion.config={{masking: {{name: random, config: {{ration: 0.5}}}}}}",
        ("key of `criterion.config.masking.config`", "Did you mean `ratio`?"),
    ),
    "key of a probe": (
        "probing.probes=[{{name: knn, config: {{kk: 5}}}}]",
        ("`kk` is not a known key of `probing.probes.0.config`", "`k`"),
    ),
    "key of a task": ("task.config.image.sise=32", ("key of `task.config.image`", "Did you mean `size`?")),
    "key of the optimizer": ("optimizer.config.weightdecay=1", ("key of `optimizer.config`", "Did you mean `weight_decay`?")),
    "key of the model": ("model.config_overrides.dept=2", ("key of `model.config_overrides`", "Did you mean `depth`?")),
    "key of the dataset": ("dataset.config_overrides.pth=2", ("key of `dataset.config_overrides`", "Did you mean `path`?")),
    # types
    "integer": ("regime.num_steps=many", ("`regime.num_steps`", "`many`", "int")),
    "float": ("optimizer.config.lr=[1]", ("`optimizer.config.lr`", "`[1]`", "float")),
    "boolean": ("common.no_sweep_dir=maybe", ("`common.no_sweep_dir`", "bool", "`maybe`")),
    "choice": ("trainer.mixed_precision.mode=on", ("`trainer.mixed_precision.mode`", "`on`", "off, static, auto")),
    "dtype": ("model.dtype=float31", ("`model.dtype`", "float31")),
    "pair": ("optimizer.config.betas=[0.9]", ("`optimizer.config.betas`", "2 element")),
    "mapping": ("criterion.config=3", ("`criterion.config`", "`3`")),
    "integer of the model": ("model.config_overrides.depth=deep", ("`model.config_overrides.depth`", "`deep`", "int")),
    # values
    "number of steps": ("regime.num_steps=0", ("`regime`", "`num_steps`")),
    "no steps": ("regime.num_steps=null", ("`regime.num_steps` must be set",)),
    "data epochs": ("regime.num_data_epochs=3", ("`regime.num_data_epochs`", "`regime.num_steps`")),
    "accumulation": (
        "trainer.grad_accumulation.num_batches=2",
        ("`trainer.grad_accumulation.num_batches`", "`task.config.max_batch_size`"),
    ),
    "learning rate": ("optimizer.config.lr=-1.0", ("`optimizer.config`", "`lr` must be at least 0, but is -1.0")),
    "views": ("criterion.config.num_views=0", ("`num_views` must be at least 1, but is 0",)),
    "target layers": ("criterion.config.targets.num_layers=9", ("`targets.num_layers`", "9")),
    "same probe twice": ("probing.probes=[{{name: knn}},{{name: knn}}]", ("`probing.probes` names a probe twice",)),
    "share": ("regime.checkpoint_every_n_steps=110%", ("`regime.checkpoint_every_n_steps` is `110%`", "from 0% to 100%")),
    "batch size": ("task.config.batch_size=-4", ("`batch_size`", "-4")),
    "image size": ("task.config.image.size=33", ("`task.config.image.size` is 33", "32")),
    "colors": ("task.config.image.std=[0,0,0]", ("`task.config.image`: `std` must be greater than 0",)),
    "flip": ("task.config.image.flip=2", ("`task.config.image`: `flip` must be between 0 and 1, but is 2",)),
    "seed": ("common.seed=-1", ("`common`: `seed` must be between 0 and 4,294,967,287, but is -1",)),
    "clipping": ("trainer.max_grad_norm=-1", ("`trainer`: `max_grad_norm` must be greater than 0 or null, but is -1",)),
    "noise": ("criterion.config.noise_std=-1", ("`criterion.config`: `noise_std` must be at least 0, but is -1",)),
    "pictures": ("pictures.every_n_steps=0", ("`pictures`: `every_n_steps` must be at least 1, but is 0",)),
    "threads": ("common.torch.num_threads=-1", ("`common.torch`: `num_threads` must be at least 1 or null",)),
    "no number": ("optimizer.config.lr=.nan", ("optimizer.config.lr=.nan", "is not a number")),
    "date": ("common.seed=2024-01-01", ("2024-01-01 is read as a date; quote it",)),
    # what does not belong together
    "criterion of the other generation": (
        "model.family=data2vec1 model.arch=vision_base",
        ("trains models of the family `data2vec`, but `model` is a",),
    ),
    "task and dataset": (
        "task={{name: audio_pretraining}} task.config={{}}",
        ("`dataset.family` opens ImageManifest", "`task.name` reads AudioManifest"),
    ),
    "dataset and task": (
        "dataset.family=audio_manifest",
        ("`dataset.family` opens AudioManifest", "`task.name` reads ImageManifest"),
    ),
    "settings of the model": (
        "model.config_overrides.dropout=2",
        ("`model.config_overrides`: `dropout` must be between 0 and 1, but is 2",),
    ),
    # files
    "manifest folder": ("dataset.config_overrides.path={tmp}/nowhere", ("{tmp}/nowhere", "`dataset.config_overrides.path`")),
    "checkpoint": ("model.path={tmp}/nowhere.pt", ("`model.path`", "{tmp}/nowhere.pt")),
}


def start(*words: object, program: Sequence[str] = (sys.executable,), stdout: int = subprocess.PIPE) -> Any:
    """Run a command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*program, *map(str, words)]

    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, timeout=120)


def assert_one_line(outcome: Any, *parts: str) -> None:
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if "error:" in line]
    assert len(lines) == 1 and outcome.err.rstrip().endswith(lines[0]), outcome.err
    assert lines[0].startswith("fairseq2: error: ")
    for part in parts:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_alternatives(mistake: str, command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    overrides, parts = MISTAKES[mistake]
    words = [word.replace("\0", " ") for word in overrides.format(tmp=tmp_path).replace(": ", ":\0").replace(", ", ",\0").split()]

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *words)

    assert_one_line(outcome, *(part.format(tmp=tmp_path) if "{tmp}" in part else part for part in parts))


def test_all_mistakes_that_the_classes_of_the_configuration_find_are_told_at_once(
    command: Any, tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = ["model.dtype=float31", "optimizer.config.betas=[0.9]", "task.config.image.crop_scale=[1,0.5]"]
    settings.append("regime.num_data_epochs=3")

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    head, *told = outcome.err[outcome.err.index("fairseq2: error: ") :].splitlines()
    assert head == "fairseq2: error: 4 mistakes in the configuration:"
    for part in ("`model.dtype`", "`optimizer.config.betas`", "`crop_scale`", "`regime.num_data_epochs`"):
        assert sum(part in line for line in told) == 1, part


def test_all_mistakes_of_keys_types_ranges_and_files_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    words = "optimiser.lr=1 criterion.config.num_view=3 optimizer.config.lr=[1] init.path=out/nowhere task.config.split=trian"
    words += " optimizer.config.eps=-1"
    recipe = ROOT / "recipes" / "demo" / "words.yaml"
    code = (
        "import sys\nfrom d2v_plugin.cli.main import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules or 'fairseq2' in sys.modules)"
    )
    outcome = start("-c", code, "recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", *words.split())

    assert outcome.returncode == 2 and outcome.stdout == "False\n", outcome.stderr
    head, *told = outcome.stderr.splitlines()
    assert head == "fairseq2: error: 6 mistakes in the configuration:"
    known = "\n".join(sorted(told)[:4])
    assert "  --config: `num_view` is not a known key of `criterion.config`. Did you mean `num_views`?" in known
    assert "  --config: `optimizer.config.lr`: `[1]` is not valid: Value must be of type float." in known
    assert "  --config: `optimiser` is not a known key. Did you mean `optimizer`?" in known
    assert "  --config: `optimizer.config`: `eps` must be greater than 0, but is -1.0." in known
    assert told[4].strip().startswith("`init.path` is out/nowhere") and "does not exist" in told[4]
    assert "`trian` is not a known split" in told[5]


@pytest.mark.parametrize(
    ("device", "parts"), [("gpu", ("--device is `gpu`", "cuda:N")), ("cuda:99", ("cuda:99", "--device cpu"))]
)
def test_a_wrong_device_is_told(command: Any, tiny_recipe: Path, tmp_path: Path, device: str, parts: tuple[str, ...]) -> None:
    assert_one_line(command("recipe", "train", "--device", device, "--config-file", tiny_recipe, tmp_path / "out"), *parts)


def test_a_device_is_passed_on(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRSEQ2_DEVICE", "cuda")

    assert command("recipe", "list", "--device=cpu").status == 0 and os.environ["FAIRSEQ2_DEVICE"] == "cpu"


def test_a_missing_file_names_those_beside_it(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    outcome = command("recipe", "train", "--config-file", tmp_path / "tyni.yaml", tmp_path / "out")

    assert_one_line(outcome, f"{tmp_path}/tyni.yaml", str(tiny_recipe))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("task: {name: a\nmodel: [", ("bad.yaml", "not valid YAML", "line 2")),
        ("", ("bad.yaml", "empty")),
        ("- task", ("bad.yaml", "list")),
        (
            "regime: {num_steps: 4, num_stepz: 3}\ndataset: {family: image_manifest}",
            ("bad.yaml", "key of `regime`", "`num_steps`"),
        ),
        ("regime: 3\ndataset: {family: image_manifest}", ("bad.yaml", "`regime`", "`3`")),
    ],
)
def test_a_wrong_file_is_named_with_the_place(command: Any, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)

    assert_one_line(command("recipe", "train", "--config-file", path, tmp_path / "out"), *parts)


def test_all_mistakes_are_told_at_once_each_with_its_key(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    words = ["common.seed=-1", "optimizer.config.lr=-1", "criterion.config.num_views=0"]
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *words)

    assert outcome.status == 2
    head, *lines = outcome.err.splitlines()
    assert head == "fairseq2: error: 3 mistakes in the configuration:"
    assert sorted(lines) == [
        "  --config: `common`: `seed` must be between 0 and 4,294,967,287, but is -1.",
        "  --config: `criterion.config`: `num_views` must be at least 1, but is 0.",
        "  --config: `optimizer.config`: `lr` must be at least 0, but is -1.0.",
    ]


def test_bad_lines_of_a_manifest_are_lines(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(".\n" + "nothing.png\n" * 30)
    words = ["--config", f"dataset.config_overrides.path={tmp_path}"]
    lines = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", *words).err.splitlines()

    assert "30 bad line(s)" in lines[-22] and lines[-21].startswith(f"  {tmp_path}/train.tsv:2: ")
    assert lines[-1] == "  … and 10 more."


def test_what_nobody_foresaw_is_a_line_and_a_traceback_in_the_log(
    command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr("d2v_plugin.training.unit.CriterionUnit.process_batch", fail)
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out")

    assert outcome.status == 1 and "Traceback" not in outcome.err
    log = tmp_path / "out" / "logs" / "rank_0.log"
    assert f"an unexpected ZeroDivisionError: one over nothing (The traceback is in {log}; please report it.)" in outcome.err
    assert "Traceback (most recent call last)" in log.read_text() and "one over nothing" in log.read_text()


def test_an_output_directory_that_cannot_be_made_is_named(command: Any, tiny_recipe: Path) -> None:
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tiny_recipe / "out")

    assert_one_line(outcome, f"{tiny_recipe}/out")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("a command is missing", "`recipe`")),
        (("recipes",), ("`recipes` is not a known command", "Did you mean `recipe`?")),
        (("recipe",), ("a verb is missing", "train", "list")),
        (("recipe", "trian"), ("`trian` is not a known verb", "Did you mean `train`?", "predict, pretrain, train")),
        (("recipe", "train"), ("output_dir", "required")),
        (("recipe", "train", "--confg-file", "x.yaml", "out"), ("--confg-file",)),
        (("recipe", "train", "out", "--config", "regime.num_steps"), ("invalid key-value pair: regime.num_steps",)),
        (("recipe", "train", "out", "--extension"), ("--extension", "must follow")),
        (("recipe", "list", "--all"), ("`--all`",)),
        (("recipe", "train", "out", "--config-file"), ("--config-file: a path must follow",)),
        (("recipe", "train", "out", "--config-file", "a", "--config-file", "b"), ("--config-file is given 2 times",)),
        (("recipe", "train", "out", "--resume", "none", "--resume", "3"), ("--resume is given 2 times",)),
        (("recipe", "train", "out", "--resume", "9" * 5000), ("--resume", "5,000 digits")),
        (("recipe", "train", "out", "--resume", "--no-rich"), ("--resume", "must follow")),
        (("recipe", "train", "out", "--config", "a=!!int x"), ("a=!!int x", "not valid YAML")),
    ],
)
def test_a_wrong_command_line_is_one_line(command: Any, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_line(command(*words), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ("there is no such file",)),
        ("x = 1", ("must define a function `setup_fairseq2_extension(container)`",)),
        ("x = 1\ny = z", ("line 2", "NameError", "'z'")),
        ("x = = 1", ("line 1", "SyntaxError")),
        ("def setup_fairseq2_extension(container):\n    container.nothing()", ("line 2", "nothing")),
        (
            "from d2v_plugin.core.registry import register\nfrom d2v_plugin.criteria.base import Criterion\n"
            "def setup_fairseq2_extension(container):\n    register(container, Criterion, 'data2vec2', None, None)",
            ("line 4", "criterion `data2vec2` is already registered"),
        ),
    ],
)
@pytest.mark.parametrize("verb", ["list", "train"])
def test_a_wrong_extension_is_named_with_the_line(
    command: Any, tiny_recipe: Path, tmp_path: Path, verb: str, text: str | None, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    words = [] if verb == "list" else ["--config-file", tiny_recipe, tmp_path / "out"]

    assert_one_line(command("recipe", verb, *words, "--extension", path), f"--extension {path}", *parts)


@pytest.mark.parametrize("words", [("--help",), ("recipe", "-h"), ("recipe", "train", "--help"), ("recipe", "list", "--help")])
def test_help_at_every_level_shows_an_example(command: Any, words: tuple[str, ...]) -> None:
    outcome = command(*words)

    assert outcome.status == 0
    assert outcome.out.startswith("usage: fairseq2 recipe")
    assert "examples:\n  fairseq2 recipe " in outcome.out


def test_help_lists_fairseq2s_own_flags(command: Any) -> None:
    out = command("recipe", "train", "--help").out

    for flag in ("--config-file", "--config", "--dump-config", "--no-rich", "--checkpoint-dir", "--extension", "output_dir"):
        assert flag in out


def test_list_shows_what_a_recipe_may_name(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    out = command("recipe", "list").out

    sections = dict(section.split(":\n", 1) for section in out.strip().split("\n\n"))
    assert [line.split()[0] for line in sections["verbs"].splitlines() if line][:4] == [
        "train",
        "pretrain",
        "finetune",
        "evaluate",
    ]
    assert "image_pretraining" in sections["tasks"].split()
    assert "image_manifest" in sections["datasets"].split()
    assert "data2vec2" in sections["criteria"].split()
    assert {"block", "inverse_block", "random"} <= set(sections["mask samplers"].split())
    assert {"knn", "linear"} <= set(sections["probes"].split())
    assert "recipes/demo/digits.yaml" in sections["recipes"].split()
    assert "data2vec2_audio_base  LibriSpeech (960 hours), without labels" in sections["named models"]
    models = sections["models"].splitlines()
    assert models[0].strip().startswith("data2vec: ") and "image_tiny" in models[0]
    assert "wav2vec2" in models[-1]


def test_every_recipe_starts_with_its_command(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # Those of tools/experiments/sweep.py and tools/experiments/study.py name recipes instead of being one.
    recipes = sorted(path for path in Path("recipes").rglob("*.yaml") if path.parent.name not in ("sweeps", "study"))

    assert recipes
    for recipe in recipes:
        comment = "".join(line for line in recipe.read_text().splitlines(keepends=True) if line.startswith("#"))
        assert f" recipe train --config-file {recipe} " in comment
        assert all(word in comment for word in ("Hardware:", "Cost:", "Expected:"))
        assert command("recipe", "train", "--config-file", recipe, "--dump-config").status == 0


def test_a_dumped_configuration_is_complete_and_can_be_used(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    dumped = command("recipe", "train", "--config-file", tiny_recipe, "--dump-config")
    again = tmp_path / "again.yaml"
    again.write_text(dumped.out)

    assert "no_sweep_dir: true" in dumped.out and "decay_all: false" in dumped.out and "final_lr_scale: 0.0" in dumped.out
    assert command("recipe", "train", "--config-file", again, "--dump-config").out == dumped.out


@pytest.mark.parametrize("verb", ["evaluate", "extract", "inspect"])  # train: test_a_reader_that_leaves…
def test_every_verb_starts_in_a_process_of_its_own(verb: str) -> None:
    """Modules of fairseq2 must be imported in a certain order, which other tests of this process may have done already."""
    outcome = start("-m", "d2v_plugin", "recipe", verb, "--help")

    assert outcome.returncode == 0, outcome.stderr
    assert f"  fairseq2 recipe {verb} " in outcome.stdout


def test_the_installed_command_and_the_module_understand_the_same_words() -> None:
    script = Path(sys.executable).with_name("fairseq2")
    outcomes = [start(script, "recipe", "list", program=()), start("-m", "d2v_plugin", "recipe", "list")]

    assert outcomes[0].returncode == 0, outcomes[0].stderr
    assert outcomes[0].stdout == outcomes[1].stdout


@pytest.mark.parametrize("words", ["recipe list", "--help", "recipe train --config-file recipes/demo/digits.yaml --dump-config"])
def test_a_reader_that_leaves_ends_the_command_quietly(words: str) -> None:
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        outcome = start("-m", "d2v_plugin", *words.split(), stdout=writer)
    finally:
        os.close(writer)

    assert outcome.returncode == 128 + signal.SIGPIPE
    assert not re.search("Traceback|BrokenPipe|Broken pipe|error", outcome.stderr, re.I), outcome.stderr


@pytest.mark.parametrize(
    "words", ["recipe list", "doctor --help", "recipe train --config-file recipes/demo/digits.yaml --dump-config"]
)
def test_an_output_without_room_ends_the_command_with_a_line(words: str, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        outcome = command(*words.split())

    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1 and "the standard output" in outcome.err and "No space left" in outcome.err


def test_a_broken_pipe_of_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setitem(VERBS, "list", fail)

    with pytest.raises(BrokenPipeError):
        main(["recipe", "list"])
