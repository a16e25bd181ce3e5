"""Write manifests/words: the ten digits spoken by espeak-ng in many voices, as Opus in one shard.

Needs the program ``espeak-ng`` (Debian: apt-get install espeak-ng); only this script does.

python tools/make_words.py [OUT]
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from d2v_plugin.data.random import Purpose, draw_permutation, draw_uniform
from d2v_plugin.data.shards import ShardWriter

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
VARIANTS = ("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5")
SAMPLE_RATE = 16_000
NUM_VALID_SPEAKERS = 12
NUM_PROBE_SPEAKERS = 10
SEED = 0


def speak(word: str, voice: str, speed: int, pitch: int) -> NDArray[np.float32]:
    """One word, without the silence after it, at 16 kHz."""
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", str(speed), "-p", str(pitch), word]
    sound, rate = soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout), dtype="float32")
    sound = soxr.resample(sound, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01)

    return sound[max(0, loud[0] - 800) : loud[-1] + 800]  # type: ignore[no-any-return]


def write_words(out: Path) -> None:
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
    header = [".", "\t".join(["#classes", *WORDS])]
    for name, split in (("train", train), ("probe", train[:NUM_PROBE_SPEAKERS]), ("valid", valid)):
        lines = [rows[speaker, word] for speaker in split for word in WORDS]
        (out / f"{name}.tsv").write_text("\n".join([*header, *lines]) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "manifests" / "words"
    folder.mkdir(parents=True, exist_ok=True)
    write_words(folder)
