"""Manifests of JSON lines: NeMo's, and Lhotse's cuts, recordings and supervisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation.importing.utterances import ONE_CHANNEL, Source, Utterance, find_base, texts_of

LHOTSE_FILES: Final = ("*cuts*.jsonl", "*cuts*.jsonl.gz", "*recordings*.jsonl", "*recordings*.jsonl.gz")


def read_nemo(source: Source) -> Iterator[Utterance]:
    """Read lines of ``audio_filepath``, ``duration`` and perhaps ``offset``, ``text``, ``speaker`` and others."""
    for number, content in source.read_objects(source.path):
        name, duration = content.get("audio_filepath"), content.get("duration")
        if not isinstance(name, str) or not name:
            source.problems.add(source.path, number, "there is no `audio_filepath`")
            continue
        start = source.seconds(content.get("offset") or 0.0, "offset", source.path, number)
        seconds = None if duration is None else source.seconds(duration, "duration", source.path, number)
        if start is None or (seconds is None and duration is not None):
            continue
        fields = {key: value for key, value in texts_of(content).items() if key != "audio_filepath"}
        yield Utterance(name=f"{name} (line {number})", file=source.path.parent / name, segment=(start, seconds), fields=fields)


def read_lhotse(source: Source) -> Iterator[Utterance]:
    """Read a file of cuts, or one of recordings with that of supervisions beside it, if there is one; or a folder of them.

    A cut with several supervisions gives a row for each.
    """
    path = _find_file(source.path)
    supervisions: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    beside = path.with_name(path.name.replace("recordings", "supervisions"))
    if beside != path and beside.is_file():
        for number, content in source.read_objects(beside):
            supervisions.setdefault(str(content.get("recording_id")), []).append((number, content))
    for number, content in source.read_objects(path):
        if "sources" in content:
            found = supervisions.pop(str(content.get("id")), None)
            if beside == path or not beside.is_file():
                yield from _read_part(source, path, number, content, {"id": content.get("id")}, None)
            elif found is None:
                source.drop(str(content.get("id")), "the recording has no supervision")
            for line, supervision in found or ():
                yield from _read_part(source, beside, line, content, supervision, supervision)
        elif content.get("type", "MonoCut") != "MonoCut":
            source.drop(str(content.get("id")), f"it is a {content['type']}, and only a MonoCut is a part of one recording")
        else:
            yield from _read_cut(source, path, number, content)
    for recording, found in supervisions.items():
        for _, supervision in found:
            source.drop(str(supervision.get("id")), f"its recording is not in {path.name}: '{recording}'")


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(file for pattern in LHOTSE_FILES for file in path.glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found)
        raise RecipeError(f"{path} has {len(found)} files of cuts or recordings ({names}); name one, or train=FILE valid=FILE.")
    return found[0]


def _read_cut(source: Source, path: Path, number: int, cut: Mapping[str, Any]) -> Iterator[Utterance]:
    recording, supervisions = cut.get("recording"), cut.get("supervisions") or []
    if not isinstance(recording, dict):
        source.drop(str(cut.get("id")), "the cut has no recording, only features")
        return
    if len(supervisions) <= 1:
        yield from _read_part(source, path, number, recording, cut, *(supervisions or [{}]))
        return
    start = source.seconds(cut.get("start"), "start", path, number)
    for supervision in supervisions:
        # Their times are those of the cut.
        within = source.seconds(supervision.get("start"), "start", path, number)
        if start is not None and within is not None:
            part = {**supervision, "start": start + within, "channel": cut.get("channel", 0)}
            yield from _read_part(source, path, number, recording, part, supervision)


def _read_part(
    source: Source,
    path: Path,
    number: int,
    recording: Mapping[str, Any],
    part: Mapping[str, Any],
    supervision: Mapping[str, Any] | None,
) -> Iterator[Utterance]:
    """
    :param part: what says start, length and channel; without a start it is the whole recording.
    """
    name = str(part.get("id"))
    sources = recording.get("sources") or [{}]
    channels = [channel for place in sources for channel in place.get("channels", [0])]
    chosen = part.get("channel", channels)
    if len(sources) != 1 or sources[0].get("type") != "file":
        kinds = ", ".join(str(place.get("type")) for place in sources)
        source.drop(name, f"its sound is not in one file: '{kinds}'")
    elif recording.get("transforms"):
        source.drop(name, "its sound is transformed when it is read")
    elif sorted(chosen if isinstance(chosen, list) else [chosen]) != sorted(channels):
        source.drop(name, ONE_CHANNEL)
    else:
        segment = None
        if "start" in part:
            start = source.seconds(part["start"], "start", path, number)
            duration = source.seconds(part.get("duration"), "duration", path, number)
            if start is None or duration is None:
                return
            segment = start, duration
        sound = str(sources[0].get("source"))
        fields = texts_of(supervision or {}) | texts_of((supervision or {}).get("custom") or {})
        yield Utterance(name=name, file=(find_base(path, sound) or Path()) / sound, segment=segment, fields=fields)
