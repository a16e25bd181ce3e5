"""Sentences become token ids as in fairseq's fine-tuning, and labels become targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fairseq2.recipe.error import RecipeError, SplitNotKnownError

from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.sentences import Sentences, SentencesConfig, join
from d2v_plugin.data.tables import TableLayout

BOOKS = Path(__file__).parents[2] / "manifests" / "books"


def write(path: Path, *rows: tuple[str, ...]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.fixture
def pairs(tmp_path: Path) -> SentencesConfig:
    write(tmp_path / "train.tsv", ("a", "b", "label"), ("A hacker.", "A virtue.", "10"), ("A bug.", "A vice.", "9"))
    write(tmp_path / "valid.tsv", ("a", "b", "label"), ("A bug.", "A hacker.", "9"))
    write(tmp_path / "test.tsv", ("b", "a"), ("A vice.", "A virtue."))

    return SentencesConfig(path=tmp_path, vocabulary=BOOKS, layout=TableLayout(texts=["a", "b"]))


def test_a_pair_is_joined_as_in_fairseq(pairs: SentencesConfig) -> None:
    dataset = Sentences.open(pairs)
    first, second = (tokens.tolist() for tokens in dataset.tokenizer.encode_lines(["A hacker.", "A virtue."]))

    rows = dataset.encode("train", 512)

    # `<s>` comes with padding.
    assert rows[0].tolist() == [*first, 2, 2, *second, 2]
    assert rows.lengths[0] == len(first) + len(second) + 4 and rows.num_cut == 0


def test_a_single_sentence_ends_with_one_separator(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", ("x", "1", "", "A hacker."), ("x", "0", "*", "A virtue."))
    dataset = Sentences.open(SentencesConfig(path=tmp_path, vocabulary=BOOKS, glue="cola"))

    (expected,) = dataset.tokenizer.encode_lines(["A hacker."])
    assert dataset.encode("train", 512)[0].tolist() == [*expected.tolist(), 2]
    assert dataset.encode("train", 4).lengths.tolist() == [4, 4] and dataset.encode("train", 4).num_cut == 2


@pytest.mark.parametrize(("first", "second"), [(3, 30), (30, 3), (30, 40), (8, 9), (5, 3)])
def test_the_longer_sentence_of_a_pair_is_cut_first(first: int, second: int) -> None:
    a, b = np.full(first, 10), np.full(second, 20)

    joined = join([a, b], 16)

    kept = int((joined == 10).sum()), int((joined == 20).sum())
    assert 1 + len(joined) == min(16, first + second + 4)
    # 12 tokens are left: the shorter one is kept if it fits in half of that.
    assert kept == {(3, 30): (3, 9), (30, 3): (9, 3), (30, 40): (6, 6), (8, 9): (6, 6), (5, 3): (5, 3)}[first, second]
    assert join([a, b], 16)[kept[0] : kept[0] + 2].tolist() == [2, 2] and joined[-1] == 2


def test_classes_are_those_of_the_training_split(pairs: SentencesConfig) -> None:
    dataset = Sentences.open(pairs)

    assert dataset.class_names == ["9", "10"]  # in the order of numbers
    targets = dataset.read_targets("train", LabelSet(dataset.class_names))
    assert targets is not None and targets.tolist() == [1, 0]
    assert dataset.read_targets("test", LabelSet(dataset.class_names)) is None


def test_labels_that_the_model_does_not_know_are_told_with_their_rows(pairs: SentencesConfig) -> None:
    dataset = Sentences.open(pairs)
    with pytest.raises(ManifestError, match=r"train\.tsv:2: label `10` is none of: 9, 8"):
        dataset.read_targets("train", LabelSet(["9", "8"]))

    write(pairs.path / "valid.tsv", ("a", "b", "label"), ("A bug.", "A hacker.", "8"), ("A bug.", "A hacker.", ""))
    with pytest.raises(ManifestError) as caught:
        Sentences.open(pairs)
    assert "valid.tsv:2: label `8` is none of: 9, 10" in str(caught.value)
    assert "valid.tsv:3: label `` is none of: 9, 10" in str(caught.value)


def test_numbers_are_scaled(pairs: SentencesConfig) -> None:
    pairs.layout = TableLayout(texts=["a", "b"], numbers=True, divisor=5.0)

    targets = Sentences.open(pairs).read_targets("train", None)

    assert targets is not None and targets.tolist() == pytest.approx([2.0, 1.8])


def test_wrong_settings_tell_what_is_right(pairs: SentencesConfig) -> None:
    with pytest.raises(SplitNotKnownError):
        Sentences.open(pairs).split("dev")
    pairs.glue = "rte"
    with pytest.raises(RecipeError, match=r"Either .*glue. or .*layout. must be set"):
        Sentences.open(pairs)
    pairs.layout, pairs.glue = None, "sst2"
    with pytest.raises(RecipeError, match=r"`sst2` is not a known GLUE task. Did you mean `sst_2`\? Known: cola, mnli"):
        Sentences.open(pairs)
