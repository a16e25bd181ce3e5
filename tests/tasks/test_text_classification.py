"""Sentences and pairs become batches; what does not suit the model is told before training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.sentences import Sentences, SentencesConfig
from d2v_plugin.data.tables import TableLayout
from d2v_plugin.models.data2vec1.archs import text_tiny as text_tiny1
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.archs import text_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask

MANIFESTS = Path(__file__).parents[2] / "manifests"
GANGS = create_fake_gangs(torch.device("cpu"))
PAIRS = SentencesConfig(
    path=MANIFESTS / "book_pairs",
    vocabulary=MANIFESTS / "books",
    layout=TableLayout(texts=["first", "second"], label="book"),
)


@pytest.fixture(scope="module")
def pairs() -> Sentences:
    return Sentences.open(PAIRS)


def create_task(**settings: object) -> TextClassificationTask:
    return TextClassificationTask(TextClassificationConfig(**{"max_length": 128, **settings}))  # type: ignore[arg-type]


def read_all(task: TextClassificationTask, dataset: Sentences, split: str) -> list[Batch]:
    reader = task.open(dataset, report=None).create_labelled_reader(GANGS, split)

    return [batch for batches in reader for batch in batches]


def test_a_labelled_split_is_read_once_with_its_labels(pairs: Sentences) -> None:
    batches = read_all(create_task(), pairs, "valid")

    assert sorted(row for batch in batches for row in batch.ids.tolist()) == list(range(300))
    names = pairs.split("valid").labels
    assert names is not None
    for batch in batches:
        assert batch.labels is not None
        assert [["devil", "jargon"][label] for label in batch.labels.tolist()] == [names[row] for row in batch.ids.tolist()]
        assert batch.inputs[:, 0].eq(0).all() and batch.inputs.size(1) <= 128


def test_training_batches_hold_samples_of_similar_length(pairs: Sentences) -> None:
    reader = create_task(batch_size=8, max_batch_size=4).open(pairs, report=None).create_train_reader(GANGS, seed=1)

    padded, count = 0, 0
    for _ in range(20):
        batches = next(reader)
        assert [batch.num_examples for batch in batches] == [4, 4]
        for batch in batches:
            padded += 0 if batch.padding_mask is None else int(batch.padding_mask.sum())
            count += batch.inputs.numel()
    assert padded < 0.03 * count


def test_long_samples_come_in_smaller_batches_if_tokens_are_limited(pairs: Sentences) -> None:
    reader = create_task(batch_size=8, max_num_tokens=700).open(pairs, report=None).create_train_reader(GANGS, seed=1)

    batches = [next(reader)[0] for _ in range(60)]
    assert max(batch.inputs.numel() for batch in batches) <= 700
    sizes = {batch.num_examples for batch in batches}
    assert max(sizes) == 8 and len(sizes) > 1
    with pytest.raises(ValueError, match="`max_num_tokens` must be at least `max_length`"):
        create_task(max_num_tokens=100).open(pairs, report=None)


@pytest.mark.parametrize("family", ["data2vec", "data2vec1"])
def test_other_samples_of_a_batch_do_not_change_features(pairs: Sentences, family: str) -> None:
    torch.manual_seed(1)
    model = (create_model(text_tiny()) if family == "data2vec" else create_data2vec1(text_tiny1())).eval()
    alone, together = (
        {
            int(row): model.extract_features(batch.inputs, batch.padding_mask).x[i, 0]
            for batch in read_all(create_task(batch_size=size), pairs, "valid")[-2 * 12 // size :]
            for i, row in enumerate(batch.ids)
        }
        for size in (1, 12)
    )

    shared = alone.keys() & together.keys()
    assert len(shared) >= 12
    for row in shared:
        torch.testing.assert_close(alone[row], together[row], atol=1e-5, rtol=0)


def test_splits_without_labels_give_batches_without_them(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nA hacker.\t1\nA virtue.\t0\n")
    (tmp_path / "test.tsv").write_text("sentence\nA vice.\n")
    dataset = Sentences.open(SentencesConfig(path=tmp_path, vocabulary=MANIFESTS / "books", layout=TableLayout()))

    (batch,) = read_all(create_task(), dataset, "test")

    assert batch.labels is None and batch.num_examples == 1
    with pytest.raises(RecipeError, match="The split `test` has no labels"):
        create_task(split="test").open(dataset, report=None).create_train_reader(GANGS, seed=1)


def test_what_does_not_suit_the_model_is_told(pairs: Sentences) -> None:
    model = Data2VecModel(text_tiny())
    task = create_task().open(pairs, report=None)
    task.check_model(model)

    assert model.config.text is not None
    model.config.text.vocab_size = 50265
    with pytest.raises(RecipeError, match=r"has 2,000 ids, but the model has 50,265\. Set `dataset.config_overrides.vocabulary`"):
        task.check_model(model)
    model.config.text.vocab_size = 2000
    task.config.max_length = 512
    with pytest.raises(RecipeError, match=r"`task\.config\.max_length` is 512, but the model has positions for 128"):
        task.check_model(model)
    model.config.text = None
    with pytest.raises(RecipeError, match="`task` reads text, which the model does not take"):
        task.check_model(model)
