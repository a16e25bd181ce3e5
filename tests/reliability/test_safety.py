"""What comes from outside executes nothing, reaches nothing it was not given, and takes no memory it only claims to need."""

from __future__ import annotations

import ast
import io
import logging
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from processes import Ranks

from d2v_plugin.cli.redaction import hide_secrets
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.secrets import HIDDEN, describe_environment, hide_in, hide_in_data
from d2v_plugin.data import headers
from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.dataset import ImageManifest, ManifestConfig
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.image_decoding import decode
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


# What a variable is called, its value, and the part of it that must not be seen.
SECRETS = {
    "HF_TOKEN": ("hf_abcdefghijkl", "abcdefghijkl"),
    "WANDB_API_KEY": ("0123456789abcdef", "0123456789abcdef"),
    "DB_PASSWORD": ("pa55", "DB_PASSWORD=pa55"),
    "GOOGLE_APPLICATION_CREDENTIALS": ("/secret/place.json", "place.json"),
    "http_proxy": ("http://someone:s3cr3t_pw@proxy:3128/", "s3cr3t_pw"),
    "GH_PAT": ("plain-words-of-a-token", "plain-words"),
    "MYSQL_PWD": ("hunter2hunter2", "hunter2"),
    "SLACK_WEBHOOK": ("https://hooks.slack.com/services/T0/B0/xyzzy", "xyzzy"),
    "AZURE_STORAGE_CONNECTION_STRING": ("AccountName=me;AccountKey=bm90aGluZw==", "bm90aGluZw"),
    "REMOTE": ("https://onlyatoken@git.example.org/x", "onlyatoken"),
    "STORE": ("https://store.example.org/c?sv=1&sig=c2lnbmVk", "c2lnbmVk"),
    "SESSION": ("eyJhbGciOiJub25l.eyJzdWIiOiJtZSJ9.c2ln", "eyJzdWIiOiJtZSJ9"),
    "DATABASE_URL": ("postgres://me:p@ss/w0rd@host/db", "w0rd"),
    "A_NAME_THAT_SAYS_NOTHING": ("correct-horse-battery", "battery"),
}


def test_secrets_reach_nothing_that_a_run_writes(tiny_recipe: Path, tmp_path: Path) -> None:
    environment = {name: value for name, (value, _) in SECRETS.items()} | {"OMP_DYNAMIC": "FALSE"}
    out, words = tmp_path / "out", ["recipe", "train", "--config-file", tiny_recipe, tmp_path / "out"]
    login = "common.assets.extra_paths=['https://bob:open-sesame@host/x', '/data?X-Amz-Signature=abra-cadabra']"
    ranks = Ranks([*words, "--config", login], tmp_path / "output", size=2, environment=environment)

    assert ranks.wait() == [0, 0], ranks.output()[-3000:]
    files = [path for folder in (out, tmp_path / "output") for path in folder.rglob("*") if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    assert any(b"OMP_DYNAMIC=FALSE" in content and b"others are not shown" in content for content in contents.values())
    assert b"https:/***@host/x" in contents[out / "config.yaml"]
    for secret in [*(secret for _, secret in SECRETS.values()), "open-sesame", "abra-cadabra", "A_NAME_THAT"]:
        assert [path for path, content in contents.items() if secret.encode() in content] == [], secret


def test_any_library_logs_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-without-a-form")
    factory, hook, logger = logging.getLogRecordFactory(), sys.excepthook, logging.getLogger("some.library")
    logger.addHandler(handler := logging.StreamHandler(stream := io.StringIO()))
    hide_secrets()
    try:
        logger.warning("Fetching %s with %s", "https://me:word@host/x", "a-secret-without-a-form")
        try:
            raise ValueError("a-secret-without-a-form is not valid")
        except ValueError:
            logger.exception("It failed.")
    finally:
        logging.setLogRecordFactory(factory)
        sys.excepthook = hook
        logger.removeHandler(handler)
    records = stream.getvalue().splitlines()

    assert f"Fetching https://{HIDDEN}@host/x with {HIDDEN}" in records
    assert f"ValueError: {HIDDEN} is not valid" in records and "without-a-form" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://a.example/c?sv=1&sig=abc%2Fd&x=2 ok", "GET https://a.example/c?sv=1&sig=***&x=2 ok"),
        ("https://a.example/?X-Amz-Signature=0f0f&X-Amz-Date=1", "https://a.example/?X-Amz-Signature=***&X-Amz-Date=1"),
        ("s3://key:secret@bucket/a, then b@c", "s3://***@bucket/a, then b@c"),
        ("postgres://u:p@ss/word@host/db", "postgres://***@host/db"),
        ("AccountName=me;AccountKey=c2VjcmV0==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("token eyJhbGci.eyJzdWIi.c2ln expired", "token *** expired"),
        ("ghp_0123456789 and github_pat_0123456789", "*** and ***"),
        ("password=hunter2 mask_token=True num_tokens=3", "password=*** mask_token=True num_tokens=3"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n", "***\n"),
        ("criterion.config.targets.num_layers=2 at https://arxiv.org/abs/2212.07525", None),
        ("GELU(approximate='none') (key): Linear(in_features=32, bias=True)", None),
    ],
)
def test_secrets_are_known_by_their_form(text: str, shown: str | None) -> None:
    assert hide_in(text, {}) == (text if shown is None else shown)
    assert hide_in_data({"a": [text, 1, None]}) == {"a": [hide_in(text), 1, None]}


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TOKENIZERS_PARALLELISM": "false-but-long", "PWD": "/usr/bin", "USE_AUTH": "1", "API_KEY": ""}

    assert hide_in("false-but-long /usr/bin 1 USE_AUTH=1", environment) == f"false-but-long /usr/bin 1 {HIDDEN}"


def test_of_the_environment_only_what_says_how_a_run_computes_is_shown() -> None:
    environment = {"OMP_NUM_THREADS": "1", "SLURM_JWT": "x.y", "NCCL_DEBUG": "INFO", "RANK": "0", "HOME_PHONE": "1", "PWD": "/"}

    assert describe_environment(environment) == "NCCL_DEBUG=INFO, OMP_NUM_THREADS=1, RANK=0 (3 others are not shown)"
