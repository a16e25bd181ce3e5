"""Make manifests/words: the ten digits spoken by espeak-ng in many voices, as Opus in one shard.

Needs the program ``espeak-ng`` (Debian: apt-get install espeak-ng); only this script does.

python -m manifests.words.make [OUT]
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from d2v_plugin.data.random import Purpose, draw_permutation, draw_uniform
from d2v_plugin.data.shards import ShardWriter
from manifests.making import SEED, run, write_splits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5")
SAMPLE_RATE = 16_000
NUM_VALID_SPEAKERS = 12
NUM_PROBE_SPEAKERS = 10


def speak(word: str, voice: str, speed: int, pitch: int) -> NDArray[np.float32]:
    """One word, without the silence after it, at 16 kHz."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), word]
    sound, rate = soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout), dtype="float32")
    sound = soxr.resample(sound, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01)

    return sound[max(0, loud[0] - 800) : loud[-1] + 800]  # type: ignore[no-any-return]


def make(out: Path) -> None:
    """A speaker is an accent with a voice, a speed and a pitch; the speakers of ``valid`` are in no other split."""
    speakers = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
    with ShardWriter(out / "words.zip") as shard:
        rows = {}
        for index, speaker in enumerate(speakers):
            speed, pitch = draw_uniform(SEED, 0, Purpose.SPLIT, index + 1, 2)
            for word in WORDS:
                sound = speak(word, speaker, 120 + int(80 * speed), 30 + int(40 * pitch))
                file = io.BytesIO()
                soundfile.write(file, sound, SAMPLE_RATE, format="OGG", subtype="OPUS")
                rows[index, word] = f"{shard.add(f'{speaker}-{word}.opus', file.getvalue())}\t{len(sound)}\t{word}"

    order = draw_permutation(SEED, 0, Purpose.SPLIT, len(speakers)).tolist()
    valid, train = order[:NUM_VALID_SPEAKERS], order[NUM_VALID_SPEAKERS:]
    speakers_of = {"train": train, "probe": train[:NUM_PROBE_SPEAKERS], "valid": valid}
    splits = {name: [rows[speaker, word] for speaker in found for word in WORDS] for name, found in speakers_of.items()}
    write_splits(out, WORDS, **splits)


if __name__ == "__main__":
    run(__doc__, make, "words")
