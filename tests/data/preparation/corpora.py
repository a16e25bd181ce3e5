"""Small corpora as other toolkits write them: what they say of two recordings, tables of pictures and recordings."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

RATE = 16_000


def make_sounds(folder: Path) -> Path:
    """Two recordings of one and two seconds; every sample of them differs from its neighbors."""
    folder.mkdir()
    for name, seconds in (("a", 1), ("b", 2)):
        values = np.random.default_rng(seconds).integers(-9999, 9999, seconds * RATE, dtype=np.int16)
        soundfile.write(folder / f"{name}.wav", values, RATE)
    return folder


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def kaldi(folder: Path, sounds: Path) -> Path:
    write(folder / "wav.scp", f"a {sounds}/a.wav", f"b flac -c -d -s {sounds}/b.wav |", f"c sph2pipe {sounds}/c.sph |", "d x.wav")
    write(folder / "segments", "a1 a 0.1 0.6", "a2 a 0.60 1.00", "b1 b 0.5 -1", "c1 c 0 1", "e1 e 0 1", "a3 a 0 1 1")
    write(folder / "text", "a1 hello\tworld", "a2 again", "b1 x　y", "gone never said")
    write(folder / "utt2spk", "a1 ann", "a2 ann", "b1 bob")
    return folder


def espnet(folder: Path, sounds: Path) -> Path:
    """A dump, with paths below the folder that it was made in."""
    dump = folder / "dump" / "raw" / "train"
    lines = []
    for name in "ab":
        path = folder / "data" / "format.1" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((sounds / f"{name}.wav").read_bytes())
        lines.append(f"{name} data/format.1/{name}.wav")
    write(dump / "wav.scp", *lines)
    write(dump / "text", "a hello world", "b again")
    write(dump / "utt2spk", "a ann", "b bob")
    return dump


def nemo(folder: Path, sounds: Path) -> Path:
    whole = {"audio_filepath": str(sounds / "a.wav"), "duration": 0.999, "text": "hello world", "speaker": "ann"}
    part = {"audio_filepath": "../wav/b.wav", "offset": 0.5, "duration": 1.25, "text": "again", "lang": "en"}
    return write(folder / "train.json", whole, part, {**part, "offset": 1.0, "duration": 7.0}, {**part, "text": ""})


def make_recording(path: Path, seconds: int, **more: object) -> dict[str, Any]:
    sources = [{"type": "file", "channels": [0], "source": str(path)}]
    size = {"sampling_rate": RATE, "num_samples": seconds * RATE, "duration": float(seconds), "channel_ids": [0]}
    return {"id": path.stem, "sources": sources, **size, **more}


def make_supervision(name: str, recording: str, start: float, duration: float, text: str, speaker: str) -> dict[str, Any]:
    times = {"start": start, "duration": duration, "channel": 0}
    return {"id": name, "recording_id": recording, **times, "text": text, "speaker": speaker, "language": "en"}


def lhotse_cuts(folder: Path, sounds: Path) -> Path:
    a, b = make_recording(sounds / "a.wav", 1), make_recording(sounds / "b.wav", 2)
    said = make_supervision("a1", "a", 0.0, 1.0, "hello world", "ann")
    first, last = make_supervision("b1", "b", 0.0, 0.5, "one", "bob"), make_supervision("b2", "b", 0.5, 0.25, "two", "eve")
    cut = {"channel": 0, "type": "MonoCut"}
    turned = {**b, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}
    return write(
        folder / "cuts.jsonl.gz",
        {"id": "a-0", "start": 0.0, "duration": 1.0, **cut, "supervisions": [said], "recording": a},
        {"id": "b-0", "start": 1.0, "duration": 0.75, **cut, "supervisions": [first, last], "recording": b},
        {"id": "b-1", "start": 0.0, "duration": 0.5, **cut, "supervisions": [last], "recording": turned},
        {"id": "m", "tracks": [], "type": "MixedCut"},
    )


def lhotse(folder: Path, sounds: Path) -> Path:
    write(folder / "c_recordings_x.jsonl", make_recording(sounds / "a.wav", 1), make_recording(sounds / "b.wav", 2))
    one, two = (make_supervision(f"a{n}", "a", n / 2, 0.5, text, "ann") for n, text in enumerate(["hello", "world"]))
    write(folder / "c_supervisions_x.jsonl", one, two, make_supervision("z", "z", 0.0, 1.0, "gone", "zoe"))
    return folder


def timit(folder: Path, sounds: Path) -> Path:
    for split, name in (("TRAIN", "a"), ("TEST", "b")):
        base = folder / split / "DR1" / "FCJF0"
        base.mkdir(parents=True)
        values, _ = soundfile.read(sounds / f"{name}.wav", dtype="int16")
        soundfile.write(base / f"S{name}.WAV", values, RATE, format="NIST", subtype="PCM_16")
        write(base / f"S{name}.TXT", "0 46797 She had a suit.")
        write(base / f"S{name}.WRD", "0 10 she", "10 20 had", "20 30 a suit")
        write(base / f"S{name}.PHN", "0 10 h#", "10 20 sh", "20 30 iy")
    return folder


def librispeech(folder: Path, sounds: Path) -> Path:
    chapter = folder / "84" / "121123"
    chapter.mkdir(parents=True)
    for number, name in enumerate("ab"):
        values, _ = soundfile.read(sounds / f"{name}.wav", dtype="int16")
        soundfile.write(chapter / f"84-121123-000{number}.flac", values, RATE)
    write(chapter / "84-121123.trans.txt", "84-121123-0000 HELLO", "84-121123-0001 GO ON", "84-121123-0002 GONE")
    return folder


def fairseq(folder: Path, sounds: Path) -> Path:
    for split, name, samples in (("train", "a", RATE), ("valid", "b", 2 * RATE)):
        write(folder / f"{split}.tsv", str(sounds), f"{name}.wav\t{samples}")
        write(folder / f"{split}.ltr", "h i | a |")
        write(folder / f"{split}.phn", "hh ay ah")
    return folder


FEATURES = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def encode(kind: str, number: int, sounds: Path) -> bytes:
    if kind == "audio":
        return (sounds / ("a.wav", "b.wav")[number % 2]).read_bytes()
    Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def write_table(path: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    """A Parquet file, or a folder as ``save_to_disk`` writes it."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table(columns)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=2)
        return path
    path.mkdir(parents=True)
    with arrow.ipc.new_stream(path / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    write(path / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": path.name})
    write(path / "dataset_info.json", {"features": features})
    return path


def write_saved(folder: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    """A dataset of two splits, as Hugging Face's ``save_to_disk`` writes it; the first quarter of the rows is validated with."""
    quarter = len(next(iter(columns.values()))) // 4
    for split, rows in (("train", slice(quarter, None)), ("validation", slice(quarter))):
        write_table(folder / split, {name: values[rows] for name, values in columns.items()}, **features)
    write(folder / "dataset_dict.json", {"splits": ["train", "validation"]})
    return folder
