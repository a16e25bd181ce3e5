"""Recordings as they come from users' disks, and crops that do not depend on how they are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from d2v_plugin.data.audio import AudioReadingConfig, Recording, Waveform, measure, read_info, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.batches import pad
from d2v_plugin.data.files import Location

TIME = np.arange(20_000) / 16_000
SOUND = (0.4 * np.sin(2 * np.pi * 440 * TIME) + 0.1 * np.sin(2 * np.pi * 97 * TIME) + 0.05).astype(np.float32)
RAW = AudioReadingConfig(normalize=False)

FORMATS = {
    "wav": {},
    "float.wav": {"subtype": "FLOAT", "format": "WAV"},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
}
LOSSLESS = ("wav", "float.wav", "flac")


def write(folder: Path, sound: Waveform = SOUND, rate: int = 16_000, name: str = "x.wav") -> Recording:
    options = FORMATS[name.removeprefix("x.")]
    soundfile.write(folder / name, sound, rate, **options)

    return Recording(Location(str(folder / name)), soundfile.info(folder / name).frames)


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_are_read_from_files_and_from_archives(tmp_path: Path, kind: str) -> None:
    recording = write(tmp_path, name=f"x.{kind}")
    data = Path(recording.location.path).read_bytes()
    (tmp_path / "shard").write_bytes(b"before" + data + b"after")
    packed = Recording(Location(str(tmp_path / "shard"), 6, len(data)), recording.size)
    sound = read_recording(recording, RAW)

    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound[: len(SOUND)], SOUND, atol=1e-4 if kind in LOSSLESS else 0.2)
    np.testing.assert_array_equal(read_recording(packed, RAW), sound)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_crop_by_seeking_equals_the_crop_of_the_whole(tmp_path: Path, kind: str) -> None:
    recording = write(tmp_path, name=f"x.{kind}")
    known = Recording(recording.location, recording.size, statistics=measure(read_recording(recording, RAW)))
    expected = read_recording(recording, AudioReadingConfig(), 1234, 5000)

    assert len(expected) == 5000
    np.testing.assert_allclose(read_recording(known, AudioReadingConfig(), 1234, 5000), expected, atol=1e-5)


def test_the_whole_utterance_is_normalized_not_the_crop(tmp_path: Path) -> None:
    sound = np.concatenate([SOUND, 0.01 * SOUND])
    recording = write(tmp_path, sound, name="x.float.wav")
    expected = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-5)

    np.testing.assert_allclose(read_recording(recording, AudioReadingConfig()), expected, atol=1e-4)
    np.testing.assert_allclose(read_recording(recording, AudioReadingConfig(), 25_000, 9000), expected[25_000:34_000], atol=1e-4)


def test_stereo_is_mixed_down(tmp_path: Path) -> None:
    recording = write(tmp_path, np.stack([SOUND, np.zeros_like(SOUND)], axis=1), name="x.float.wav")

    np.testing.assert_allclose(read_recording(recording, RAW), SOUND / 2, atol=1e-6)


def test_a_segment_is_normalized_and_cropped_by_itself(tmp_path: Path) -> None:
    whole = write(tmp_path, name="x.float.wav")
    segment = Recording(whole.location, 4000, start=3000, is_segment=True)
    part = SOUND[3000:7000]

    np.testing.assert_allclose(
        read_recording(segment, AudioReadingConfig(), 100, 50),
        ((part - part.mean()) / np.sqrt(part.var() + 1e-5))[100:150],
        atol=1e-4,
    )


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_when_their_rate_is_known(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    recording = write(tmp_path, np.sin(2 * np.pi * 440 * time).astype(np.float32), rate, name="x.float.wav")
    known = Recording(recording.location, recording.size, rate=rate)
    sound = read_recording(known, RAW, 4000, 8000)

    assert len(sound) == 8000
    np.testing.assert_allclose(sound, np.sin(2 * np.pi * 440 * np.arange(4000, 12_000) / 16_000), atol=0.02)


def test_an_unexpected_rate_is_refused_clearly(tmp_path: Path) -> None:
    recording = write(tmp_path, rate=8000)
    with pytest.raises(SampleError, match="8000 samples per second, but 16000 were expected"):
        read_recording(recording, AudioReadingConfig())


def test_a_recording_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path) -> None:
    location = write(tmp_path).location
    for wrong in (Recording(location, 30_000), Recording(location, 10_000), Recording(location, 10_000, 15_000, is_segment=True)):
        with pytest.raises(SampleError, match="has 20000 samples, but the manifest says"):
            read_recording(wrong, RAW)


def test_truncated_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    flac = write(tmp_path, name="x.flac")
    data = Path(flac.location.path).read_bytes()
    for content in (data[: len(data) // 2], b"", b"text, not sound"):
        Path(flac.location.path).write_bytes(content)
        with pytest.raises((SampleError, RuntimeError)):
            read_recording(flac, RAW)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    recording = write(tmp_path, np.where(TIME > 1, np.nan, SOUND).astype(np.float32), name="x.float.wav")
    with pytest.raises(SampleError, match="not finite"):
        read_recording(recording, RAW)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "ULAW", "IMA_ADPCM", "DOUBLE"])
def test_all_kinds_of_wave_files_are_read(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "x.wav", SOUND, 16_000, subtype)
    recording = Recording(Location(str(tmp_path / "x.wav")), soundfile.info(tmp_path / "x.wav").frames)
    tolerance = {"PCM_U8": 0.01, "ULAW": 0.02, "IMA_ADPCM": 0.05}.get(subtype, 1e-4)

    # ADPCM takes some samples to find its step.
    np.testing.assert_allclose(read_recording(recording, RAW)[100 : len(SOUND)], SOUND[100:], atol=tolerance)


@pytest.mark.parametrize("name", ["x.flac", "x.float.wav", "x.stereo"])
def test_a_crop_can_be_written_to_a_given_place(tmp_path: Path, name: str) -> None:
    if name == "x.stereo":
        soundfile.write(tmp_path / name, np.stack([SOUND, SOUND], axis=1), 16_000, format="FLAC")
        recording = Recording(Location(str(tmp_path / name)), len(SOUND))
    else:
        recording = write(tmp_path, name=name)
    known = Recording(recording.location, recording.size, statistics=measure(read_recording(recording, RAW)))
    places = np.full((3, 500), 7, dtype=np.float32)
    for given in (recording, known):
        result = read_recording(given, AudioReadingConfig(), 100, 500, places[1])
        np.testing.assert_array_equal(places[1], read_recording(given, AudioReadingConfig(), 100, 500))
        assert result is not None and (places[[0, 2]] == 7).all()


def test_padding_marks_exactly_what_was_added() -> None:
    inputs, padding_mask, min_length = pad([SOUND[:3], SOUND[:5]], np.float32)

    assert padding_mask is not None
    assert padding_mask.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    assert inputs[0, 3:].tolist() == [0, 0]
    assert min_length == 3
    assert pad([SOUND[:3], SOUND[:3]], np.float32)[1:] == (None, None)


def encode_with_ffmpeg(path: Path, codec: str, values: Any, rate: int) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(values[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.codec_context.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec"), [("m4a", "aac"), ("aac", "aac"), ("webm", "libopus"), ("wv", "wavpack"), ("g722", "g722")]
)
def test_what_ffmpeg_decodes_is_read_whole_and_in_parts(suffix: str, codec: str, tmp_path: Path) -> None:
    rate = 48_000 if codec == "libopus" else 16_000
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    path = encode_with_ffmpeg(tmp_path / f"sine.{suffix}", codec, sine, rate)
    info = read_info(Location(str(path)))
    assert (info.samplerate, info.channels) == (rate, 1)
    assert abs(info.frames - rate) < 3000  # what fills the last packets
    config = AudioReadingConfig(sample_rate=rate, normalize=False)
    recording = Recording(Location(str(path)), info.frames)
    whole = read_recording(recording, config)
    spectrum = np.abs(np.fft.rfft(whole[:rate]))
    assert abs(int(spectrum.argmax()) - 440) <= 1 and abs(np.abs(whole).max() - 0.5) < 0.1
    np.testing.assert_array_equal(read_recording(recording, config, 700, 900), whole[700:1600])
    if suffix != "g722":
        (tmp_path / "archive").write_bytes(b"12345" + path.read_bytes())
        inside = Recording(Location(str(tmp_path / "archive"), 5, path.stat().st_size), info.frames)
        np.testing.assert_array_equal(read_recording(inside, config), whole)


def test_what_ffmpeg_does_not_know_or_cannot_decode_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    for content in (b"no sound at all", bytes(1000), b"#!/bin/sh\necho\n" * 50):
        path.write_bytes(content)
        with pytest.raises(SampleError, match=r"ffmpeg cannot decode the recording|The format is not recognised"):
            read_info(Location(str(path)))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SampleError, match=r"pip install av"):
        read_info(Location(str(path)))
