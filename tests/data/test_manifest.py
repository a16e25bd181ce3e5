from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError, SplitNotKnownError

from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig
from d2v_plugin.data.files import Location
from d2v_plugin.data.problems import ManifestError


def write(folder: Path, text: str | bytes, split: str = "train") -> ManifestConfig:
    path = folder / f"{split}.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return ManifestConfig(path=folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "cats").mkdir()
    for name in ("a.png", "cats/b.png", "cats/c d.png"):
        (tmp_path / name).write_bytes(b"12345678")

    return tmp_path


def test_rows_name_files_byte_ranges_and_optional_labels(images: Path) -> None:
    config = write(images, ".\na.png\tone\ncats/b.png:2:3\ncats/c d.png\ttwo words\n")
    split = ImageManifest.open(config).split("train")

    assert [split.location(row) for row in range(len(split))] == [
        Location(f"{images}/a.png"),
        Location(f"{images}/cats/b.png", 2, 3),
        Location(f"{images}/cats/c d.png"),
    ]
    assert [split.text("label", row) for row in range(3)] == ["one", None, "two words"]


def test_fairseq_audio_manifests_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "x.flac").touch()
    split = AudioManifest.open(write(tmp_path, f"{tmp_path}/clips\nx.flac\t32000\n")).split("train")

    assert split.integers("size").tolist() == [32000]
    assert split.location(0) == Location(f"{tmp_path}/clips/x.flac")
    assert split.text("label", 0) is None


def test_declared_columns_come_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "x.flac").touch()
    text = ".\n#columns\tpath\tsize\tstart\tlabel\nx.flac\t100\t7\tyes\nx.flac\t50\t\tno\n"
    split = AudioManifest.open(write(tmp_path, text)).split("train")

    assert split.integers("start").tolist() == [7, -1]
    assert split.integers("rate").tolist() == [-1, -1]
    assert split.text("label", 1) == "no"


def test_carriage_returns_and_a_byte_order_mark_are_ignored(images: Path) -> None:
    split = ImageManifest.open(write(images, b"\xef\xbb\xbf.\r\na.png\tone\r\ncats/b.png\r\n")).split("train")

    assert [split.text("label", row) for row in range(2)] == ["one", None]
    assert split.location(1).path.endswith("b.png")


def test_paths_may_be_absolute_below_any_of_several_roots(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "z.png").touch()
    split = ImageManifest.open(write(images, f".\t{other}\na.png\n{other}/z.png\n")).split("train")

    assert split.location(1).path == f"{other}/z.png"


def test_a_colon_in_a_file_name_is_no_byte_range(tmp_path: Path) -> None:
    (tmp_path / "12:30:x.png").touch()
    split = ImageManifest.open(write(tmp_path, ".\n12:30:x.png\n")).split("train")

    assert split.location(0) == Location(f"{tmp_path}/12:30:x.png")


def test_all_bad_lines_are_reported_at_once_with_file_and_line(images: Path) -> None:
    write(images, ".\na.png\tone\textra\n../outside.png\n/etc/passwd\nmissing.png\na.png:4:5\n\na.png:1:0\ngone.zip:0:4\n")
    config = write(images, ".\ncats/../../../x.png\na.png\0\na.png\n" + "x" * 1_000_000 + "\n", "valid")
    with pytest.raises(ManifestError) as caught:
        ImageManifest.open(config)
    lines = str(caught.value).splitlines()[1:]
    found = [line.removeprefix(f"{images}/") for line in lines]

    expected = {
        "train.tsv:2: 3 column(s), expected path, label",
        "train.tsv:3: '../outside.png' lies outside",
        "train.tsv:4: '/etc/passwd' lies outside",
        "train.tsv:5: `",
        "train.tsv:6: `",
        "train.tsv:7: the path is empty",
        "train.tsv:8: the byte range is empty",
        "train.tsv:9: `",
        "valid.tsv:2: 'cats/../../../x.png' lies outside",
        "valid.tsv:3: 'a.png\\x00'",
        "valid.tsv:5: the path is longer",
    }
    assert len(found) == len(expected)
    for start in expected:
        assert any(line.startswith(start) for line in found), (start, found)
    assert "does not exist" in found[3]
    assert "beyond the end of the file (8 bytes)" in found[4]


def test_numbers_must_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    config = write(tmp_path, ".\nx.wav\t12\nx.wav\ttwelve\nx.wav\nx.wav\t-3\nx.wav\t99999999999999999999\n")
    with pytest.raises(ManifestError) as caught:
        AudioManifest.open(config)

    assert [line.split(":")[1] for line in str(caught.value).splitlines()[1:]] == ["3", "4", "5", "6"]


def test_labels_must_be_among_the_declared_classes(images: Path) -> None:
    with pytest.raises(ManifestError, match=r"train\.tsv:4: label `dog` is not declared"):
        ImageManifest.open(write(images, ".\n#classes\tcat\na.png\tcat\ncats/b.png\tdog\n"))


@pytest.mark.parametrize("text", ["", ".\n", ".\n#classes\ta\tb\n"])
def test_an_empty_manifest_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ManifestError, match=r"train\.tsv:"):
        ImageManifest.open(write(tmp_path, text))


def test_a_folder_without_manifests_and_an_unknown_split_are_named(tmp_path: Path, images: Path) -> None:
    with pytest.raises(RecipeError, match="holds no manifest"):
        ImageManifest.open(ManifestConfig(path=tmp_path / "nothing"))
    with pytest.raises(SplitNotKnownError):
        ImageManifest.open(write(images, ".\na.png\n")).split("test")


def test_classes_are_the_labels_of_all_splits_in_order(images: Path) -> None:
    write(images, ".\na.png\t10\ncats/b.png\t9\n")
    dataset = ImageManifest.open(write(images, ".\na.png\t2\n", "valid"))

    assert dataset.class_names == ["2", "9", "10"]
    assert dataset.read_labels("train").tolist() == [2, 1]


def test_a_split_read_with_labels_must_have_them(images: Path) -> None:
    dataset = ImageManifest.open(write(images, ".\na.png\tx\ncats/b.png\n"))
    with pytest.raises(RecipeError, match=r"1 samples without a label \(the first on line 3\)"):
        dataset.read_labels("train")


def test_names_that_are_no_utf8_are_read_and_reported(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    (tmp_path / name.decode("utf-8", errors="surrogateescape")).touch()
    split = ImageManifest.open(write(tmp_path, b".\n" + name + b"\tcaf\xc3\xa9\n")).split("train")
    assert Path(split.location(0).path).exists()

    with pytest.raises(ManifestError, match="does not exist") as caught:
        ImageManifest.open(write(tmp_path, b".\nx" + name + b"\tcat\n"))
    str(caught.value).encode()


def test_a_root_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"train\.tsv:1: the root has a NUL"):
        ImageManifest.open(write(tmp_path, b"a\0b\na.png\n"))


def test_labels_and_classes_that_are_no_utf8_are_refused_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ManifestError, match=r"(?s)train.tsv:2: a class is no UTF-8.*train.tsv:3: a field is no UTF-8"):
        ImageManifest.open(write(tmp_path, b".\n#classes\tcaf\xe9\na.png\tcaf\xe9\n"))


OPEN_AND_MEASURE = """
import resource, sys, time
from pathlib import Path
from fsspec.implementations.memory import MemoryFileSystem
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
MemoryFileSystem.info = lambda self, path, **_: {"name": path, "size": 10**9, "type": "file"}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[1:]:
    before, start = peak(), time.process_time()
    split = AudioManifest.open(ManifestConfig(path=Path(folder))).split("train")
    print(time.process_time() - start, (peak() - before) / 1024, len(split))
"""


def test_a_million_rows_open_in_two_seconds_and_500_megabytes(tmp_path: Path) -> None:
    with (tmp_path / "train.tsv").open("w") as file:
        file.write(".\n#columns\tpath\tsize\tlabel\tmean\tvariance\n")
        file.writelines(f"train-{row // 10_000:05}.zip:{row % 10_000 * 100_000}:{90_000 + row % 999}\t{160_000 + row % 999}\tword"
                        "\t-1.23456789e-05\t0.0123456789\n" for row in range(1_000_000))  # fmt: skip
    for shard in range(100):
        with (tmp_path / f"train-{shard:05}.zip").open("wb") as archive:
            archive.truncate(1_000_000_000)
    # The same archives on a store.
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "train.tsv").write_bytes((tmp_path / "train.tsv").read_bytes().replace(b".", b"memory://big", 1))
    command = [sys.executable, "-c", OPEN_AND_MEASURE, str(tmp_path), str(tmp_path / "remote")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    assert len(lines) == 2
    for seconds, megabytes, rows in (map(float, line.split()) for line in lines):
        assert rows == 1_000_000
        assert seconds < 2
        assert megabytes < 500
