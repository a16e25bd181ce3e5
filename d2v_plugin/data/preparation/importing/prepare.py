"""Manifests and corpora of other toolkits become ours: the kind is found, utterances are read, and prepared like any files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError
from typing_extensions import Unpack

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.remote import RemotePath
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.preparation import tables
from d2v_plugin.data.preparation.audio import RECEPTIVE_FIELD, prepare_recordings
from d2v_plugin.data.preparation.common import Report, check_out, parse_size, remove_other_shards
from d2v_plugin.data.preparation.files import FileOptions
from d2v_plugin.data.preparation.finding import FoundFile, move_root
from d2v_plugin.data.preparation.image import prepare_pictures
from d2v_plugin.data.preparation.importing.json_lines import LHOTSE_FILES, read_lhotse, read_nemo
from d2v_plugin.data.preparation.importing.kaldi import read_kaldi
from d2v_plugin.data.preparation.importing.trees import PHONES, read_fairseq, read_librispeech, read_timit
from d2v_plugin.data.preparation.importing.utterances import SPEAKER, TEXT, Source, Utterance
from d2v_plugin.data.preparation.text import prepare_text
from d2v_plugin.data.problems import Problems

READERS: Final[Mapping[str, Callable[[Source], Iterator[Utterance]]]] = {
    "fairseq": read_fairseq,
    "kaldi": read_kaldi,
    "lhotse": read_lhotse,
    "librispeech": read_librispeech,
    "nemo": read_nemo,
    "timit": read_timit,
}
NO_LABELS: Final = "none"

_SYMBOLS: Final = (PHONES, "letters")
_TRANSCRIPTS: Final = (TEXT, "transcription", "transcript", "sentence", "normalized_text", "words", *_SYMBOLS)
_SPEAKERS: Final = (SPEAKER, "speaker_id", "client_id")


def find_kind(path: Path) -> str:
    """The toolkit that a source belongs to.

    :raises RecipeError: it is none that is known.
    """
    if not path.exists():
        raise RecipeError(f"{path} does not exist.")
    if path.suffix in tables.SUFFIXES:
        return "parquet"
    if path.suffix == ".tsv":
        return "fairseq"
    if path.is_file():
        _, first = next(Source(path, Report()).read_objects(path), (0, {}))
        if "audio_filepath" in first:
            return "nemo"
        if "recording" in first or "sources" in first or "supervisions" in first:
            return "lhotse"
    signs = {
        "kaldi": ["wav.scp"],
        "parquet": ["dataset_dict.json", "state.json", "*.parquet", "*.arrow", "data/*.parquet"],
        "lhotse": LHOTSE_FILES,
        "fairseq": ["*.tsv"],
        "librispeech": ["**/*.trans.txt"],
        "timit": ["**/*.PHN", "**/*.phn"],
    }
    for kind, patterns in signs.items():
        if any(next(path.glob(pattern), None) for pattern in patterns):
            return kind
    raise RecipeError(f"{path} is nothing that is known; if it is, name it with --kind {'|'.join([*READERS, 'parquet'])}.")


def find_parts(path: Path, kind: str) -> list[tuple[str | None, Path]]:
    """What a source consists of, and the splits that it names itself."""
    if kind == "parquet":
        return tables.find_tables(path)
    if kind == "fairseq" and path.is_dir():
        return [(tables.rename_split(file.stem), file) for file in sorted(path.glob("*.tsv"))]
    if kind == "timit" and (parts := [part for part in sorted(path.glob("*")) if part.name.lower() in ("train", "test")]):
        return [(part.name.lower(), part) for part in parts]
    return [(None, path)]


def import_manifests(
    sources: Sequence[Path],
    out: Path,
    *,
    kind: str | None = None,
    labels: str | None = None,
    column: str | None = None,
    sample_rate: int = 16_000,
    min_samples: int = RECEPTIVE_FIELD,
    tokenizer: Path | None = None,
    vocabulary_size: int = 32_000,
    **options: Unpack[FileOptions],
) -> Report:
    """Write a dataset of what other toolkits' manifests name.

    :param kind: a key of :data:`READERS` or ``parquet``; None = it is found from the files.
    :param labels: the field that becomes the label, or ``none``; None = what is said, or the column ``label``, if there is any.
    :param column: of tables, the one that is read; None = the only one.
    :raises RecipeError: sources are not known, lines of them are wrong, or a split would be empty.
    """
    check_out(out)
    if remote := next((path for path in sources if isinstance(path, RemotePath)), None):
        raise RecipeError(f"{remote} is on a store, which `manifest import` does not read; copy it to a local folder.")
    kinds = {kind or find_kind(path) for path in sources}
    if len(kinds) > 1:
        raise RecipeError(f"The sources are of several kinds ({', '.join(sorted(kinds))}); import each into a folder of its own.")
    (kind,) = kinds
    splits = {path.absolute(): split for path, split in (options.get("root_splits") or {}).items()}
    parts: list[Path] = []
    for path in sources:
        for split, part in find_parts(path.absolute(), kind):
            parts.append(part)
            if path.absolute() in splits:
                splits[part] = splits[path.absolute()]
            elif split is not None:
                splits[part] = split
    options["root_splits"] = splits
    if kind == "parquet":
        return _import_tables(
            parts,
            out,
            labels,
            column,
            sample_rate=sample_rate,
            min_samples=min_samples,
            tokenizer=tokenizer,
            vocabulary_size=vocabulary_size,
            **options,
        )
    report, problems = Report(), Problems()
    found: list[tuple[Path, Utterance]] = []
    for part in parts:
        source = Source(part, report)
        found += [(part, utterance) for utterance in READERS[kind](source)]
        problems.messages += source.problems.messages
    problems.raise_if_any()
    label = _choose([utterance.fields for _, utterance in found], labels, [TEXT])
    samples = _label(found, label, report)
    _count_speakers(samples, report)
    options["shard_size"] = None
    has_transcripts = label in _TRANSCRIPTS
    prepare_recordings(
        samples, out, report, has_transcripts=has_transcripts, sample_rate=sample_rate, min_samples=min_samples, **options
    )
    if label in _SYMBOLS:
        _write_symbols(out, report.splits)

    return report


def _choose(fields: Sequence[Mapping[str, object]], wanted: str | None, usual: Sequence[str]) -> str | None:
    """The field that becomes the label; None = there are no labels."""
    known = {name for each in fields for name in each}
    if wanted is None:
        return next((name for name in usual if name in known), None)
    if wanted != NO_LABELS and wanted not in known:
        raise RecipeError(f"`--labels {wanted}`: there is no such field; there are: {', '.join(sorted(known)) or 'none'}.")
    return None if wanted == NO_LABELS else wanted


def _label(found: Sequence[tuple[Path, Utterance]], label: str | None, report: Report) -> list[FoundFile]:
    samples = []
    for part, utterance in found:
        said = " ".join(utterance.fields.get(label or "", "").split())
        if any(separator in str(utterance.file) for separator in "\t\n\r"):
            report.drop(repr(utterance.name), "the name has a tab or a line break")
        elif label is not None and not said:
            report.drop(utterance.name, f"it has no {label}")
        else:
            file = utterance.file.absolute()
            samples.append(
                FoundFile(
                    Path("/"),
                    str(file)[1:],
                    said or None,
                    speaker=utterance.fields.get(SPEAKER) or None,
                    title=utterance.name,
                    unit="" if utterance.bytes is None else f"{file}:{utterance.bytes[0]}",
                    listed_in=part,
                    segment=utterance.segment,
                    bytes=utterance.bytes,
                )
            )
    return move_root(samples)


def _count_speakers(samples: Sequence[FoundFile], report: Report) -> None:
    if speakers := {sample.speaker for sample in samples} - {None}:
        report.facts["speakers"] = len(speakers)


def _write_symbols(out: Path, splits: Mapping[str, object]) -> None:
    """Write symbols of several letters where they stay whole: in ``SPLIT.ltr``."""
    dataset = AudioManifest.open(ManifestConfig(path=out, check_files=False))
    for split in splits:
        manifest = dataset.split(split)
        lines = [manifest.text("label", row) or "" for row in range(len(manifest))]
        write_atomically(out / f"{split}.ltr", "\n".join(lines) + "\n")


def _import_tables(
    paths: Sequence[Path],
    out: Path,
    labels: str | None,
    column: str | None,
    *,
    sample_rate: int,
    min_samples: int,
    tokenizer: Path | None,
    vocabulary_size: int,
    **options: Unpack[FileOptions],
) -> Report:
    opened = [tables.Table.open(path) for path in paths]
    chosen = [(table, *table.find_data(column)) for table in opened]
    modalities = {modality for _, _, modality in chosen}
    if len(modalities) > 1:
        raise RecipeError("Some tables have pictures, others recordings or texts; import each into a folder of its own.")
    (modality,) = modalities
    shard_size = options["shard_size"] or parse_size("1G")
    if modality is Modality.TEXT:
        if column not in (None, "text") or labels not in (None, "label"):
            raise RecipeError("Texts are read from the columns `text` and `label`; rename yours.")
        rest: Any = {name: value for name, value in options.items() if name not in ("reread", "shard_size")}
        return prepare_text(paths, out, shard_size=shard_size, tokenizer=tokenizer, vocabulary_size=vocabulary_size, **rest)
    report = Report()
    usual = ("label",) if modality is Modality.IMAGE else (*_TRANSCRIPTS, "label")
    label = _choose([table.columns for table in opened], labels, usual)
    speaker = _choose([table.columns for table in opened], None, _SPEAKERS)
    pairs = [(table, name) for table, name, _ in chosen]
    samples, archives = tables.unpack(pairs, out, shard_size, report, label=label, speaker=speaker)
    _count_speakers(samples, report)
    options["shard_size"] = None
    if modality is Modality.IMAGE:
        prepare_pictures([replace(sample, speaker=None) for sample in samples], out, report, **options)
    else:
        has_transcripts = label in _TRANSCRIPTS
        prepare_recordings(
            samples, out, report, has_transcripts=has_transcripts, sample_rate=sample_rate, min_samples=min_samples, **options
        )
    remove_other_shards(out, tables.PREFIX, archives, "zip")

    return report
