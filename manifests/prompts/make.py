"""Make manifests/prompts: 4.6 hours of recorded voices in one shard; and manifests/prompts_spoken: those with transcripts.

Reads the unpacked Debian packages FOLDER/NAME of README.md. Needs PyAV (pip install av): the prompts are G.722 and GSM.

python -m manifests.prompts.make FOLDER [OUT [OUT_OF_SPOKEN]]
"""

from __future__ import annotations

import gzip
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from d2v_plugin.data.random import Purpose, draw_permutation
from d2v_plugin.data.shards import ShardWriter
from manifests.making import SEED, run, write_splits

SAMPLE_RATE = 16_000
SHORTEST = 1600
LANGUAGES = ("en", "es", "fr", "it", "ru")
MORE_PROMPTS = ("asterisk-prompt-it-menardi-wav", "asterisk-prompt-fr-armelle", "asterisk-prompt-es-co")
CHILDREN = ("klettres-data", "ktuberling-data")
INITIALS = "ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔㄕㄖㄗㄘㄙ"
VOICE = "3"  # the other voice of gcin, 5, is cut badly or labelled wrongly
NUM_VALID_SYLLABLES = 400
NUM_VALID_SPOKEN = 300


@dataclass(frozen=True)
class Recording:
    """A file of a package."""

    path: Path
    name: str
    """In the shard."""

    final: str | None = None
    """A syllable of Mandarin without its first consonant and its tone."""

    transcript: str | None = None
    """Its words, in lower case without accents and punctuation; English, Spanish, French and Italian only."""


def find_recordings(folder: Path) -> Iterator[Recording]:
    """All recordings in a fixed order."""
    for language in LANGUAGES:
        transcripts = read_transcripts(folder / f"asterisk-core-sounds-{language}")
        package = folder / f"asterisk-core-sounds-{language}-g722"
        for path in sorted(package.rglob("*.g722")):
            _, _, key = path.relative_to(package / "usr/share/asterisk/sounds").as_posix().partition("/")
            transcript = simplify(transcripts.get(key.removesuffix(".g722"), "")) if language != "ru" else None
            yield Recording(path, f"{language}/{key}", transcript=transcript or None)
    for package in (folder / name for name in MORE_PROMPTS):
        for path in sorted([*package.rglob("*.gsm"), *package.rglob("*.wav")]):
            yield Recording(path, f"{package.name}/{path.relative_to(package).as_posix().replace('/', '_')}")
    for path in sorted((folder / "gcin-voice").rglob("*.ogg")):
        syllable, voice = path.parent.name, path.stem
        base = syllable.rstrip("12345")
        final = (base[1:] if base[0] in INITIALS else base) or "-"
        yield Recording(path, f"gcin/{syllable}_{voice}", final=final if voice == VOICE else None)
    for package in (folder / name for name in CHILDREN):
        for path in sorted(path for kind in ("ogg", "wav", "opus") for path in package.rglob(f"*.{kind}")):
            yield Recording(path, f"{package.name}/{path.relative_to(package).as_posix().replace('/', '_')}")


def read_transcripts(package: Path) -> dict[str, str]:
    """Prompt -> what is said."""
    found: dict[str, str] = {}
    for path in package.rglob("core-sounds-*.txt.gz"):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
            found |= {match[1]: match[2] for line in lines if (match := re.match(r"([^;:\s][^:\s]*):\s*(.*)", line.strip()))}

    return found


def simplify(text: str) -> str:
    """Words as they are spelled, in the letters a to z; nothing for what is no speech (``[beep]``) or has digits."""
    if not text or any(sign in text for sign in "[]()<>0123456789"):
        return ""
    plain = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    letters = "".join(sign for sign in plain if not unicodedata.combining(sign))

    return " ".join(re.sub(r"[^a-z' ]", " ", letters).split())


def decode(path: Path) -> NDArray[np.int16]:
    """A recording as mono at 16 kHz, (S)."""
    with av.open(str(path), format="g722" if path.suffix == ".g722" else None) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frames = [*container.decode(audio=0), None]
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]

    return np.concatenate(parts)


def make(source: Path, prompts: Path, spoken: Path) -> None:
    """``train`` is all that is recorded; ``probe`` and ``valid`` are syllables of one voice, of which the final is told."""
    rows, syllables, sentences = [], [], []
    with ShardWriter(prompts / "prompts.zip") as shard:
        for recording in find_recordings(source):
            try:
                sound = decode(recording.path)
            except (av.error.FFmpegError, ValueError) as error:
                print(f"left out: {recording.name}: {error}")
                continue
            if len(sound) < SHORTEST:
                continue
            file = io.BytesIO()
            soundfile.write(file, sound, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            row = f"{shard.add(f'{recording.name}.flac', file.getvalue())}\t{len(sound)}"
            rows.append(row)
            if recording.final is not None:
                syllables.append((row, recording.final))
            if recording.transcript is not None:
                sentences.append(f"{row}\t{recording.transcript}")
    syllables = [syllables[index] for index in draw_permutation(SEED, 0, Purpose.SPLIT, len(syllables))]
    sentences = [sentences[index] for index in draw_permutation(SEED, 1, Purpose.SPLIT, len(sentences))]
    valid, probe = syllables[:NUM_VALID_SYLLABLES], syllables[NUM_VALID_SYLLABLES:]
    known = {final for _, final in probe}
    labelled = {
        name: [f"{row}\t{final}" for row, final in found if final in known]
        for name, found in (("probe", probe), ("valid", valid))
    }
    write_splits(prompts, sorted(known), train=rows, **labelled)

    root = Path("..", prompts.name) if prompts.parent == spoken.parent else prompts.absolute()
    for name, found in (("train", sentences[NUM_VALID_SPOKEN:]), ("valid", sentences[:NUM_VALID_SPOKEN])):
        (spoken / f"{name}.tsv").write_text("\n".join([str(root), *found]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(__doc__, make, "prompts", "prompts_spoken", source="FOLDER")
