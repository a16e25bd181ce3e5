"""Shared by the scripts that make the shipped datasets, NAME/make.py: the command line, and the splits of labelled pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import encode_png

from d2v_plugin.data.preparation.documents import Document
from d2v_plugin.data.preparation.text import train_tokenizer, write_tokens
from d2v_plugin.data.preparation.token_writer import TokenWriter
from d2v_plugin.data.random import Purpose, draw_permutation
from d2v_plugin.data.shards import ShardWriter
from d2v_plugin.data.text import SENTENCEPIECE_FILE, Tokenizer

SEED = 0
NUM_PROBE_PER_DIGIT = 20
VOCABULARY_SIZE = 2000
SHARD_SIZE = 1 << 30


def run(description: str | None, make: Callable[..., None], *datasets: str, source: str | None = None) -> None:
    """Read the command line of a script and make its datasets.

    :param make: called with the source, if there is one, and with a folder for each dataset.
    :param datasets: names of folders beside this file, which are written unless the command line names others.
    :param source: names what the script reads.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if source is not None:
        parser.add_argument("source", type=Path, metavar=source)
    for name in datasets:
        folder = Path(__file__).with_name(name)
        parser.add_argument(
            name, type=Path, nargs="?", default=folder, metavar=f"OUT_{name.upper()}", help="default: %(default)s"
        )
    paths = vars(parser.parse_args())
    for name in datasets:
        paths[name].mkdir(parents=True, exist_ok=True)
    make(*paths.values())


def write_digits(out: Path, images: NDArray[np.uint8], labels: Sequence[int], num_train: int, shard_name: str) -> None:
    """Write the shard and the splits: one to train on, 20 of each digit of it to fit probes on, the rest to measure with.

    :param images: (N, H, W), grey.
    """
    order = draw_permutation(SEED, 0, Purpose.SPLIT, len(images)).tolist()
    with ShardWriter(out / shard_name) as shard:
        rows = [
            f"{shard.add(f'{index:04}.png', encode_png(torch.from_numpy(images[index : index + 1])).numpy().tobytes())}"
            f"\t{labels[index]}"
            for index in order
        ]
    train, valid = rows[:num_train], rows[num_train:]
    probe = [row for digit in range(10) for row in [row for row in train if row.endswith(f"\t{digit}")][:NUM_PROBE_PER_DIGIT]]
    write_splits(out, list("0123456789"), train=train, probe=probe, valid=valid)


def write_splits(out: Path, classes: Sequence[str], **splits: Sequence[str]) -> None:
    """Write the manifest of each split, whose rows lie beside it."""
    header = [".", "\t".join(["#classes", *classes])]
    for name, rows in splits.items():
        (out / f"{name}.tsv").write_text("\n".join([*header, *rows]) + "\n")


def write_documents(
    out: Path,
    train: Sequence[Document],
    probe: Sequence[Document],
    valid: Sequence[Document],
    vocabulary_size: int = VOCABULARY_SIZE,
) -> None:
    """Train, without labels, on all documents but the held-out ones; probes are fitted on labelled documents of the former."""
    (out / SENTENCEPIECE_FILE).write_bytes(train_tokenizer(train, vocabulary_size))
    pieces = Tokenizer(out / SENTENCEPIECE_FILE)
    pieces.vocabulary.save(out)
    unlabelled = [Document(document.name, document.lines) for document in train]
    for split, found in (("train", unlabelled), ("probe", probe), ("valid", valid)):
        writer = TokenWriter(out, split, pieces.vocabulary, SHARD_SIZE, is_shipped=True)
        print(split, write_tokens(found, writer, pieces, num_documents=len(found)))
        writer.write_manifest()
