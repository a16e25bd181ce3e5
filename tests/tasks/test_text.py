from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs, create_fake_gangs

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.blocks import BreakMode
from d2v_plugin.data.dataset import ManifestConfig, TextManifest
from d2v_plugin.data.text import Tokenizer, TokenStream, Vocabulary
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

BOOKS = Path(__file__).parents[2] / "manifests" / "books"


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gangs = create_fake_gangs(torch.device("cpu"))
    object.__setattr__(gangs, "dp", type(gangs.dp)(torch.device("cpu"), rank=rank, size=size))

    return gangs


def open_dataset() -> TextManifest:
    return TextManifest.open(ManifestConfig(path=BOOKS))


def open_reader(rank: int = 0, size: int = 1, break_mode: BreakMode = "none") -> DataReader[Batch]:
    config = TextPretrainingConfig(batch_size=8, tokens_per_sample=128, break_mode=break_mode)
    assert TextPretrainingTask(config).has_fixed_shapes == (break_mode == "none")

    return TextPretrainingTask(config).open(open_dataset(), report=None).create_train_reader(make_gangs(rank, size), 1)


def test_an_epoch_is_the_whole_text() -> None:
    dataset = open_dataset()
    stream = TokenStream(dataset.split("train"), dataset.vocabulary)
    num_blocks = -(-len(stream) // 127)
    reader = open_reader()
    found: dict[int, list[int]] = {}
    while len(found) < num_blocks:
        (batch,) = next(reader)
        assert batch.inputs.size(1) <= 128 and (batch.inputs[:, 0] == dataset.vocabulary.beginning).all()
        for row, (sample, tokens) in enumerate(zip(batch.ids.tolist(), batch.inputs, strict=True)):
            kept = tokens if batch.padding_mask is None else tokens[~batch.padding_mask[row]]
            found[sample] = kept[1:].tolist()

    assert [token for sample in sorted(found) for token in found[sample]] == stream.read(0, len(stream)).tolist()


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos"])
def test_ranks_share_the_updates_of_one_process_and_resume_on_any_number(mode: BreakMode) -> None:
    alone = open_reader(break_mode=mode)
    [next(alone) for _ in range(7)]
    state = alone.state_dict()
    (expected,) = next(alone)
    ids, tokens = [], []
    for rank in range(2):
        reader = open_reader(rank, 2, mode)
        reader.load_state_dict(state)
        (batch,) = next(reader)
        ids.append(batch.ids)
        tokens += [row[row != 1].tolist() for row in batch.inputs]

    assert torch.equal(torch.cat(ids), expected.ids)
    assert tokens == [row[row != 1].tolist() for row in expected.inputs]


def test_labelled_samples_are_single_entries_with_their_label() -> None:
    dataset = open_dataset()
    tokenizer = Tokenizer(BOOKS / "sentencepiece.model")
    task = TextPretrainingTask(TextPretrainingConfig(batch_size=64, tokens_per_sample=64)).open(dataset, report=None)
    batches = [batch for batches in task.create_labelled_reader(make_gangs(), "valid") for batch in batches]
    labels = [batch.labels for batch in batches if batch.labels is not None]

    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(300))
    assert torch.equal(torch.cat(labels), dataset.read_labels("valid"))
    assert max(batch.inputs.size(1) for batch in batches) == 64
    assert tokenizer.decode(batches[0].inputs[0].tolist()).startswith("A toy which people cry for")


def test_damaged_samples_are_dropped_and_change_no_others(tmp_path: Path) -> None:
    vocabulary = Vocabulary(1000)
    vocabulary.save(tmp_path)
    tokens = np.arange(100, 800, dtype=vocabulary.dtype)
    rows = [f"0.bin:{2 * start}:14\t7\t{start}" for start in range(0, 700, 7)]
    # Neither a row without tokens nor an id that is not in the vocabulary may pass.
    tokens[35] = 1000
    rows[9] = "empty.bin\t0\t63"
    tokens.tofile(tmp_path / "0.bin")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "train.tsv").write_text(".\n" + "\n".join(rows) + "\n")
    task = TextPretrainingTask(TextPretrainingConfig(batch_size=20, tokens_per_sample=8))
    dataset = TextManifest.open(ManifestConfig(path=tmp_path))
    reader = task.open(dataset, report=tmp_path / "bad_samples.tsv").create_labelled_reader(make_gangs(), "train")
    batches = [batch for batches in reader for batch in batches]
    ids, samples = torch.cat([batch.ids for batch in batches]), torch.cat([batch.inputs for batch in batches])
    found = dict(zip(ids.tolist(), samples[:, 1:].tolist(), strict=True))

    assert found == {row: list(range(100 + 7 * row, 107 + 7 * row)) for row in range(100) if row not in (5, 9)}
    reasons = [line.split("\t")[1:] for line in (tmp_path / "bad_samples.tsv").read_text().splitlines()]
    assert [place.split(":")[0] for place, _ in reasons] == ["7", "11"]
    assert "1000 is not in the vocabulary" in reasons[0][1] and "no tokens" in reasons[1][1]


def test_a_sample_must_have_room_for_text() -> None:
    task = TextPretrainingTask(TextPretrainingConfig(tokens_per_sample=1))
    with pytest.raises(ValueError, match="`tokens_per_sample` must be at least 2"):
        task.open(open_dataset(), report=None)


def test_a_shard_that_shrinks_while_it_is_read_gives_bad_samples(tmp_path: Path) -> None:
    """Mapped into memory, it would end the process."""
    shutil.copytree(BOOKS, tmp_path / "books")
    dataset = TextManifest.open(ManifestConfig(path=tmp_path / "books"))
    config = TextPretrainingConfig(batch_size=8, tokens_per_sample=128)
    rows = TextPretrainingTask(config).open(dataset, report=None).open_rows("train")
    (whole,) = rows.read(0, 2, 2)
    path = Path(dataset.split("train").location(0).path)
    path.open("r+").truncate(300)

    (batch,) = rows.read(0, 2, 2)
    assert batch.ids.tolist() == [0] and torch.equal(batch.inputs[0], whole.inputs[whole.ids.tolist().index(0)])
    assert "ends after" in rows.bad_samples.found[1]
