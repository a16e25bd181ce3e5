"""One file as a model's input, prepared as the readers of manifests prepare samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.files import Location
from d2v_plugin.data.image import ImageReadingConfig, decode, fit
from d2v_plugin.data.image import normalize as normalize_images
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import END, pad_tokens
from d2v_plugin.data.tokenizers import open_tokenizer


def read_audio(path: str | Path, *, normalize: bool = True) -> Tensor:
    """Read a recording: (1, T) at 16 kHz, channels averaged, resampled if it has another rate.

    :param normalize: to zero mean and unit variance, as models of this package expect it.
    :raises RuntimeError: it cannot be decoded.
    """
    info = soundfile.info(str(path))
    config = AudioReadingConfig(resample=True, normalize=normalize)
    waveform = read_recording(Recording(Location(str(path)), info.frames, rate=info.samplerate), config)
    return torch.from_numpy(waveform).unsqueeze(0)


def read_image(path: str | Path, *, size: int = 224, eval_resize: float = 256 / 224) -> Tensor:
    """Read an image: (1, 3, size, size), resized, cropped at the centre and normalised with ImageNet's mean and deviation.

    :param eval_resize: as the field of the task's ``image``: the shorter side is resized to this times ``size`` first.
    :raises OSError: the file cannot be read.
    :raises RuntimeError: it is damaged, or of an unknown format.
    """
    config = ImageReadingConfig(size=size, eval_resize=eval_resize)
    return normalize_images([fit(decode(Location(str(path))), config)], config)


def read_text(path: str | Path, vocabulary: str | Path) -> Tensor:
    """Read a text: (1, S) token ids, ``<s>``, then each line that is not blank with ``</s>`` behind it.

    :param vocabulary: the folder of the dataset that the model was trained on, with its ``sentencepiece.model``, or a folder with
        the byte-level BPE of a converted model.
    :raises RecipeError: there is no vocabulary, the file cannot be read, or lines of it are no UTF-8.
    """
    tokenizer, problems = open_tokenizer(Path(vocabulary)), Problems()
    lines = [line for line in map(str.strip, read_lines(Path(path), problems)) if line]
    problems.raise_if_any()
    tokens = [np.append(line, END) for line in tokenizer.encode_lines(lines)] or [np.empty(0, dtype=np.int64)]
    inputs, _, _ = pad_tokens([np.concatenate(tokens)])
    return inputs
