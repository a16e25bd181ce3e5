"""Waveforms for data2vec 2.0: normalized as in training, which adds 1e-5 to the variance where transformers adds 1e-7."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Processor


class Data2Vec2FeatureExtractor(Wav2Vec2FeatureExtractor):
    """Pads waveforms and gives each zero mean and unit variance."""

    @staticmethod
    def zero_mean_unit_var_norm(input_values: Any, attention_mask: Any, padding_value: float = 0.0) -> list[Any]:
        lengths = [len(x) for x in input_values] if attention_mask is None else np.asarray(attention_mask).sum(-1)
        normalized = []
        for waveform, length in zip(input_values, lengths, strict=True):
            valid = np.asarray(waveform[:length], dtype=np.float32)
            mean, variance = valid.mean(dtype=np.float64), valid.var(dtype=np.float64)
            padded = np.full(len(waveform), padding_value, dtype=np.float32)
            padded[:length] = (valid - np.float32(mean)) * np.float32(1 / np.sqrt(variance + 1e-5))
            normalized.append(padded)

        return normalized


class Data2Vec2Processor(Wav2Vec2Processor):
    """The feature extractor above and a tokenizer."""

    feature_extractor_class = "AutoFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
