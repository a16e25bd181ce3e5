"""Corpora as they come: the folders of TIMIT and of LibriSpeech, and fairseq's manifests with labels beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.preparation.importing.utterances import SPEAKER, TEXT, Source, Utterance
from d2v_plugin.data.preparation.walking import walk

_FAIRSEQ_LABELS: Final = {"ltr": "letters", "wrd": TEXT, "phn": "phones"}
PHONES: Final = "phones"
"""The field that holds symbols with spaces in between."""


def read_librispeech(source: Source) -> Iterator[Utterance]:
    """Read ``SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`` and the ``.trans.txt`` of each chapter."""
    files = {Path(root, name) for root, name in walk([source.path.absolute()], source.report)}
    texts: dict[str, tuple[str, int]] = {}
    for path in sorted(file for file in files if file.name.endswith(".trans.txt")):
        texts |= source.read_table(path)
    sounds = sorted(file for file in files if file.suffix.lower() in (".flac", ".wav", ".opus", ".mp3"))
    for file in sounds:
        text = {TEXT: texts[file.stem][0]} if file.stem in texts else {}
        speaker, _, chapter = file.stem.rpartition("-")[0].partition("-")
        yield Utterance(name=file.stem, file=file, fields={SPEAKER: speaker, "chapter": chapter, **text})
    for name in texts.keys() - {file.stem for file in sounds}:
        source.drop(name, "there is a text, but no such utterance")


def read_timit(source: Source) -> Iterator[Utterance]:
    """Read ``DIALECT/SPEAKER/SENTENCE.WAV`` and what is beside it: ``.TXT``, ``.WRD`` (words) and ``.PHN`` (phones)."""
    files = {Path(root, name) for root, name in walk([source.path.absolute()], source.report)}
    for sound in sorted(file for file in files if file.suffix.lower() == ".wav"):
        # Some distributions have X.WAV, in NIST's format, and X.WAV.wav, converted from it.
        if sound.with_name(f"{sound.name}.wav") in files or sound.with_name(f"{sound.name}.WAV") in files:
            source.drop(sound.name, "there is a converted file of the same name")
            continue
        stem = sound.name.split(".")[0]
        speaker, dialect = sound.parent.name, sound.parent.parent.name
        fields = {SPEAKER: speaker, "sex": speaker[:1], "dialect": dialect}
        for suffix, field in (("TXT", TEXT), ("WRD", "words"), ("PHN", PHONES)):
            beside = next(
                (path for kind in (suffix, suffix.lower()) if (path := sound.with_name(f"{stem}.{kind}")) in files), None
            )
            if beside is not None:
                fields[field] = " ".join(_read_labels(source, beside))
        yield Utterance(name=f"{dialect}/{speaker}/{stem}", file=sound, fields=fields)


def _read_labels(source: Source, path: Path) -> Iterator[str]:
    """The third fields of lines of first sample, last sample and label."""
    for number, line in enumerate(read_lines(path, source.problems), 1):
        parts = line.split(maxsplit=2)
        if len(parts) == 3 and parts[0].isdecimal() and parts[1].isdecimal():
            yield parts[2].strip()
        else:
            source.problems.add(path, number, "a line must be the first sample, the last one and a label")


def read_fairseq(source: Source) -> Iterator[Utterance]:
    """Read ``SPLIT.tsv`` (a root, then path and samples) and, beside it, ``SPLIT.ltr``, ``.wrd`` and ``.phn``, line by line."""
    path = source.path
    root, *rows = read_lines(path, source.problems) or [""]
    labels = {
        field: read_lines(beside, source.problems)
        for suffix, field in _FAIRSEQ_LABELS.items()
        if (beside := path.with_suffix(f".{suffix}")).is_file()
    }
    for field, lines in labels.items():
        if len(lines) != len(rows):
            source.problems.add(
                path, len(rows) + 1, f"there are {len(rows):,} recordings, but {len(lines):,} lines of {field} beside"
            )
    for number, row in enumerate(rows):
        name, _, size = row.partition("\t")
        if not name or not size.strip().isdecimal():
            source.problems.add(path, number + 2, "a line must be a path, a tab and a number of samples")
            continue
        fields = {field: lines[number] for field, lines in labels.items() if number < len(lines)}
        if TEXT not in fields and "letters" in fields:
            fields[TEXT] = "".join(fields["letters"].split()).replace("|", " ").strip()
        yield Utterance(name=name, file=path.parent / root / name, fields=fields)
