from __future__ import annotations

from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.preparation.transcripts import train_pieces
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.transcripts import (
    BLANK,
    Characters,
    Pieces,
    Spelling,
    Transcripts,
    find_lines,
    join_symbols,
    read_transcripts,
)

WORDS = Path(__file__).parents[2] / "manifests" / "words"


def write_manifest(folder: Path, split: str, transcripts: list[str] | None, num_rows: int = 0) -> None:
    rows = [f"{row}.wav\t16000" + (f"\t{text}" if transcripts else "") for row, text in enumerate(transcripts or [""] * num_rows)]
    (folder / f"{split}.tsv").write_text("\n".join([".", *rows]) + "\n", encoding="utf-8")


def read(folder: Path, spelling: Spelling, labels: LabelSet | None = None) -> dict[str, Transcripts]:
    lines = find_lines(AudioManifest.open(ManifestConfig(path=folder, check_files=False)))

    return read_transcripts(lines, spelling, labels or spelling.find_labels(lines.values()))


def test_fairseqs_letter_labels_and_plain_transcripts_are_the_same(tmp_path: Path) -> None:
    """As published: TSV, ``.ltr`` and ``dict.ltr.txt`` beside it."""
    plain, letters = tmp_path / "plain", tmp_path / "letters"
    for folder in (plain, letters):
        folder.mkdir()
        (folder / "dict.ltr.txt").write_text("| 94802\nE 51860\nT 38431\nO 2\nN 1\n")
    write_manifest(plain, "train", ["ONE  TEN", "NOTE"])
    write_manifest(letters, "train", None, num_rows=2)
    (letters / "train.ltr").write_text("O N E | T E N |\nN O T E |\n")

    first, second = (read(folder, Characters(folder / "dict.ltr.txt"))["train"] for folder in (plain, letters))

    assert [tensor.tolist() for tensor in first.stack([1, 0])] == [tensor.tolist() for tensor in second.stack([1, 0])]
    # The blank is 0, then the dictionary in its own order.
    assert first.stack([1])[0].tolist() == [[5, 4, 3, 2, 1]]
    assert first.stack([0, 1])[1].tolist() == [8, 5]


def test_without_a_dictionary_the_symbols_are_the_characters_of_all_splits(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", ["cab", "a b"])
    write_manifest(tmp_path, "valid", ["daß"])
    lines = find_lines(AudioManifest.open(ManifestConfig(path=tmp_path, check_files=False)))

    assert Characters(None).find_labels(lines.values()).names == [BLANK, "|", "a", "b", "c", "d", "ß"]


def test_symbols_join_to_the_text_that_was_spelled(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", ["zero one", "one two", "two zero", "zero", "one"] * 3)
    spellings: list[Spelling] = [Characters(None), Pieces(train_pieces(tmp_path, 12))]

    assert [join_symbols(spelling.spell(" zero  one two ")) for spelling in spellings] == ["zero one two"] * 2


def test_pieces_of_transcripts_have_the_blank_first_and_no_special_symbols(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", ["zero one", "one two", "two zero"] * 3)
    pieces = Pieces(train_pieces(tmp_path, 12))
    labels = pieces.find_labels([])
    found = read(tmp_path, pieces)["train"]

    assert labels.names[0] == BLANK and len(labels) == 13
    assert not [name for name in labels.names[1:] if name.startswith("<")]
    symbols, lengths = found.stack([0])
    assert join_symbols(labels.names[symbol] for symbol in symbols[0, : lengths[0]]) == "zero one"


def test_more_pieces_than_can_be_learned_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", ["one"])
    with pytest.raises(RecipeError, match="No 500 pieces could be learned"):
        train_pieces(tmp_path, 500)


def test_equal_neighbours_need_a_frame_between_them() -> None:
    dataset = AudioManifest.open(ManifestConfig(path=WORDS))
    lines = find_lines(dataset)
    found = read_transcripts(lines, Characters(None), Characters(None).find_labels(lines.values()))["valid"]
    words = [lines["valid"].text(row) for row in range(120)]

    assert found.num_frames.tolist() == [len(word) + 1 + (word == "three") for word in words]


def test_what_is_wrong_is_listed_for_all_rows_and_splits_at_once(tmp_path: Path) -> None:
    (tmp_path / "dict.ltr.txt").write_text("| 1\na 1\nb 1\n")
    write_manifest(tmp_path, "train", ["ab", "", "a cab"])
    write_manifest(tmp_path, "valid", None, num_rows=3)
    (tmp_path / "valid.ltr").write_text("a b |\na x |\n")
    write_manifest(tmp_path, "unlabelled", None, num_rows=2)

    with pytest.raises(ManifestError) as caught:
        read(tmp_path, Characters(tmp_path / "dict.ltr.txt"))
    message = str(caught.value)

    assert message.startswith("4 bad line(s)")
    assert f"{tmp_path}/train.tsv:3: the transcript is empty" in message
    assert f"{tmp_path}/train.tsv:4: the transcript has symbols outside the vocabulary (3 symbols): c" in message
    assert f"{tmp_path}/valid.ltr:2: the transcript has symbols outside the vocabulary (3 symbols): x" in message
    assert f"{tmp_path}/valid.ltr:3: the transcript is empty" in message


def test_more_letter_labels_than_recordings_are_reported(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", None, num_rows=1)
    (tmp_path / "train.ltr").write_text("a |\nb |\n")
    with pytest.raises(ManifestError, match=r"train\.ltr:2: there are 2 lines, but train\.tsv has 1 recordings"):
        read(tmp_path, Characters(None))


def test_a_dataset_without_transcripts_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", None, num_rows=2)
    with pytest.raises(RecipeError, match=r"No recording in .* has a transcript"):
        read(tmp_path, Characters(None))
