"""One file as a model's input, prepared as the readers of manifests prepare samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_info, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location, check_regular
from d2v_plugin.data.image import ImageReadingConfig, fit
from d2v_plugin.data.image import normalize as normalize_images
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.text import END, pad_tokens
from d2v_plugin.data.tokenizers import open_tokenizer


def read_audio(path: str | Path, *, normalize: bool = True, min_samples: int = 400) -> Tensor:
    """Read a recording: (1, T) at 16 kHz, channels averaged, resampled if it has another rate.

    :param normalize: to zero mean and unit variance, as models of this package expect it.
    :param min_samples: what a model needs for one frame; 400 with the convolutions of all published models.
    :raises SampleError: it has no samples, or fewer than ``min_samples``; names the file.
    :raises OSError: it cannot be read, or is no regular file.
    :raises RuntimeError: it cannot be decoded.
    """
    config = AudioReadingConfig(resample=True, normalize=normalize)
    with _naming(path):
        info = read_info(Location(str(path)))
        waveform = read_recording(Recording(Location(str(path)), info.frames, rate=info.samplerate), config)
        if len(waveform) < min_samples:
            raise SampleError(
                f"The recording is too short: {len(waveform):,} samples at 16 kHz, but a model needs {min_samples:,} for a frame."
            )
    return torch.from_numpy(waveform).unsqueeze(0)


def read_image(path: str | Path, *, size: int = 224, eval_resize: float = 256 / 224) -> Tensor:
    """Read an image: (1, 3, size, size), resized, cropped at the centre and normalised with ImageNet's mean and deviation.

    :param eval_resize: as the field of the task's ``image``: the shorter side is resized to this times ``size`` first.
    :raises SampleError: the file is no picture of a format that is read; names the file.
    :raises OSError: the file cannot be read.
    :raises RuntimeError: it is damaged.
    """
    config = ImageReadingConfig(size=size, eval_resize=eval_resize)
    with _naming(path):
        image = decode(Location(str(path)))
    return normalize_images([fit(image, config)], config)


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name the file in what is raised about a sample."""
    try:
        yield
    except SampleError as ex:
        raise SampleError(f"{path}: {ex}") from ex


def read_text(path: str | Path, vocabulary: str | Path) -> Tensor:
    """Read a text: (1, S) token ids, ``<s>``, then each line that is not blank with ``</s>`` behind it.

    :param vocabulary: the folder of the dataset that the model was trained on, with its ``sentencepiece.model``, or a folder with
        the byte-level BPE of a converted model.
    :raises RecipeError: there is no vocabulary, the file cannot be read, or lines of it are no UTF-8.
    """
    check_regular(path)
    tokenizer, problems = open_tokenizer(Path(vocabulary)), Problems()
    lines = [line for line in map(str.strip, read_lines(Path(path), problems)) if line]
    problems.raise_if_any()
    tokens = [np.append(line, END) for line in tokenizer.encode_lines(lines)] or [np.empty(0, dtype=np.int64)]
    inputs, _, _ = pad_tokens([np.concatenate(tokens)])
    return inputs
