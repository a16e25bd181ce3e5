"""Text: from documents to shards of token ids."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from typing_extensions import Unpack

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.lines import read_content
from d2v_plugin.data.preparation.common import (
    TRAIN,
    Report,
    check_out,
    note_other_manifests,
    refuse_empty_splits,
    replace_manifests,
)
from d2v_plugin.data.preparation.documents import Document, read_documents
from d2v_plugin.data.preparation.duplicates import digest_lines, find_duplicates
from d2v_plugin.data.preparation.pieces import learn_pieces
from d2v_plugin.data.preparation.progress import show_progress
from d2v_plugin.data.preparation.splitting import SplitOptions, Splitter, Unit
from d2v_plugin.data.preparation.token_writer import TokenWriter
from d2v_plugin.data.text import BEGINNING, END, PADDING, SENTENCEPIECE_FILE, UNKNOWN, Tokenizer

_MAX_TRAINING_LINES = 5_000_000
_CHUNK = 1000


def train_tokenizer(documents: Iterable[Document], vocabulary_size: int, source: str = "the text") -> bytes:
    """Train a SentencePiece BPE model, in which nothing is unknown: rare characters fall back to bytes.

    :param vocabulary_size: of :class:`~d2v_plugin.data.text.Vocabulary`, special ids included.
    :returns: its file.
    :raises RecipeError: the text allows no vocabulary of that size.
    """
    return learn_pieces(
        (line for document in documents for line in document.lines),
        size=vocabulary_size,
        num_more=-1,
        source=source,
        byte_fallback=True,
        input_sentence_size=_MAX_TRAINING_LINES,
        shuffle_input_sentence=True,
        bos_id=BEGINNING,
        pad_id=PADDING,
        eos_id=END,
        unk_id=UNKNOWN,
    )


class _Documents:
    """The documents of all splits, read anew for each step rather than kept, so that they may be larger than memory.

    Either all documents have labels or none: those without are dropped from a file in which others have them, and where a whole
    file has none, there are none at all.
    """

    def __init__(self, sources: Sequence[Path], report: Report, splitter: Splitter, *, check_duplicates: bool) -> None:
        self._sources = sources
        self._splitter = splitter
        # By official split, file, and whether there is a label: the place of each document in the order.
        keys: dict[tuple[str, Path, bool], array[int]] = {}
        digests: list[tuple[Unit, str, bytes]] = []
        found = read_documents(sources, report, group_field=splitter.group_field)
        for document in show_progress(found, total=None, title="Reading"):
            if (unit := self._unit_of(document, report)) is None:
                continue
            keys.setdefault((unit.split, document.source, document.label is not None), array("Q")).append(unit.key)
            if check_duplicates:
                digests.append((unit, document.name, digest_lines(document.lines)))
        self._labelled_files = {file for _, file, has_label in keys if has_label}
        self._has_labels = bool(self._labelled_files) and self._labelled_files == {file for _, file, _ in keys}
        usable = {place: part for place, part in keys.items() if place[2] or place[1] not in self._labelled_files}
        splitter.cut(_join(part for (split, _, _), part in usable.items() if split == TRAIN), report)
        self.sizes: Counter[str] = Counter()
        for (split, _, _), part in usable.items():
            self.sizes.update(splitter.split_of(Unit(split, key)) for key in part)
        if self._labelled_files and not self._has_labels:
            number = sum(len(part) for (_, _, has_label), part in keys.items() if has_label)
            report.facts["labels left out, since whole files have none"] = number
        if check_duplicates:
            report.duplicates = find_duplicates((splitter.split_of(unit), name, digest) for unit, name, digest in digests)

    def read(self, split: str, report: Report) -> Iterator[Document]:
        """Read a split.

        :param report: is told which documents have no label.
        """
        for document in read_documents(self._sources, Report(), group_field=self._splitter.group_field):
            unit = self._unit_of(document, Report())
            if unit is None or self._splitter.split_of(unit) != split:
                continue
            if document.label is None and document.source in self._labelled_files:
                report.drop(document.name, "it has no label, but other lines of the file have")
            else:
                yield document if self._has_labels else replace(document, label=None)

    def _unit_of(self, document: Document, report: Report) -> Unit | None:
        return self._splitter.find_unit(document.folder, document.name, report, file=document.file, value=document.group)


def _join(parts: Iterable[array[int]]) -> NDArray[np.uint64]:
    """(samples,) of all parts."""
    return np.concatenate([np.zeros(0, dtype=np.uint64), *(np.frombuffer(part, dtype=np.uint64) for part in parts)])


def prepare_text(
    sources: Sequence[Path],
    out: Path,
    *,
    shard_size: int,
    tokenizer: Path | None,
    vocabulary_size: int,
    workers: int | None,
    check_duplicates: bool = False,
    **options: Unpack[SplitOptions],
) -> Report:
    """Write a text dataset: tokenizer, vocabulary, shards and manifests.

    What an earlier run wrote stays complete until all shards are there; see
    :func:`~d2v_plugin.data.preparation.common.replace_manifests`.

    :param tokenizer: a SentencePiece model; None = train one on the training split.
    :param check_duplicates: compare the documents of all splits, and report those that are equal.
    :raises RecipeError: a split would be empty, options of splitting are wrong, or no tokenizer can be had; no manifest is
        written then.
    """
    check_out(out)
    splitter = Splitter(out, options)
    given = None if tokenizer is None else read_content(tokenizer)
    if tokenizer is not None:
        Tokenizer(tokenizer)  # a file that is none is refused before all is read
    report = Report()
    documents = _Documents(sources, report, splitter, check_duplicates=check_duplicates)
    refuse_empty_splits(documents.sizes, report, splitter.splits)
    if given is None:
        learned_from = TRAIN if documents.sizes[TRAIN] else splitter.splits[0]
        model = train_tokenizer(documents.read(learned_from, Report()), vocabulary_size, ", ".join(map(str, sources)))
    else:
        model = given

    out.mkdir(parents=True, exist_ok=True)
    # Aside, until the shards are there.
    aside = out / f".{SENTENCEPIECE_FILE}.tmp"
    try:
        write_atomically(aside, model)
        pieces = Tokenizer(aside)
        writers = []
        for split in splitter.splits:
            number = documents.sizes[split]
            writers.append(TokenWriter(out, split, pieces.vocabulary, shard_size))
            found = _count_labels(documents.read(split, report), report.split_facts.setdefault(split, {}))
            report.splits[split] = write_tokens(found, writers[-1], pieces, num_documents=number, workers=workers)
        with replace_manifests(out):
            splitter.save()
            aside.replace(out / SENTENCEPIECE_FILE)
            pieces.vocabulary.save(out, pieces.digest)
            for writer in writers:
                writer.write_manifest()
    finally:
        aside.unlink(missing_ok=True)
    for writer in writers:
        writer.remove_others()
    note_other_manifests(out, report.splits, report)
    report.facts["vocabulary"] = pieces.vocabulary.size
    report.save(out)

    return report


def _count_labels(documents: Iterable[Document], facts: dict[str, dict[object, int]]) -> Iterator[Document]:
    """Yield the documents, and count their labels."""
    counter: Counter[object] = Counter()
    for document in documents:
        if document.label is not None:
            counter[document.label] += 1
        yield document
    if counter:
        facts["labels"] = dict(counter.most_common())


def write_tokens(
    documents: Iterable[Document], writer: TokenWriter, pieces: Tokenizer, *, num_documents: int, workers: int | None = None
) -> dict[str, float]:
    """Encode one split and write its shards; returns its totals."""
    watched = iter(show_progress(documents, total=num_documents, title="Encoding"))
    try:
        while chunk := list(islice(watched, _CHUNK)):
            lines = iter(pieces.encode_lines([line for document in chunk for line in document.lines], num_threads=workers))
            for document in chunk:
                writer.add(list(islice(lines, len(document.lines))), document.label)
        writer.close()
    finally:
        writer.discard()
    if writer.num_documents != num_documents:
        found = writer.num_documents
        raise RecipeError(f"The text has changed while it was read: it had {num_documents:,} documents, and then {found:,}.")

    return {"documents": writer.num_documents, "tokens": writer.num_tokens}
