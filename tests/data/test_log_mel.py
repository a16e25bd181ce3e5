"""Log-mel spectrograms are those of torchaudio's ``compliance.kaldi.fbank`` and of kaldi-native-fbank (tests/golden)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2v_plugin.data.log_mel import LogMelConfig, check_log_mel, log_mel

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "log_mel.safetensors")
SETTINGS = {
    "eat": LogMelConfig(),
    "speech": LogMelConfig(sample_rate=8000, num_mels=40, low_freq=60.0, high_freq=-200.0),
    "wide": LogMelConfig(num_mels=64, frame_length=32.0, frame_shift=16.0, low_freq=0.0, high_freq=7600.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_those_of_torchaudio_and_kaldi(name: str) -> None:
    found = log_mel(GOLDEN["waveform"], SETTINGS[name])

    assert (found - GOLDEN[f"torchaudio/{name}"]).abs().max() < 1e-4
    if (kaldi := GOLDEN.get(f"kaldi/{name}")) is not None:
        # From which torchaudio itself is as far away.
        assert (found - kaldi).abs().max() < 5e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_shift": 0.01}, "`x.frame_length` and `x.frame_shift` (25.0 and 0.01 ms) must have samples"),
        ({"high_freq": 9000.0}, "between 0 and half of `x.sample_rate` (8,000 Hz), but are 20 and 9000 Hz"),
        ({"low_freq": 500.0, "high_freq": 400.0}, "`x.low_freq` and `x.high_freq` must lie one above the other"),
        ({"num_mels": 512}, "`x.num_mels` is 512, of which"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, float], message: str) -> None:
    (found,) = (text for failed, text in check_log_mel(LogMelConfig(**settings), "x.") if failed)  # type: ignore[arg-type]

    assert message in found


def test_a_waveform_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 400 samples"):
        log_mel(torch.zeros(1, 399), LogMelConfig())
