"""A dataset of a user's texts: passages of documents, a vocabulary as large as the corpus allows, labels where there are any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.preparation.common import TRAIN, Report, check_out, parse_size, replace_manifests
from d2v_plugin.data.preparation.documents import Document, read_documents
from d2v_plugin.data.preparation.splitting import Splitter, Unit
from d2v_plugin.data.preparation.text import train_tokenizer, write_tokens
from d2v_plugin.data.preparation.token_writer import TokenWriter
from d2v_plugin.data.text import SENTENCEPIECE_FILE, Tokenizer

VALID: Final = "valid"
PROBE: Final = "probe"
PAIRS: Final = "sentences"
"""The folder of tables with the labelled texts, which fine-tuning reads."""

_PASSAGE_LINES: Final = 20
_PASSAGE_CHARACTERS: Final = 4000
_SEED: Final = 42
_HELD_OUT: Final = 300
_MAX_HELD_OUT: Final = 40.0
"""Percent: of few passages, as labelled ones may be, more are held out."""

_MAX_PROBED: Final = 1000
_MIN_OF_A_FILE: Final = 20
_VOCABULARIES: Final = (300, 32_000)


@dataclass
class _Counts:
    """What one reading of the texts tells."""

    num_passages: int = 0
    num_characters: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    """Of passages that say their label themselves, as JSON lines do."""

    sources: Counter[Path] = field(default_factory=Counter)
    """Passages of each file."""


def write_corpus(root: Path, files: Sequence[Path], out: Path, *, tokenizer: Path | None = None) -> Report:
    """Write a text dataset: ``train`` for training, ``probe`` and ``valid`` with a row for each labelled passage.

    Labels are those of JSON lines; else the first folder below ``root``; else the file a passage is from.

    :param tokenizer: a SentencePiece model; None = train one.
    :raises RecipeError: too little can be used; nothing is written then.
    """
    check_out(out)
    report = Report()
    counts = _count(files, report)
    label_of, num_labelled = _choose_labels(root, counts, report)
    # Where there are labels, what is held out has some: the probes are measured on it.
    num_usable = num_labelled or counts.num_passages
    percent = min(_MAX_HELD_OUT, 100 * _HELD_OUT / max(1, num_usable))
    splitter = Splitter(out, {"valid_percent": percent, "seed": _SEED})

    def key_of(document: Document) -> int | None:
        if num_labelled and label_of(document) is None:
            return None
        unit = splitter.find_unit(document.folder, document.name, report, file=document.file)
        return None if unit is None else unit.key

    keys = [key for document in _read_passages(files, Report()) if (key := key_of(document)) is not None]
    splitter.cut(np.array(keys, dtype=np.uint64), report)

    def split_of(document: Document) -> str:
        key = key_of(document)
        return TRAIN if key is None else splitter.split_of(Unit(TRAIN, key))

    def read(split: str, *, labelled: bool) -> Iterator[Document]:
        for document in _read_passages(files, Report()):
            if split_of(document) == split and (not labelled or label_of(document) is not None):
                yield replace(document, label=label_of(document) if labelled else None)

    sizes = Counter(split_of(document) for document in _read_passages(files, Report()))
    labelled = {split: Counter(document.label for document in read(split, labelled=True)) for split in (TRAIN, VALID)}
    model = tokenizer.read_bytes() if tokenizer is not None else _learn(lambda: read(TRAIN, labelled=False), counts, root)

    out.mkdir(parents=True, exist_ok=True)
    aside = out / f".{SENTENCEPIECE_FILE}.tmp"
    try:
        write_atomically(aside, model)
        pieces = Tokenizer(aside)
        writers = [
            _write_split(out, TRAIN, read(TRAIN, labelled=False), sizes[TRAIN], pieces, report),
        ]
        has_labels = min(len(labelled[TRAIN]), len(labelled[VALID])) > 1
        if has_labels:
            most = max(5, _MAX_PROBED // len(labelled[TRAIN]))
            chosen = [*_take_balanced(read(TRAIN, labelled=True), most)]
            held_out = [document for document in read(VALID, labelled=True) if document.label in labelled[TRAIN]]
            writers.append(_write_split(out, PROBE, iter(chosen), len(chosen), pieces, report))
            writers.append(_write_split(out, VALID, iter(held_out), len(held_out), pieces, report))
        else:
            writers.append(_write_split(out, VALID, read(VALID, labelled=False), sizes[VALID], pieces, report))
        with replace_manifests(out):
            splitter.save()
            aside.replace(out / SENTENCEPIECE_FILE)
            pieces.vocabulary.save(out, pieces.digest)
            for writer in writers:
                writer.write_manifest()
        if has_labels:
            _write_tables(out / PAIRS, {TRAIN: read(TRAIN, labelled=True), VALID: iter(held_out)})
    finally:
        aside.unlink(missing_ok=True)
    for writer in writers:
        writer.remove_others()
    report.facts["vocabulary"] = pieces.vocabulary.size
    report.save(out)

    return report


def _read_passages(files: Sequence[Path], report: Report) -> Iterator[Document]:
    """Cut documents into passages, so that also a single book has some to hold out."""
    for document in read_documents(files, report):
        lines: list[str] = []
        number = size = 0
        for line in _cut_lines(document.lines):
            if lines and (len(lines) >= _PASSAGE_LINES or size + len(line) > _PASSAGE_CHARACTERS):
                yield replace(document, name=f"{document.name}.{number}", lines=lines)
                number, lines, size = number + 1, [], 0
            lines.append(line)
            size += len(line)
        yield replace(document, name=f"{document.name}.{number}", lines=lines)


def _cut_lines(lines: Sequence[str]) -> Iterator[str]:
    """Lines, those cut between words that are as long as a passage."""
    for line in lines:
        while len(line) > _PASSAGE_CHARACTERS:
            end = line.rfind(" ", 0, _PASSAGE_CHARACTERS) + 1 or _PASSAGE_CHARACTERS
            yield line[:end].strip()
            line = line[end:]
        if line.strip():
            yield line.strip()


def _count(files: Sequence[Path], report: Report) -> _Counts:
    counts = _Counts()
    for document in _read_passages(files, report):
        counts.num_passages += 1
        counts.num_characters += sum(map(len, document.lines))
        counts.sources[document.source] += 1
        if document.label is not None:
            counts.labels[document.label] += 1
    report.facts |= {"passages": counts.num_passages, "characters": counts.num_characters}

    return counts


def _choose_labels(root: Path, counts: _Counts, report: Report) -> tuple[Callable[[Document], str | None], int]:
    """What a passage's label is, and how many passages have one; says in the report where labels come from."""
    if len(counts.labels) > 1:
        report.facts["labels"] = f"{len(counts.labels)} labels of JSON lines"
        return lambda document: document.label, counts.labels.total()
    folders = Counter(_first_folder(root, source) for source in counts.sources)
    if len(folders) > 1 and "" not in folders:
        report.facts["labels"] = f"{len(folders)} folders"
        return lambda document: _first_folder(root, document.source), counts.num_passages
    large = {source: count for source, count in counts.sources.items() if count >= _MIN_OF_A_FILE}
    if 1 < len(large) <= 20 and not folders.keys() - {""}:
        report.facts["labels"] = f"the {len(large)} files that passages are from"
        return lambda document: document.source.name if document.source in large else None, sum(large.values())
    report.facts["labels"] = "none"

    return lambda document: None, 0


def _first_folder(root: Path, source: Path) -> str:
    parts = source.relative_to(root).parts if root.is_dir() else ()

    return parts[0] if len(parts) > 1 else ""


def _learn(read: Callable[[], Iterator[Document]], counts: _Counts, root: Path) -> bytes:
    """Train a vocabulary that grows with the root of the corpus, a smaller one where the text does not have so many pieces.

    Of few pieces each occurs often: short runs learn sooner, and of random weights the probe is lower.
    """
    least, most = _VOCABULARIES
    size = min(most, max(least, round(1.3 * math.sqrt(counts.num_characters) / 100) * 100))
    tried = {size}
    while True:
        try:
            return train_tokenizer(read(), size, str(root))
        except RecipeError as ex:
            # Of many scripts the characters alone may need more; of little text there are fewer pieces.
            size = size * 2 if "larger" in str(ex) else size // 2
            if size in tried or not least <= size <= most:
                raise
            tried.add(size)


def _take_balanced(documents: Iterator[Document], most: int) -> Iterator[Document]:
    """The first passages of each label, at most so many: in the order of the files, those of a label are alike anyway."""
    taken: Counter[str | None] = Counter()
    for document in documents:
        taken[document.label] += 1
        if taken[document.label] <= most:
            yield document


def _write_split(
    out: Path, split: str, documents: Iterator[Document], number: int, pieces: Tokenizer, report: Report
) -> TokenWriter:
    writer = TokenWriter(out, split, pieces.vocabulary, parse_size("1G"))
    report.splits[split] = write_tokens(documents, writer, pieces, num_documents=number)

    return writer


def _write_tables(folder: Path, splits: Mapping[str, Iterator[Document]]) -> None:
    for split, documents in splits.items():
        rows = [f"{' '.join(' '.join(document.lines).split())}\t{document.label}" for document in documents]
        write_atomically(folder / f"{split}.tsv", "\n".join(["text\tlabel", *rows]) + "\n")
