"""Hundreds of damaged recipes, command lines, manifests, text shards, pictures and checkpoints end with named errors.

Every input is made from a correct one by a generator with a fixed seed. What is not an error must simply work.
"""

from __future__ import annotations

import io
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.runtime.dependency import DependencyContainer
from PIL import Image
from ruamel.yaml import YAML
from saving import make_manager

import d2v_plugin
from d2v_plugin.cli.user_errors import explain
from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.files import Location
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.sentences import Sentences, SentencesConfig
from d2v_plugin.data.tables import TableLayout
from d2v_plugin.models.data2vec2.archs import image_tiny
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.tasks.audio import AudioPretrainingTask
from d2v_plugin.tasks.audio_settings import AudioPretrainingConfig
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.provenance import SECTIONS, Provenance
from d2v_plugin.weights.sources import find_provenance

MANIFESTS = Path(__file__).parents[2] / "manifests"
GANGS = create_fake_gangs(torch.device("cpu"))

# What stands where something else is expected.
VALUES: list[Any] = [None, True, -1, 0, 10**30, -0.5, 1e308, "", "x", "\u2028", "é" * 300, "../..", "/dev/null", [], [[]], {}]
VALUES += [{"name": "x"}, {"a": {"b": 1}}, [1, "a"], {"_del_": 3}, {"_set_": []}, "${dir}", "2024-01-01", "1e-3", "0x1f"]

SCRAPS = [b"", b"\0", b"\n\n", b"\t", b"\r", b"- ", b": ", b"? ", b"&a ", b"*a ", b"!!int x", b"!!set ", b"---\n", b"<<: "]
SCRAPS += [*b"{ ] ' % -1 ../ nan 2024-13-45 \xff\xfe \xef\xbb\xbf \xe2\x80\xa8".split(), b"9" * 40]


def mutate_bytes(data: bytes, random: Random, *, scraps: bool = True) -> bytes:
    """Cut, double, overwrite or insert a few pieces."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        place, length = random.randrange(len(changed) + 1), random.randint(1, 20)
        match random.randrange(5 if scraps else 4):
            case 0:
                del changed[place : place + length]
            case 1:
                changed[place:place] = changed[place : place + length]
            case 2:
                del changed[place:]
            case 3:
                changed[place : place + length] = random.randbytes(length)
            case 4:
                changed[place:place] = random.choice(SCRAPS)

    return bytes(changed)


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in plain data: a mapping or a list, and a key in it."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from walk(item)


def mutate_data(content: Any, random: Random) -> Any:
    """Replace, drop or rename a few values of plain data."""
    for _ in range(random.randint(1, 2)):
        owner, key = random.choice(list(walk(content)))
        if isinstance(owner, dict) and random.random() < 0.3:
            owner[random.choice(["x", "name", "_del_", "_set_", "base"])] = owner.pop(key)
        else:
            owner[key] = json.loads(json.dumps(random.choice(VALUES)))

    return content


def assert_named(outcome: Any, source: object) -> None:
    assert outcome.status in (0, 2), f"{source}\n{outcome.err}"
    assert "Traceback" not in outcome.err and "an unexpected" not in outcome.err, f"{source}\n{outcome.err}"
    if outcome.status == 2:
        (place,) = (number for number, line in enumerate(outcome.err.splitlines()) if "error: " in line)
        assert len(outcome.err.splitlines()) - place < 25 and len(outcome.err) < 20_000, f"{source}\n{outcome.err}"


def is_named(ex: Exception) -> bool:
    """Whether the command would end with a line."""
    return explain(ex, DependencyContainer(), Namespace(config_file=None, config_overrides=None)) is not None


def check(action: Callable[[], object], *allowed: type[Exception]) -> bool:
    """Do something with a damaged file.

    :param allowed: exceptions that are documented to mean that a sample is bad.
    :returns: whether it went well.
    """
    try:
        action()
    except Exception as ex:
        if not isinstance(ex, allowed) and not is_named(ex):
            raise
        return False

    return True


def test_recipes(command: Any, tiny_recipe: Path, tiny_recipe_text: str) -> None:
    random, yaml, statuses = Random(0), YAML(typ="safe", pure=True), set()
    for number in range(120):
        if number % 2:
            tiny_recipe.write_bytes(mutate_bytes(tiny_recipe_text.encode(), random))
        else:
            with tiny_recipe.open("w", encoding="utf-8") as file:
                yaml.dump(mutate_data(yaml.load(tiny_recipe_text), random), file)
        outcome = command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, "--dump-config")
        assert_named(outcome, tiny_recipe.read_bytes())
        statuses.add(outcome.status)

    assert statuses == {0, 2}


def test_recipes_that_stand_for_more_than_they_say(command: Any, tiny_recipe: Path) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    texts = {
        bomb: "stands for more than 50,000 values",
        "a: " + "[" * 5000 + "]" * 5000: "nested more than 50 levels deep",
        "a: &a [*a]": "contains itself",
        "a: 1\n---\nb: 2": "second document",
        "regime: {num_steps: 2024-01-01}": "`regime.num_steps` 2024-01-01 is read as a date; quote it",
        "regime: {num_steps: !!int x}": "is not valid YAML",
        'task: {name: "a\\0b"}': "`task.name` has a NUL character",
        "1: 2": "the key `1`, which is no name",
        "criterion: {config: {cls_weight: .nan}}": "`criterion.config.cls_weight` is not a number",
        "#" * 2_000_000: "is larger than the 1,048,576 bytes",
    }
    for text, part in texts.items():
        tiny_recipe.write_text(text)
        outcome = command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, "--dump-config")
        assert_named(outcome, text[:100])
        assert outcome.status == 2 and part in outcome.err and str(tiny_recipe) in outcome.err, outcome.err

    tiny_recipe.write_bytes("# caf\xe9".encode("latin-1"))
    assert "is not UTF-8 text: line 1 has the byte 0xe9" in command("recipe", "train", "--config-file", tiny_recipe, "x").err


def test_command_lines(command: Any, tiny_recipe: Path) -> None:
    random = Random(1)
    words = ["train", "--config-file", str(tiny_recipe), "--dump-config", "--config", "regime.num_steps=3", "--resume", "none"]
    pool = [
        *words,
        "list",
        "evaluate",
        "--",
        "-x",
        "=",
        "a=b=c",
        "del:task",
        "set:x",
        "regime=[",
        "--resume=",
        "--help",
        "\0",
        "é",
    ]
    pool += ["--config=", "a=!!int x", "checkpoint.path=/", "--extension", "/dev/null", "--no-rich", "-1", "a..b=1"]
    for _ in range(60):
        mutant = [word for word in words if random.random() > 0.15]
        for _ in range(random.randint(1, 2)):
            mutant.insert(random.randint(0, len(mutant)), random.choice(pool))
        if "--dump-config" in mutant:
            assert_named(command("recipe", *mutant), mutant)


DATASETS: dict[str, tuple[Any, Callable[[], Task[Any, Any]]]] = {
    "digits": (ImageManifest, lambda: ImagePretrainingTask(ImagePretrainingConfig())),
    "words": (AudioManifest, lambda: AudioPretrainingTask(AudioPretrainingConfig())),
    "books": (TextManifest, lambda: TextPretrainingTask(TextPretrainingConfig())),
}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("suffix", ["tsv", "json", "bin"])
def test_manifests_and_shards(name: str, suffix: str, tmp_path: Path) -> None:
    family, create = DATASETS[name]
    good = tmp_path / "good"
    shutil.copytree(MANIFESTS / name, good, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    files = sorted(path for path in good.rglob(f"*.{suffix}") if path.is_file())
    if not files:
        pytest.skip("it has no such file")
    random = Random(f"{name} {suffix}")

    def read() -> None:
        task = create().open(family.open(ManifestConfig(path=good)), report=None)
        for batch in task.open_rows("valid").read(0, 3, 3):
            assert batch.ids.numel() <= 3

    for _ in range(30):
        path = random.choice(files)
        before = path.read_bytes()
        path.write_bytes(mutate_bytes(before[: 1 << 20], random))
        check(read, SampleError)
        path.write_bytes(before)
    assert check(read)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures(kind: str, tmp_path: Path) -> None:
    random, path, file = Random(kind), tmp_path / "picture", io.BytesIO()
    Image.effect_noise((37, 23), 50.0).convert("RGB").save(file, kind)
    for _ in range(60):
        path.write_bytes(mutate_bytes(file.getvalue(), random, scraps=False))
        # OSError and RuntimeError are what the libraries raise, and what makes a sample a bad one.
        check(partial(decode, Location(str(path))), SampleError, OSError, RuntimeError)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_recordings(kind: str, tmp_path: Path) -> None:
    random, path = Random(kind), tmp_path / "recording"
    soundfile.write(path, np.random.default_rng(0).standard_normal(4000) * 0.1, 16_000, format=kind)
    good = path.read_bytes()
    for _ in range(60):
        path.write_bytes(mutate_bytes(good, random, scraps=False))
        check(
            partial(read_recording, Recording(Location(str(path)), 4000), AudioReadingConfig()),
            SampleError,
            OSError,
            RuntimeError,
        )


def test_tables(tmp_path: Path) -> None:
    """Sentences with labels, and transcripts of recordings."""
    random, layout = Random(3), TableLayout(texts=["first", "second"], label="book")
    for name, ignored in (("book_pairs", ()), ("words", ("*.zip", "*.tar"))):
        shutil.copytree(MANIFESTS / name, tmp_path / name, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__", *ignored))
    for path in (tmp_path / "words").glob("*.tsv"):
        rows = [line.split("\t")[2] for line in path.read_text().splitlines() if line.startswith("words.zip")]
        path.with_suffix(".ltr").write_text("".join(f"{' '.join(row)} |\n" for row in rows))
    config = SentencesConfig(path=tmp_path / "book_pairs", vocabulary=MANIFESTS / "books", layout=layout)

    def read_sentences() -> None:
        task = TextClassificationTask(TextClassificationConfig(batch_size=8)).open(Sentences.open(config), report=None)
        next(task.create_labelled_reader(GANGS, "valid"))

    def read_transcripts() -> None:
        dataset = AudioManifest.open(ManifestConfig(path=tmp_path / "words", check_files=False))
        task = SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None)
        task.create_labelled_reader(GANGS, "valid")

    for name, suffix, read in (("book_pairs", "tsv", read_sentences), ("words", "ltr", read_transcripts)):
        files = sorted((tmp_path / name).glob(f"*.{suffix}"))
        assert files and check(read)
        for _ in range(25):
            path = random.choice(files)
            before = path.read_bytes()
            path.write_bytes(mutate_bytes(before, random))
            check(read, SampleError)
            path.write_bytes(before)


def test_runs(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    """A run's folder, as `load` reads it and as it is resumed; what is damaged is passed over for the checkpoint before."""
    random, out = Random(4), tmp_path / "out"
    settings = ["regime.num_steps=2", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=1"]
    assert command("recipe", "train", "--no-rich", "--config-file", tiny_recipe, out, "--config", *settings).status == 0
    checkpoints = out / "checkpoints"
    good = tmp_path / "good"
    shutil.copytree(checkpoints, good)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    assert len(files) > 8
    for number in range(60):
        path = checkpoints / random.choice(files)
        data = path.read_bytes()
        if path.suffix == ".json" and number % 2:
            path.write_text(json.dumps(mutate_data(json.loads(data), random)))
        else:
            path.write_bytes(mutate_bytes(data, random))
        check(partial(d2v_plugin.load, out))
        check(partial(make_manager, checkpoints))
        shutil.rmtree(checkpoints)
        shutil.copytree(good, checkpoints)
    assert check(partial(d2v_plugin.load, out))


def test_checkpoints(tmp_path: Path) -> None:
    random, folder = Random(2), tmp_path / "model"
    config: Data2VecConfig = image_tiny()
    config.dim, config.depth, config.num_heads = 16, 1, 2
    student = create_model(config).state_dict()
    # Of no criterion that is registered: the head is read, but nothing is made of it.
    sections = {name: {"name": "x", "config": {"a": 1}} for name in SECTIONS}
    provenance = Provenance(sections, LabelSet(["a", "b"]))
    write_directory(folder, ModelDirectory(config=config, student=student, head={"x": torch.zeros(2)}, provenance=provenance))
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for number in range(90):
        path = random.choice(list(files))
        if path.suffix == ".json" and number % 2:
            path.write_text(json.dumps(mutate_data(json.loads(files[path]), random)))
        else:
            path.write_bytes(mutate_bytes(files[path], random))
        check(partial(d2v_plugin.load, folder, head=False))
        check(partial(find_provenance, folder))
        path.write_bytes(files[path])
    assert check(partial(d2v_plugin.load, folder, head=False)) and check(partial(find_provenance, folder))
