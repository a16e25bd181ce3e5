"""Text: from documents to shards of token ids."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import sentencepiece
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation.common import (
    TRAIN,
    VALID,
    Report,
    choose_split,
    refuse_empty_splits,
    show_progress,
    write_manifest,
)
from d2v_plugin.data.text import BEGINNING, END, PADDING, SENTENCEPIECE_FILE, UNKNOWN, TokenIds, Tokenizer

_MAX_TRAINING_LINES = 5_000_000
_CHUNK = 1000


@dataclass(frozen=True)
class Document:
    """A text that belongs together."""

    name: str
    """File and number, which decide its split."""

    lines: Sequence[str]

    label: str | None = None


def read_documents(paths: Sequence[Path], report: Report) -> Iterator[Document]:
    """Read documents from files and folders: ``.jsonl`` (an object with ``text`` and perhaps ``label`` on each line), or plain
    text, where blank lines separate documents; both may be gzipped.

    :raises RecipeError: a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise RecipeError(f"{path} does not exist.")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            opened = gzip.open if file.suffix == ".gz" else open
            with opened(file, "rt", encoding="utf-8", errors="strict") as lines:
                kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
                parse = _parse_json_lines if kind in (".jsonl", ".json") else _parse_plain
                try:
                    yield from parse(lines, name, report)
                except (UnicodeDecodeError, OSError) as error:
                    report.dropped.append((name, f"the rest of the file: {error}"))


def _parse_plain(lines: Iterator[str], name: str, report: Report) -> Iterator[Document]:
    found: list[str] = []
    number = 0
    for line in lines:
        if line := line.strip():
            found.append(line)
        elif found:
            yield Document(f"{name}:{number}", found)
            found, number = [], number + 1
    if found:
        yield Document(f"{name}:{number}", found)


def _parse_json_lines(lines: Iterator[str], name: str, report: Report) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            text, label = content["text"], content.get("label")
        except (ValueError, KeyError, TypeError) as error:
            report.dropped.append((f"{name}:{number}", f"no object with a `text`: {error!r}"))
            continue
        if found := [part for part in map(str.strip, str(text).splitlines()) if part]:
            yield Document(f"{name}:{number}", found, None if label is None else str(label))
        else:
            report.dropped.append((f"{name}:{number}", "the text is empty"))


def train_tokenizer(documents: Iterable[Document], out: Path, vocabulary_size: int) -> Tokenizer:
    """Train a SentencePiece BPE model, in which nothing is unknown: rare characters fall back to bytes.

    :param vocabulary_size: of :class:`~d2v_plugin.data.text.Vocabulary`, special ids included.
    :raises RecipeError: there is not enough text for that many pieces.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = (line for document in documents for line in document.lines)
    model = io.BytesIO()  # a model that the trainer writes itself names its folder inside
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size - 1,
            byte_fallback=True,
            input_sentence_size=_MAX_TRAINING_LINES,
            shuffle_input_sentence=True,
            bos_id=BEGINNING,
            pad_id=PADDING,
            eos_id=END,
            unk_id=UNKNOWN,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise RecipeError(f"No vocabulary of {vocabulary_size} could be trained; try a smaller one. {error}") from None
    (out / SENTENCEPIECE_FILE).write_bytes(model.getvalue())

    return Tokenizer(out / SENTENCEPIECE_FILE)


class TokenWriter:
    """Writes the documents of one split into shards, and their manifest."""

    def __init__(self, out: Path, split: str, dtype: np.dtype[Any], shard_size: int) -> None:
        for old in out.glob(f"{split}-*.*"):
            old.unlink()
        self.num_documents = 0
        self.num_tokens = 0
        self._out = out
        self._split = split
        self._dtype = dtype
        self._max_tokens = max(1, shard_size // dtype.itemsize)
        self._sizes: list[int] = []
        self._labelled: list[tuple[str, int, str]] = []
        self._tokens: BinaryIO | None = None
        self._index: BinaryIO | None = None

    def add(self, lines: Sequence[TokenIds], label: str | None) -> None:
        """Append a document: its lines end with ``</s>``, and so does the document."""
        if self._tokens is None or self._index is None:
            self._tokens, self._index = self._path.open("wb"), self._path.with_suffix(".idx").open("wb")
            self._sizes.append(0)
        pieces = [np.append(line, END) for line in lines]
        size, start, item = sum(map(len, pieces)), self._sizes[-1], self._dtype.itemsize
        if label is not None:
            self._labelled.append((f"{self._path.name}:{start * item}:{size * item}", size, label))
        ends = start + np.cumsum([*map(len, pieces), 1])
        self._tokens.write(np.concatenate([*pieces, [END]]).astype(self._dtype).tobytes())
        self._index.write(ends.astype("<i8").tobytes())
        self._sizes[-1] += size + 1
        self.num_documents += 1
        self.num_tokens += size + 1
        if self._sizes[-1] >= self._max_tokens:
            self._close_shard()

    def close(self) -> None:
        """Write the manifest: a row for each document if all of them have labels, else a row for each shard."""
        self._close_shard()
        rows: list[tuple[object, ...]] = [(self._name(shard), size) for shard, size in enumerate(self._sizes)]
        if len(self._labelled) == self.num_documents:
            rows = list(self._labelled)
        write_manifest(self._out / f"{self._split}.tsv", ["."], None, rows)

    @property
    def _path(self) -> Path:
        """The shard that is open, or comes next."""
        return self._out / self._name(len(self._sizes) - (self._tokens is not None))

    def _name(self, shard: int) -> str:
        return f"{self._split}-{shard:05}.bin"

    def _close_shard(self) -> None:
        for file in (self._tokens, self._index):
            if file is not None:
                file.close()
        self._tokens = self._index = None


def prepare_text(
    sources: Sequence[Path],
    out: Path,
    *,
    valid_percent: float,
    seed: int,
    shard_size: int,
    tokenizer: Path | None,
    vocabulary_size: int,
    workers: int | None,
) -> Report:
    """Write a text dataset: tokenizer, vocabulary, shards and manifests.

    Documents are read anew for each step rather than kept, so that they may be larger than memory.

    :param tokenizer: a SentencePiece model; None = train one on the training split.
    :raises RecipeError: a split would be empty; nothing is written then.
    """
    report = Report()
    sizes = Counter(choose_split(document.name, valid_percent, seed) for document in read_documents(sources, report))
    refuse_empty_splits(sizes, report, valid_percent)

    def read_split(split: str) -> Iterator[Document]:
        for document in read_documents(sources, Report()):
            if choose_split(document.name, valid_percent, seed) == split:
                yield document

    out.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        shutil.copyfile(tokenizer, out / SENTENCEPIECE_FILE)
        pieces = Tokenizer(out / SENTENCEPIECE_FILE)
    else:
        pieces = train_tokenizer(read_split(TRAIN if sizes[TRAIN] else VALID), out, vocabulary_size)
    pieces.vocabulary.save(out)
    for split in (TRAIN, VALID):
        if sizes[split]:
            report.splits[split] = write_tokens(
                read_split(split), out, split, pieces, shard_size, num_documents=sizes[split], workers=workers
            )
    report.facts["vocabulary"] = pieces.vocabulary.size
    report.save(out)

    return report


def write_tokens(
    documents: Iterable[Document],
    out: Path,
    split: str,
    pieces: Tokenizer,
    shard_size: int,
    *,
    num_documents: int,
    workers: int | None = None,
) -> dict[str, float]:
    """Encode and write one split; returns its totals."""
    writer = TokenWriter(out, split, pieces.vocabulary.dtype, shard_size)
    watched = iter(show_progress(documents, total=num_documents, title=f"Encoding {split}"))
    while chunk := list(islice(watched, _CHUNK)):
        lines = iter(pieces.encode_lines([line for document in chunk for line in document.lines], num_threads=workers))
        for document in chunk:
            writer.add(list(islice(lines, len(document.lines))), document.label)
    writer.close()

    return {"documents": writer.num_documents, "tokens": writer.num_tokens}
