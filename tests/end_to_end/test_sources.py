"""Data of many origins in one run, trained, resumed, counted and evaluated: archives, tables, corpora of other toolkits."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_plugin.core.remote import place
from tests.conftest import Command
from tests.data.preparation import corpora

RECIPE = Path(__file__).parents[2] / "recipes" / "demo" / "finetune_words.yaml"
STEPS = [f"regime.{name}={count}" for name, count in (("num_steps", 2), ("checkpoint_every_n_steps", 1))]
FAST = [*STEPS, "regime.publish_metrics_every_n_steps=1", "regime.validate_every_n_steps=2", "pictures.enabled=false"]
FAST += ["common.torch.num_threads=1", "probing.baselines=false"]
TINY = "{dim: 32, depth: 2, num_heads: 2, audio: {conv_norm: group_norm, decoder: null}}"


def run(command: Command, *words: object) -> Any:
    outcome = command("recipe", *words)
    assert outcome.status == 0, outcome.err
    return outcome


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    place(path).write_bytes(file.getvalue())


def train_resume_and_evaluate(
    command: Command, recipe: Path, parts: Sequence[Path], folder: Path, settings: list[str], measured: list[str]
) -> dict[str, Any]:
    """Compare a resumed run with a whole one, and the counts of samples with what was drawn. Returns the scores."""
    data = ", ".join(f"{{path: {part}, weight: {weight}}}" for weight, part in enumerate(parts, 1))
    words = ["train", "--config-file", recipe]
    flags = ["--config", f"dataset.config_overrides.parts=[{data}]", *FAST, *settings]
    run(command, *words, folder / "whole", *flags)
    shutil.copytree(folder / "whole" / "checkpoints" / "step_1", folder / "resumed" / "checkpoints" / "step_1")
    outcome = run(command, *words, folder / "resumed", *flags)
    assert "Resuming from step 1" in " ".join(outcome.err.split())

    one, other = (next((folder / name / "checkpoints" / "step_2" / "model").rglob("*.pt")) for name in ("whole", "resumed"))
    here, there = (torch.load(file, weights_only=True) for file in (one, other))
    assert all(torch.equal(here[key], there[key]) for key in here)
    lines, rest = (
        [json.loads(line) for line in (folder / name / "metrics" / "train.jsonl").read_text().splitlines()]
        for name in ("whole", "resumed")
    )
    counts = [[sum(line[f"samples/{part.name}"] for line in found) for part in parts] for found in (lines, lines[1:], rest)]
    assert counts[1] == counts[2] and min(counts[0]) > 0 and counts[0][0] <= counts[0][-1]

    run(command, "evaluate", folder / "scores", "--config", f"checkpoint.path={folder / 'resumed'}", *measured)
    return json.loads((folder / "scores" / "scores.json").read_text())["scores"]  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("error:Duplicate name")  # rows of one number in two splits
def test_pictures_in_archives_on_a_store_in_tables_and_in_other_formats(
    command: Command, tiny_recipe: Path, tmp_path: Path
) -> None:
    pictures = [np.full((32, 32, 3), 30 * row, dtype=np.uint8) for row in range(8)]
    encoded: dict[str, list[bytes]] = {}
    for kind in ("png", "bmp", "tiff"):
        files = [io.BytesIO() for _ in pictures]
        for picture, file in zip(pictures, files, strict=True):
            Image.fromarray(picture).save(file, kind)
        encoded[kind] = [file.getvalue() for file in files]
    labels = [["cat", "dog"][row % 2] for row in range(8)]
    tar, tables, saved, loose = parts = [tmp_path / name for name in ("tar", "tables", "saved", "loose")]

    members = {f"{row}.{kind}": data[row] for kind, data in (("png", encoded["png"]),) for row in range(8)}
    members |= {f"{row}.cls": label.encode() for row, label in enumerate(labels)}
    write_tar(place("memory://sources/tars/0.tar"), dict(sorted(members.items())))
    run(command, "manifest", "image", "memory://sources/tars", tar, "--labels", "cls", "--valid-percent", 25)
    columns = {"image": [{"bytes": data, "path": None} for data in encoded["png"]], "label": [row % 2 for row in range(8)]}
    features = {"image": {"_type": "Image"}, **corpora.FEATURES}
    source = corpora.write_table(tmp_path / "t.parquet", columns, **features)
    run(command, "manifest", "import", source, tables, "--labels", "label", "--valid-percent", 25)
    run(command, "manifest", "import", corpora.write_saved(tmp_path / "hub", columns, **features), saved)
    for row, label in enumerate(labels):
        kind = ("bmp", "tiff")[row // 2 % 2]
        (path := tmp_path / "files" / label / f"{row}.{kind}").parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[kind][row])
    run(command, "manifest", "image", tmp_path / "files", loose, "--labels", "folders", "--valid-percent", 25)

    settings = ["probing.probes=[{name: knn}]"]
    scores = train_resume_and_evaluate(command, tiny_recipe, parts, tmp_path, settings, settings)
    assert 0 <= scores["probe"]["probe_knn"] <= 1


def test_recordings_as_other_toolkits_name_them(command: Command, tmp_path: Path) -> None:
    sounds = corpora.make_sounds(tmp_path / "wav")
    parts = []
    for make in (corpora.kaldi, corpora.espnet, corpora.nemo, corpora.lhotse_cuts, corpora.timit, corpora.librispeech):
        parts.append(tmp_path / f"from_{make.__name__}")
        run(command, "manifest", "import", make(tmp_path / make.__name__, sounds), parts[-1])
    columns = {
        "audio": [{"bytes": corpora.encode("audio", row, sounds), "path": None} for row in range(4)],
        "sentence": ["so", "no", "so", "no"],
    }
    parts.append(tmp_path / "from_saved")
    run(command, "manifest", "import", corpora.write_saved(tmp_path / "hub", columns, audio={"_type": "Audio"}), parts[-1])
    parts.append(tmp_path / "from_fairseq")
    run(command, "manifest", "import", corpora.fairseq(tmp_path / "fairseq", sounds), parts[-1], "--labels", "text")
    members = {name: data for sound in "ab" for name, data in (
        (f"{sound}.wav", (sounds / f"{sound}.wav").read_bytes()), (f"{sound}.txt", b"said " + sound.encode())
    )}  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    parts.append(tmp_path / "from_tar")
    run(command, "manifest", "audio", tmp_path / "0.tar", parts[-1], "--transcripts", "txt")
    parts.append(write_compressed(command, sounds, tmp_path / "compressed"))

    size = ["task.config.max_num_elements=32000", "task.config.batches_per_update=12"]
    settings = [*size, "regime.keep_last_n_checkpoints=null", f"model.config_overrides={TINY}"]
    scores = train_resume_and_evaluate(command, RECIPE, parts, tmp_path, settings, [])
    assert scores["valid"]["wer"] > 0


def test_texts_of_a_saved_dataset(command: Command, tmp_path: Path) -> None:
    texts = [f"{word} words that are common to all of them, " * 4 for word in ("many", "few", "some", "such") * 6]
    source = corpora.write_saved(tmp_path / "hub", {"text": texts, "label": [row % 2 for row in range(24)]}, **corpora.FEATURES)
    run(command, "manifest", "import", source, tmp_path / "texts", "--vocabulary-size", 300, "--probe-percent", 25)

    model = "model.config_overrides={dim: 32, depth: 2, num_heads: 2}"
    settings = ["probing.probes=[{name: knn}]", model, "task.config.tokens_per_sample=32", "regime.keep_last_n_checkpoints=null"]
    settings.append("criterion.config.targets.num_layers=2")
    recipe = RECIPE.with_name("books.yaml")
    scores = train_resume_and_evaluate(command, recipe, [tmp_path / "texts"], tmp_path, settings, settings[:1])
    assert 0 <= scores["probe"]["probe_knn"] <= 1


def write_compressed(command: Command, sounds: Path, folder: Path) -> Path:
    """Sound that ffmpeg alone decodes."""
    av = pytest.importorskip("av")
    folder.mkdir()
    samples = soundfile.read(sounds / "a.wav", dtype="int16")[0]
    for name, codec in (("a.m4a", "aac"), ("b.g722", "g722")):
        with av.open(folder / name, "w") as out:
            stream = out.add_stream(codec, rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            out.mux([*stream.encode(frame), *stream.encode(None)])
    (folder / "texts.tsv").write_text("a.m4a\tsaid so\nb.g722\tsaid no\n")
    run(command, "manifest", "audio", folder, folder / "from_ffmpeg", "--transcripts", folder / "texts.tsv")

    return folder / "from_ffmpeg"
