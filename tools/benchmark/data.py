"""How fast batches are read: our reader beside a plain PyTorch DataLoader that does the same work with the same libraries.

Prints a Markdown table. A core is a second of processor time, of this process and its workers: that does not depend on what
else runs on the machine. The data are made on the spot: photographs of about 500×375 as JPEG, recordings of 10 to 16 seconds
as FLAC, and 20 million token ids.

The DataLoader has one worker process per processor, random sampling, and the usual parts: torchvision's transforms for images;
for audio, as in the original, the whole recording decoded and normalised, then cropped by the collater; slices of memory maps
for text. Ours has as many threads, and reads of a recording only the crop, since the manifest holds mean and variance. Starting
up is measured on neither side: the first batches are not counted, and epochs follow each other without new workers.

With ``--store`` see :mod:`tools.benchmark.store`.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import numpy as np
import soundfile
import torch
from fairseq2.gang import create_fake_gangs
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_image, encode_jpeg
from torchvision.transforms import v2

from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.preparation.audio import prepare_audio
from d2v_plugin.data.preparation.common import write_manifest
from d2v_plugin.data.preparation.image import prepare_images
from d2v_plugin.data.text import Vocabulary
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

NUM_IMAGES, NUM_RECORDINGS, NUM_TOKENS = 512, 96, 20_000_000
BATCH_SIZE = {"image": 64, "audio": 8, "text": 64}
MAX_SAMPLE_SIZE = 160_000
TOKENS = 512


def make_images(folder: Path) -> None:
    """Random parts of two photographs."""
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    for row in range(NUM_IMAGES):
        top, left = random.integers(0, 427 - 375), random.integers(0, 640 - 500)
        part = photos[row % 2][:, top : top + 375, left : left + 500].contiguous()
        (folder / f"{row:04}.jpg").write_bytes(encode_jpeg(part, 90).numpy().tobytes())


def make_recordings(folder: Path) -> None:
    """Harmonics of a wandering pitch, and noise."""
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for row in range(NUM_RECORDINGS):
        size = int(random.integers(160_000, 256_000))
        phase = 2 * np.pi * np.cumsum(150 + 50 * np.sin(np.arange(size) / 9000 * random.uniform(1, 2))) / 16_000
        sound = sum(np.sin(phase * harmonic) / harmonic for harmonic in range(1, 8)) * 0.2
        soundfile.write(folder / f"{row:04}.flac", sound + 0.01 * random.standard_normal(size), 16_000)


def make_text(out: Path, num_shards: int) -> None:
    """Random token ids; how many files they lie in is all that matters here."""
    out.mkdir()
    vocabulary = Vocabulary(50_000)
    vocabulary.save(out)
    tokens = np.random.default_rng(0).integers(4, 49_999, NUM_TOKENS).astype(vocabulary.dtype)
    parts = np.array_split(tokens, num_shards)
    for number, part in enumerate(parts):
        part.tofile(out / f"{number:05}.bin")
    rows = [(f"{number:05}.bin", len(part)) for number, part in enumerate(parts)]
    write_manifest(out / "train.tsv", ["."], None, rows)


class PlainImages(Dataset[Tensor]):
    """What one writes first: read, decode, the usual transforms."""

    def __init__(self, manifest: Manifest) -> None:
        self.places = [manifest.location(row) for row in range(len(manifest))]
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Tensor:
        data = torch.frombuffer(bytearray(read_plainly(self.places[row])), dtype=torch.uint8)
        image: Tensor = self.transform(decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True))

        return image


class PlainAudio(Dataset[Tensor]):
    """As the original reads: all of the recording, normalised as a whole; the collater crops."""

    def __init__(self, manifest: Manifest) -> None:
        self.places = [manifest.location(row) for row in range(len(manifest))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Tensor:
        sound, _ = soundfile.read(io.BytesIO(read_plainly(self.places[row])), dtype="float32")
        waveform = torch.from_numpy(sound)

        return torch.nn.functional.layer_norm(waveform, waveform.shape)


def crop_plainly(waveforms: list[Tensor]) -> Tensor:
    size = min(MAX_SAMPLE_SIZE, *map(len, waveforms))
    starts = [int(np.random.randint(len(waveform) - size + 1)) for waveform in waveforms]

    return torch.stack([waveform[start : start + size] for waveform, start in zip(waveforms, starts, strict=True)])


class PlainText(Dataset[Tensor]):
    """Blocks of memory-mapped shards."""

    def __init__(self, manifest: Manifest) -> None:
        self.shards = [np.memmap(manifest.location(row).path, "<u2", "r") for row in range(len(manifest))]
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1]) // (TOKENS - 1)

    def __getitem__(self, block: int) -> Tensor:
        start = block * (TOKENS - 1)
        stop = start + TOKENS - 1
        parts = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            first, end = int(self.ends[shard]) - len(self.shards[shard]), int(self.ends[shard])
            parts.append(self.shards[shard][start - first : min(stop, end) - first])
            start, shard = end, shard + 1

        return torch.from_numpy(np.concatenate([[0], *parts]).astype(np.int64))


def read_plainly(place: Any) -> bytes:
    with open(place.path, "rb") as file:
        file.seek(place.offset)

        return file.read() if place.size is None else file.read(place.size)


PLAIN: dict[str, Callable[[Manifest], Dataset[Tensor]]] = {"image": PlainImages, "audio": PlainAudio, "text": PlainText}


def read_plain(kind: str, manifest: Manifest, workers: int) -> Iterator[Tensor]:
    data = PLAIN[kind](manifest)
    # Endless, so that starting workers anew for every epoch is not counted.
    endless = RandomSampler(data, replacement=True, num_samples=1 << 40)  # type: ignore[arg-type]
    collate = crop_plainly if kind == "audio" else None

    return iter(DataLoader(data, BATCH_SIZE[kind], sampler=endless, num_workers=workers, collate_fn=collate))


def read_ours(kind: str, path: Path) -> Iterator[Tensor]:
    size = BATCH_SIZE[kind]
    families = {"image": ImageManifest, "audio": AudioManifest, "text": TextManifest}
    audio = AudioPretrainingConfig(max_num_elements=size * MAX_SAMPLE_SIZE, max_sample_size=MAX_SAMPLE_SIZE, batches_per_update=1)
    tasks: dict[str, Task[Any, Any]] = {
        "image": ImagePretrainingTask(ImagePretrainingConfig(batch_size=size)),
        "audio": AudioPretrainingTask(audio),
        "text": TextPretrainingTask(TextPretrainingConfig(batch_size=size, tokens_per_sample=TOKENS)),
    }
    task = tasks[kind].open(families[kind].open(ManifestConfig(path=path)), report=None)
    for batches in task.create_train_reader(create_fake_gangs(torch.device("cpu")), 1):
        yield from (batch.inputs for batch in batches)


def measure(batches: Iterator[Tensor], seconds: float) -> tuple[float, float]:
    """Samples per second of processor time, and of time on the wall."""
    # The first batches pay for starting.
    for _ in range(4):
        next(batches)
    start, used, count = time.perf_counter(), processor_time(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches))

    return count / (processor_time() - used), count / (time.perf_counter() - start)


def processor_time() -> float:
    """Of this process and its living children."""
    usages = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    tick = os.sysconf("SC_CLK_TCK")
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / tick

    return total


def make_data(folder: Path, kinds: Sequence[str]) -> dict[tuple[str, str], Path]:
    """Make a dataset of loose files and one of shards for each kind of input."""
    found = {(kind, form): folder / f"{kind}-{form}" for form in ("files", "shards") for kind in kinds}
    for (kind, form), out in found.items():
        size = 1 << 30 if form == "shards" else None
        common: dict[str, Any] = {"labels": None, "valid_percent": 0.0, "seed": 1, "shard_size": size, "workers": None}
        if kind == "image":
            make_images(folder / "jpeg")
            prepare_images([folder / "jpeg"], out, **common)
        elif kind == "audio":
            make_recordings(folder / "flac")
            prepare_audio([folder / "flac"], out, sample_rate=16_000, segment_seconds=None, fairseq=False, **common)
        else:
            make_text(out, 1 if size else 1000)

    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", nargs="+", choices=list(PLAIN), default=list(PLAIN), help="which rows (default: all)")
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure each (default: 5)")
    parser.add_argument("--store", action="store_true", help="compare tar archives on a slow store with local ones instead")
    parser.add_argument("--repeats", type=int, default=3, help="how often; the best counts (default: 3)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.store:
        from tools.benchmark.store import compare_store  # which reads as this module does

        compare_store(arguments)
        return
    workers = len(os.sched_getaffinity(0))
    print(
        "| input | from | ours: samples/s per core | MB/s per core | DataLoader: samples/s per core | ratio | ratio, wall clock |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for (kind, form), path in make_data(Path(folder), arguments.inputs).items():
            manifest = {"image": ImageManifest, "audio": AudioManifest, "text": TextManifest}[kind].open(
                ManifestConfig(path=path)
            ).split("train")  # fmt: skip
            places = [manifest.location(row) for row in range(len(manifest))]
            size = sum(os.stat(place.path).st_size if place.size is None else place.size for place in places)
            num_samples = len(manifest) if kind != "text" else NUM_TOKENS // (TOKENS - 1)
            pairs = [
                (
                    measure(read_ours(kind, path), arguments.seconds),
                    measure(read_plain(kind, manifest, workers), arguments.seconds),
                )
                for _ in range(arguments.repeats)
            ]
            ours, plain = (tuple(max(pair[side][unit] for pair in pairs) for unit in (0, 1)) for side in (0, 1))
            megabytes = ours[0] * size / num_samples / 1e6
            print(
                f"| {kind} | {form} | {ours[0]:,.0f} | {megabytes:,.1f} | {plain[0]:,.0f} | {ours[0] / plain[0]:.2f} "
                f"| {ours[1] / plain[1]:.2f} |",
                flush=True,
            )
