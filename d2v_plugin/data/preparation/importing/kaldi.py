"""Data folders of Kaldi and ESPnet: ``wav.scp``, ``segments``, ``text``, ``utt2spk`` and other ``utt2…``."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from d2v_plugin.data.preparation.importing.utterances import ONE_CHANNEL, SPEAKER, TEXT, Source, Utterance, find_base

_FLAC: Final = re.compile(r"flac (?:-[cds]+ )+(\S+) ?\|")
"""The command by which recipes read FLAC, which is read without it."""
_ARCHIVED: Final = re.compile(r"(.+):(\d+)")


def read_kaldi(source: Source) -> Iterator[Utterance]:
    """Read a data folder. Commands are never run; but for ``flac -c -d FILE |``, what comes from one is dropped."""
    folder = source.path
    recordings = source.read_table(folder / "wav.scp")
    fields = {
        _name_of(path): source.read_table(path) for path in (folder / TEXT, *sorted(folder.glob("utt2*"))) if path.is_file()
    }
    segments = folder / "segments"
    rows = source.read_table(segments) if segments.is_file() else {name: (name, 0) for name in recordings}
    base = _find_base(folder, [value for value, _ in recordings.values()])
    for field, table in fields.items():
        for name in table.keys() - rows.keys():
            source.drop(name, f"there is a {field}, but no such utterance")
    for name in recordings.keys() - {value.split()[0] for value, _ in rows.values() if value}:
        source.drop(name, "the recording has no segment")
    for name, (value, number) in rows.items():
        values = {field: table[name][0] for field, table in fields.items() if name in table}
        recording, *times = value.split() or [""]
        segment = None
        if segments.is_file():
            if len(times) not in (2, 3):
                source.problems.add(
                    segments, number, "a line must be an utterance, a recording, its start and its end in seconds"
                )
                continue
            if len(times) == 3:
                source.drop(name, ONE_CHANNEL)
                continue
            start = source.seconds(times[0], "start", segments, number)
            end = None if times[1] == "-1" else source.seconds(times[1], "end", segments, number)
            if start is None or (end is None and times[1] != "-1"):
                continue
            if end is not None and end <= start:
                source.problems.add(segments, number, f"the segment ends at {end:g}, before it starts, at {start:g}")
                continue
            segment = start, None if end is None else end - start
        if recording not in recordings:
            source.drop(name, f"its recording is not in wav.scp: '{recording}'")
            continue
        place = recordings[recording][0]
        if flac := _FLAC.fullmatch(place):
            place = flac[1]
        if place.endswith("|"):
            source.drop(name, f"its sound comes from a command, and none is run: '{place}'")
        elif not place:
            source.problems.add(folder / "wav.scp", recordings[recording][1], "there is no file behind the name")
        elif (archived := _ARCHIVED.fullmatch(place)) is None:
            yield Utterance(name=name, file=base / place, segment=segment, fields=values)
        elif (size := _find_wave(base / archived[1], int(archived[2]))) is None:
            source.drop(name, f"what lies in the archive is no WAV, or is missing: '{place}'")
        else:
            file, offset = base / archived[1], int(archived[2])
            yield Utterance(name=name, file=file, bytes=(offset, size), segment=segment, fields=values)


def _name_of(path: Path) -> str:
    name = path.name.removeprefix("utt2")
    return SPEAKER if name == "spk" else name


def _find_base(folder: Path, places: list[str]) -> Path:
    """The folder that relative paths belong to."""
    for place in places:
        path = _FLAC.sub(r"\1", _ARCHIVED.sub(r"\1", place))
        if not path.endswith("|") and not Path(path).is_absolute():
            return find_base(folder / "wav.scp", path) or folder
    return folder


def _find_wave(path: Path, offset: int) -> int | None:
    """The bytes of the WAV that begins at a place of an archive; None = none does."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            head = file.read(12)
    except OSError:
        return None
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    return int(struct.unpack("<I", head[4:8])[0]) + 8
