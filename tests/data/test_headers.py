"""What files claim of themselves, and what they are, before any memory or patience is spent on them."""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from d2v_plugin.data import headers
from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import ImageManifest, ManifestConfig
from d2v_plugin.data.files import Location
from d2v_plugin.data.image import ImageReadingConfig, fit
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.problems import ManifestError


def encode(kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (37, 23)).save(file, kind, **settings)

    return file.getvalue()


PICTURES = {"png": encode("PNG"), "jpeg": encode("JPEG")}


def claim_png(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """The beginning of a PNG, which is all that is looked at before it is decoded."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize("junk", [b"\0", b"\x12\xff\0\x34", b"\xff\xff", b"\xff\xe0\0\0", b"\xff\x01"])
def test_bytes_between_the_markers_of_a_jpeg_do_not_hide_its_size(
    junk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, path = PICTURES["jpeg"], tmp_path / "picture"
    at = data.index(b"\xff\xc0")
    path.write_bytes(data[:at] + junk + data[at:])
    assert decode(Location(str(path))).shape == (3, 23, 37)

    monkeypatch.setattr(headers, "MAX_PIXELS", 37 * 23 - 1)
    with pytest.raises(SampleError, match="claims 37 x 23 pixels"):
        decode(Location(str(path)))


def test_a_chunk_before_the_header_of_a_png_does_not_hide_its_size(tmp_path: Path) -> None:
    hidden = b"\0\0\0\x08abCd" + struct.pack(">II", 5, 5) + struct.pack(">I", zlib.crc32(b"abCd" + struct.pack(">II", 5, 5)))
    data = claim_png(20_000, 20_000)
    (tmp_path / "x.png").write_bytes(data[:8] + hidden + data[8:])

    with pytest.raises(SampleError, match="does not say how large it is"):
        decode(Location(str(tmp_path / "x.png")))


def test_memory_is_bounded_in_bytes_not_only_in_pixels(tmp_path: Path) -> None:
    for depth, color, each in ((16, 2, 9), (8, 6, 12), (16, 6, 12)):
        (tmp_path / "x.png").write_bytes(claim_png(9900, 9900, depth, color))
        with pytest.raises(SampleError, match=f"9,900 x 9,900 pixels, each of which takes {each} bytes"):
            decode(Location(str(tmp_path / "x.png")))


def test_a_gif_whose_frame_is_larger_than_its_screen_is_a_bad_sample(tmp_path: Path) -> None:
    frame = b"," + struct.pack("<HHHH", 0, 0, 65_535, 65_535) + b"\0\x02\x02\x4c\x01\0;"
    (tmp_path / "x.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame)

    with pytest.raises(SampleError, match="The GIF cannot be decoded"):
        decode(Location(str(tmp_path / "x.gif")))


def test_a_line_of_pixels_does_not_become_gigabytes(tmp_path: Path) -> None:
    for shape in ((3, 1, 60_000), (3, 60_000, 1)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert fit(torch.zeros(shape, dtype=torch.uint8), ImageReadingConfig()).shape == (3, 224, 224)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_pipes_and_devices_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(tmp_path / "socket.png"))
        for name, kind in (("pipe.png", "pipe"), ("folder.png", "folder"), ("socket.png", "socket"), ("/dev/zero", "device")):
            for size in (None, 10):
                location = Location(str(tmp_path / name), 0, size)
                with pytest.raises(OSError, match=f"is no file, but a {kind}"):
                    decode(location)
                with pytest.raises(OSError, match=f"is no file, but a {kind}"):
                    read_recording(Recording(location, 1000), AudioReadingConfig())


def test_a_manifest_that_is_a_pipe_is_refused_and_one_that_shrinks_is_not_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURES["png"])
    manifest = tmp_path / "train.tsv"
    manifest.write_text(".\n" + "x.png\n" * 5000)
    split = ImageManifest.open(ManifestConfig(path=tmp_path)).split("train")
    manifest.open("r+").truncate(0)
    assert split.location(4999).path == str(tmp_path / "x.png")  # mapped, this would end the process

    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(ManifestError, match=r"train.tsv cannot be read: .* is no file, but a pipe"):
        ImageManifest.open(ManifestConfig(path=tmp_path))
