"""What comes from outside executes nothing, reaches nothing it was not given, and takes no memory it only claims to need."""

from __future__ import annotations

import ast
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fairseq2.logging import log
from PIL import Image
from processes import Ranks

from d2v_plugin.cli.redaction import HIDDEN, SecretFilter, hide_in
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.data import headers
from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import ImageManifest, ManifestConfig
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.image import decode
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.weights.directory import read_weights

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "manifests" / "digits"


def find_dangers(tree: ast.AST) -> Iterator[str]:
    """What executes, or may execute, what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name in ("pickle", "marshal", "shelve", "dill", "joblib"))
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if function in ("eval", "exec", "compile", "os.system", "yaml.load", "yaml.unsafe_load", "np.memmap.load"):
            yield function
        if function == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only"
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
            yield f"{function}: {keywords}"
        if keywords.get("restrict", "True") != "True":
            yield f"{function}: restrict={keywords['restrict']}"


@pytest.mark.parametrize(
    "line",
    [
        *("eval(x)", "exec(x)", "import pickle", "from pickle import loads", "yaml.load(f)"),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)"),
        *("subprocess.run(x, shell=True)", "load(f, restrict=False)"),
    ],
)
def test_the_search_for_dangers_finds_them(line: str) -> None:
    assert list(find_dangers(ast.parse(line)))


def test_nothing_in_this_package_executes_what_it_reads() -> None:
    files = [path for folder in ("d2v_plugin", "manifests", "tools") for path in (ROOT / folder).rglob("*.py")]
    dangers = {path.name: found for path in files if (found := list(find_dangers(ast.parse(path.read_text()))))}

    # Files of the user's own are run on request: `--extension FILE.py` goes through Python's import system.
    assert len(files) > 50 and dangers == {}


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../../outside.png", "link/../../outside.png", "a\0b.png"])
def test_a_manifest_does_not_reach_outside_of_its_root(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (tmp_path / "outside.png").touch()
    (root / "train.tsv").write_text(f".\n{name}\n")

    with pytest.raises(ManifestError, match=r"train.tsv:2: .* lies outside of the root"):
        ImageManifest.open(ManifestConfig(path=root))


def test_symbolic_links_are_followed_but_not_out_of_their_place(tmp_path: Path) -> None:
    """Whoever puts a link below the root means it; `..` behind it is the manifest's."""
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    root.mkdir()
    (root / "link").symlink_to(elsewhere / "more")
    for path in (elsewhere / "more" / "x.png", elsewhere / "outside.png", root / "outside.png"):
        path.touch()
    (root / "train.tsv").write_text(".\nlink/x.png\n")
    assert len(ImageManifest.open(ManifestConfig(path=root)).split("train")) == 1

    (root / "train.tsv").write_text(".\nlink/../outside.png\n")
    with pytest.raises(ManifestError, match=r"train.tsv:2: .* lies outside of the root"):
        ImageManifest.open(ManifestConfig(path=root))


def make_png(width: int, height: int) -> bytes:
    """A valid file of black pixels, a thousand times smaller than what it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(9)
    row = b"\0" + bytes(-(-width // 8))
    content = b"".join(rows.compress(row * 100) for _ in range(-(-height // 100))) + rows.flush()

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def encode(kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (37, 23)).save(file, kind, **settings)

    return file.getvalue()


PICTURES = {
    "png": encode("PNG"),
    "jpeg": encode("JPEG"),
    "progressive jpeg": encode("JPEG", progressive=True, exif=b"Exif\0\0" + bytes(200)),
    "gif": encode("GIF"),
    "webp": encode("WEBP"),
    "lossless webp": encode("WEBP", lossless=True),
    "extended webp": encode("WEBP", lossless=True, exif=b"Exif\0\0" + bytes(20)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_size_of_a_picture_is_known_before_it_is_decoded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture"
    path.write_bytes(PICTURES[kind])
    monkeypatch.setattr(headers, "MAX_PIXELS", 37 * 23)
    assert decode(Location(str(path))).shape == (3, 23, 37)

    monkeypatch.setattr(headers, "MAX_PIXELS", 37 * 23 - 1)
    with pytest.raises(SampleError, match="claims 37 x 23 pixels"):
        decode(Location(str(path)))
    monkeypatch.undo()
    for end in range(1, 40):  # no header, or half of one
        with suppress(SampleError):
            headers.check_picture(PICTURES[kind][:end])


def test_a_picture_bomb_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(make_png(60_000, 60_000))
    assert (tmp_path / "bomb.png").stat().st_size < 1_000_000

    with pytest.raises(SampleError, match="claims 60,000 x 60,000 pixels; at most 100,000,000 are decoded"):
        decode(Location(str(tmp_path / "bomb.png")))


def test_a_recording_that_claims_four_gigabytes_is_a_bad_sample(tmp_path: Path) -> None:
    path, frames = tmp_path / "bomb.flac", (1 << 36) - 1
    soundfile.write(path, np.zeros(1000, dtype=np.int16), 16_000, format="FLAC")
    data = bytearray(path.read_bytes())
    # The number of samples: the last 36 bits of bytes 18 to 25.
    data[18:26] = ((int.from_bytes(data[18:26], "big") >> 36 << 36) | frames).to_bytes(8, "big")
    path.write_bytes(data)

    with pytest.raises(SampleError, match=r"68,719,476,735 samples in 1 channel\(s\); at most 268,435,456"):
        read_recording(Recording(Location(str(path)), frames), AudioReadingConfig())

    wav = tmp_path / "bomb.wav"
    soundfile.write(wav, np.zeros(1000, dtype=np.int16), 16_000)
    data = bytearray(wav.read_bytes())
    data[4:8] = data[40:44] = (0xFFFFFFF0).to_bytes(4, "little")
    wav.write_bytes(data)
    with pytest.raises(SampleError, match=r"samples"):
        read_recording(Recording(Location(str(wav)), 0x7FFFFFF8), AudioReadingConfig())


def test_a_byte_range_is_not_believed_beyond_its_file(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(bytes(100))

    with pytest.raises(OSError, match="has 10,000,000 bytes, but the file ends after 40"):
        read_bytes(Location(str(path), 60, 10**7))
    with path.open("r+b") as file:
        file.truncate(1 << 32)  # takes no room
    with pytest.raises(OSError, match="more than the 1,073,741,824 that are read"):
        read_bytes(Location(str(path), 0, 10**17))


@pytest.mark.parametrize("claim", [1 << 40, (1 << 64) - 1])
def test_a_safetensors_header_is_not_believed_beyond_its_file(claim: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(claim.to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(path)

    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_weights(path)


SECRETS = {
    "HF_TOKEN": "hf_abcdefghijkl",
    "WANDB_API_KEY": "0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "DB_PASSWORD": "pa55",
    "GOOGLE_APPLICATION_CREDENTIALS": "/secret/place.json",
    "http_proxy": "http://someone:s3cr3t_pw@proxy:3128/",
}


def test_secrets_of_the_environment_reach_neither_logs_nor_checkpoints(tiny_recipe: Path, tmp_path: Path) -> None:
    out, environment = tmp_path / "out", {**SECRETS, "NOT_SPECIAL": "shown_as_it_is"}
    ranks = Ranks(["recipe", "train", "--config-file", tiny_recipe, out], tmp_path / "output", size=2, environment=environment)

    assert ranks.wait() == [0, 0], ranks.output()[-3000:]
    files = [path for folder in (out, tmp_path / "output") for path in folder.rglob("*") if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    assert any(b"NOT_SPECIAL=shown_as_it_is" in content for content in contents.values())
    for secret in [*SECRETS.values(), "s3cr3t_pw", "DB_PASSWORD=pa55"]:
        if secret != "pa55":  # too short to be looked for without its name
            assert [path for path, content in contents.items() if secret.encode() in content] == []


def test_secrets_do_not_reach_the_log_by_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    handler = logging.StreamHandler(stream := io.StringIO())
    log.logger.addHandler(handler)
    log.logger.addFilter(secrets := SecretFilter())
    try:
        log.warning("Fetching {} with {}", "https://me:word@host/x", "hf_abcdefghijkl")
        try:
            raise ValueError("hf_abcdefghijkl is not valid")
        except ValueError:
            log.exception("It failed.")
    finally:
        log.logger.removeFilter(secrets)
        log.logger.removeHandler(handler)
    records = stream.getvalue().splitlines()

    assert f"Fetching https://{HIDDEN}@host/x with {HIDDEN}" in records
    assert f"ValueError: {HIDDEN} is not valid" in records and "abcdef" not in stream.getvalue()


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TOKENIZERS_PARALLELISM": "false-but-long", "PATH": "/usr/bin:/bin", "USE_AUTH": "1", "API_KEY": ""}

    assert hide_in("false-but-long /usr/bin:/bin 1 USE_AUTH=1", environment) == f"false-but-long /usr/bin:/bin 1 {HIDDEN}"
