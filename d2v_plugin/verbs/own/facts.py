"""Facts of a dataset and of the machine, from which settings are chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, ManifestDataset, TextManifest
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.recordings import read_lengths

SPLITS_FOR_PROBES: Final = ("probe", "train")
_NUM_DECODED: Final = 32
_FAMILIES: Final[Mapping[Modality, type[ManifestDataset]]] = {
    Modality.AUDIO: AudioManifest,
    Modality.IMAGE: ImageManifest,
    Modality.TEXT: TextManifest,
}


@dataclass(frozen=True)
class Data:
    """A dataset with manifests."""

    path: Path
    modality: Modality
    num_samples: int
    """Rows of the training split; of text, its tokens."""

    num_classes: int = 0
    """0 = there are no labels."""

    probe_split: str | None = None
    """The labelled split to fit probes on; None = without labels, or none held out."""

    num_probed: tuple[int, int] = (0, 0)
    """Samples that probes are fitted and measured on."""

    num_labelled: int = 0
    """Rows of the training split with labels; of text, those of the tables for fine-tuning, as many as there are."""

    side: int = 0
    """Of pictures: the median of the shorter side, in pixels."""

    lengths: tuple[int, int, int] = (0, 0, 0)
    """Of recordings: the 5th, 50th and 95th percentile, in samples at 16 kHz."""

    hours: float = 0.0
    resample: bool = False
    """Whether recordings have other rates."""

    vocabulary: int = 0
    """Of text: the number of token ids."""

    @property
    def size(self) -> str:
        """How much there is, for people."""
        match self.modality:
            case Modality.AUDIO:
                return f"{self.num_samples:,} recordings of {self.hours:.2g} h"
            case Modality.IMAGE:
                return f"{self.num_samples:,} pictures"
            case Modality.TEXT:
                return f"{self.num_samples:,} tokens, a vocabulary of {self.vocabulary:,}"


def read_data(path: Path, modality: Modality) -> Data:
    """Read what the manifests of a dataset say.

    :raises RecipeError: there is no training split.
    :raises ManifestError: lines are wrong; names them all.
    """
    dataset = _FAMILIES[modality].open(ManifestConfig(path=path, check_files=False))
    train = dataset.split("train")
    probe_split, num_classes, num_probed = _find_labels(dataset)
    facts: dict[str, Any] = {"num_classes": num_classes, "probe_split": probe_split, "num_probed": num_probed}
    if isinstance(dataset, AudioManifest):
        lengths = read_lengths(train, AudioReadingConfig(resample=True))
        low, middle, high = np.percentile(lengths, (5, 50, 95)).astype(int).tolist()
        facts |= {"lengths": (low, middle, high), "hours": float(lengths.sum()) / 16_000 / 3600}
        rates = np.concatenate([split.integers("rate") for split in dataset.splits.values()])
        facts["resample"] = bool((rates[rates > 0] != 16_000).any())
    elif isinstance(dataset, ImageManifest):
        facts["side"] = _measure_side(train)
    elif isinstance(dataset, TextManifest):
        facts["vocabulary"] = dataset.vocabulary.size
    labelled = train if modality is not Modality.TEXT else dataset.splits.get("probe")
    facts["num_labelled"] = len(labelled) if labelled is not None and _is_labelled(labelled) else 0
    num_samples = int(train.integers("tokens").sum()) if modality is Modality.TEXT else len(train)

    return Data(path, modality, num_samples, **facts)


def _find_labels(dataset: ManifestDataset) -> tuple[str | None, int, tuple[int, int]]:
    """The split to fit probes on, the number of classes, and the sizes of both splits."""
    if "valid" not in dataset.splits or not _is_labelled(dataset.splits["valid"]):
        return None, 0, (0, 0)
    valid = dataset.splits["valid"]
    for name in SPLITS_FOR_PROBES:
        split = dataset.splits.get(name)
        if split is not None and _is_labelled(split):
            return name, len(dataset.class_names), (len(split), len(valid))

    return None, 0, (0, 0)


def _is_labelled(manifest: Manifest) -> bool:
    return len(manifest.distinct("label")) > 1 and all(manifest.text("label", row) for row in range(len(manifest)))


def _measure_side(manifest: Manifest) -> int:
    """
    :raises RecipeError: none of the pictures that were tried can be decoded.
    """
    sides = []
    for row in np.linspace(0, len(manifest) - 1, min(_NUM_DECODED, len(manifest))).astype(int).tolist():
        try:
            sides.append(min(decode(manifest.location(row)).shape[-2:]))
        except (SampleError, OSError, RuntimeError):
            continue  # training counts bad samples
    if not sides:
        raise RecipeError(f"{manifest.path}: none of {_NUM_DECODED} pictures can be decoded.")

    return int(median(sides))


@dataclass(frozen=True)
class Machine:
    """Where training runs: one process of it."""

    device: str
    """``cpu`` or ``cuda``."""

    name: str
    num_cores: int
    memory: int
    """Bytes that one process may take: of the GPU, or its share of what is free."""

    num_processes: int

    @property
    def flops(self) -> float:
        """Useful floating-point operations a second of all processes, as small models reach them: an order of magnitude."""
        return self.num_processes * (5e13 if self.device == "cuda" else 4e10 * self.num_cores)


def read_machine() -> Machine:
    """Look at the machine as fairseq2 will: ``FAIRSEQ2_DEVICE`` first, then a GPU if there is one."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = os.environ.get("FAIRSEQ2_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
        properties = torch.cuda.get_device_properties(index)
        return Machine("cuda", properties.name, len(os.sched_getaffinity(0)), properties.total_memory, processes)
    cores = max(1, len(os.sched_getaffinity(0)) // local)

    return Machine("cpu", "CPU", cores, _read_free_memory() // local, processes)


def _read_free_memory() -> int:
    """Bytes that new processes may take, the limit of a container included."""
    status = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(status["MemAvailable"].split()[0]) << 10
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup") / name
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
            free = min(free, int(text))

    return free
