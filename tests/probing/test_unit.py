"""The unit measures the same whatever mode validation runs in, and however ranks share the reading."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import d2v_plugin  # noqa: F401  # isort: skip
import fairseq2.recipe  # noqa: F401  # isort: skip
from fairseq2.datasets import DataReader
from fairseq2.gang import FakeGang, Gangs, create_fake_gangs
from fairseq2.metrics import Mean, MetricBag

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.models.base import EncoderModel, Features, LocalFeatures
from d2v_plugin.probing import collection
from d2v_plugin.probing.attentive import AttentiveProbe, AttentiveProbeConfig
from d2v_plugin.probing.base import Probe, ProbeData, probe_scores
from d2v_plugin.probing.knn import KnnProbe, KnnProbeConfig
from d2v_plugin.probing.linear import LinearProbe, LinearProbeConfig
from d2v_plugin.probing.unit import ProbeBatch, ProbeReader, ProbeUnit

CPU = torch.device("cpu")

PROBES: dict[str, Probe] = {"knn": KnnProbe(KnnProbeConfig()), "linear": LinearProbe(LinearProbeConfig())}


class PatchModel(EncoderModel):
    """Two linear blocks on the columns of an image; dropout betrays a model in training mode."""

    frontend_modules = ()
    prediction_modules = ()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 6, bias=False), nn.Linear(6, 6, bias=False)])
        self.dropout = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(4)
        for block in self.blocks:
            nn.init.normal_(block.weight, generator=generator)

    def extract_local(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        *,
        modality: Modality | None = None,
        lengths: Tensor | None = None,
    ) -> LocalFeatures:
        assert modality is Modality.IMAGE

        return LocalFeatures(inputs.mean(dim=2).transpose(1, 2), padding_mask, modality)

    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        return local

    def encode_whole(self, local: LocalFeatures) -> Features:
        x, layers = local.x, []
        for block in self.blocks:
            x = self.dropout(block(x)).tanh()
            layers.append(x)

        return Features(x, local.padding_mask, layers, None)

    def resolve_modality(self, modality: Modality | None) -> Modality:
        return Modality.IMAGE

    def output_length(self, input_length: int, modality: Modality | None = None) -> int:
        return input_length

    def blocks_of(self, modality: Modality) -> Sequence[nn.Module]:
        return list(self.blocks)


PatchModel.__abstractmethods__ = frozenset()  # nothing else is asked of it


def make_batches(ids: Sequence[int], batch_size: int) -> list[Batch]:
    """Images of four classes, the same for the same id; every row is padded by another number of columns."""

    def make(chunk: Tensor) -> Batch:
        images = [torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(int(i))) + i % 4 for i in chunk]
        padding_mask = torch.arange(5) >= (2 + chunk % 4)[:, None]

        return Batch(Modality.IMAGE, torch.stack(images), chunk, padding_mask, 2, chunk % 4 + 1)

    return [make(chunk) for chunk in torch.tensor(list(ids), dtype=torch.int64).split(batch_size) if len(chunk) > 0]


class ListReader(DataReader[Batch]):
    """Reads prepared batches, one a step; like fairseq2's, it stays at the end until it is reset."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.position = 0

    def __iter__(self) -> ListReader:
        return self

    def __next__(self) -> list[Batch]:
        if self.position == len(self.batches):
            raise StopIteration
        self.position += 1

        return [self.batches[self.position - 1]]

    def reset(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, object]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self.position = int(state_dict["position"])  # type: ignore[call-overload]

    @property
    def num_accumulate(self) -> int:
        return 1


class ThreadGang(FakeGang):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Tensor]) -> None:
        super().__init__(CPU, rank=rank, size=size)
        self.meeting, self.slots = barrier, slots

    def all_gather_to_list(self, output_tensors: list[Tensor], input_tensor: Tensor) -> None:
        self.slots[self.rank] = input_tensor
        self.meeting.wait()
        for output_tensor, slot in zip(output_tensors, self.slots, strict=True):
            assert output_tensor.shape == slot.shape
            output_tensor.copy_(slot)
        self.meeting.wait()


TRAIN_IDS, TEST_IDS = range(60), range(40, 150)


def make_reader(train_ids: Sequence[int] = TRAIN_IDS, test_ids: Sequence[int] = TEST_IDS, size: int = 16) -> ProbeReader:
    return ProbeReader(ListReader(make_batches(train_ids, size)), ListReader(make_batches(test_ids, size)))


def run_unit(unit: ProbeUnit, reader: ProbeReader) -> MetricBag:
    """Do what fairseq2's validator does with a unit, autocast included."""
    with torch.inference_mode():
        bag = MetricBag(CPU)
        unit.prepare_metric_bag(bag)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for batches in reader:
                for batch in batches:
                    batch.to(CPU)
                    unit.process_batch(batch, bag)
            unit.finalize(bag)
        reader.reset()

    return bag


class RecordingProbe(Probe):
    """Remembers exactly what it was given."""

    needs_tokens = True

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def predict(self, train: ProbeData, test: ProbeData) -> Tensor:
        self.seen += [x.flatten().tolist() for x in (train.x, train.y, test.x, *train.tokens, *test.tokens)]

        return torch.zeros(len(test.x), dtype=torch.int64)


def read_scores(bag: MetricBag) -> dict[str, float]:
    return {name: float(bag.get(name, Mean).compute()) for name in ("probe_knn", "probe_linear")}


def test_unit_scores_the_pooled_features_of_both_splits() -> None:
    model = PatchModel().eval()

    scores = read_scores(run_unit(ProbeUnit(model, PROBES, create_fake_gangs(CPU), layers=[0]), make_reader()))

    def extract(ids: Sequence[int]) -> ProbeData:
        (batch,) = make_batches(ids, len(ids))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        lengths = (~batch.padding_mask).sum(dim=1)
        pooled = [x[:length].float().mean(dim=0) for x, length in zip(features.layers[0], lengths, strict=True)]
        return ProbeData(torch.stack(pooled), batch.labels)

    expected = probe_scores(PROBES, {0: (extract(TRAIN_IDS), extract(TEST_IDS))})

    assert scores == pytest.approx(expected, abs=1e-6)
    assert all(0.5 < score < 1.0 for score in scores.values())


def test_unit_probes_the_chosen_layers() -> None:
    def run(**layers: Any) -> dict[str, float]:
        unit = ProbeUnit(PatchModel(), PROBES, create_fake_gangs(CPU), **layers)
        bag = run_unit(unit, make_reader())
        assert unit.scores == pytest.approx({name: float(metric.compute()) for name, metric in bag.metrics.items()})
        return unit.scores

    first, last, both = run(layers=[0]), run(), run(layers="all")

    assert first != last == run(layers=[1])
    for probe in ("probe_knn", "probe_linear"):
        assert both[f"{probe}_layer0"] == first[probe] and both[f"{probe}_layer1"] == last[probe]
        assert both[probe] == max(first[probe], last[probe])

    with pytest.raises(ValueError, match="`layers` must be between -2 and 1, or `all`, but has 2"):
        run(layers=[0, 2])


def test_weighted_layers_are_measured_at_once_with_their_weights() -> None:
    probes = {"linear": PROBES["linear"]}
    unit = ProbeUnit(PatchModel(), probes, create_fake_gangs(CPU), layers="weighted")

    bag = run_unit(unit, make_reader())

    assert list(unit.scores) == ["probe_linear", "probe_linear_layer0_weight", "probe_linear_layer1_weight"]
    assert unit.scores == pytest.approx({name: float(metric.compute()) for name, metric in bag.metrics.items()})
    weights = unit.scores["probe_linear_layer0_weight"], unit.scores["probe_linear_layer1_weight"]
    assert sum(weights) == pytest.approx(1.0, abs=1e-6) and 0.5 < unit.scores["probe_linear"] <= 1.0


def test_the_attentive_probe_learns_from_tokens_in_validation() -> None:
    probes: dict[str, Probe] = {"attentive": AttentiveProbe(AttentiveProbeConfig())}
    unit = ProbeUnit(PatchModel(), probes, create_fake_gangs(CPU), layers="all")

    run_unit(unit, make_reader())

    assert unit.scores["probe_attentive"] > 0.6


@pytest.mark.parametrize("training", [True, False])
def test_unit_extracts_in_evaluation_mode_and_leaves_mode_gradients_and_random_state_alone(training: bool) -> None:
    model = PatchModel().train(training)

    unit, reader, state = ProbeUnit(model, PROBES, create_fake_gangs(CPU)), make_reader(), torch.get_rng_state()

    scores = read_scores(run_unit(unit, reader))

    assert model.training is training and model.dropout.training is training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)

    # Nothing stays behind from one validation to the next either.
    assert read_scores(run_unit(unit, reader)) == scores


def test_probes_see_the_same_however_ranks_share_the_reading() -> None:
    alone = {**PROBES, "recording": RecordingProbe()}

    expected = read_scores(run_unit(ProbeUnit(PatchModel(), alone, create_fake_gangs(CPU), layers="all"), make_reader(size=1)))

    # The first rank reads one training sample and no test sample; the last nothing.
    shares: list[tuple[Sequence[int], Sequence[int]]] = [([59], []), (range(59), range(149, 39, -1)), ([], [])]

    together = {**PROBES, "recording": RecordingProbe()}

    barrier, slots, bags = threading.Barrier(3, timeout=60), [torch.empty(0)] * 3, [MetricBag(CPU)] * 3

    def run(rank: int) -> None:
        gang = ThreadGang(rank, 3, barrier, slots)
        unit = ProbeUnit(PatchModel(), together, Gangs(root=gang, dp=gang, rdp=gang, sdp=gang, tp=gang, pp=gang), layers="all")
        bags[rank] = run_unit(unit, make_reader(*shares[rank], size=1))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert together["recording"].seen == alone["recording"].seen
    assert read_scores(bags[0]) == expected

    # The other ranks have the metrics, and nothing to say.
    for bag in bags[1:]:
        assert all(bag.get(name, Mean).weights == 0 for name in expected)


def test_an_interrupted_validation_leaves_nothing_to_the_next() -> None:
    unit = ProbeUnit(PatchModel(), PROBES, create_fake_gangs(CPU))

    expected = read_scores(run_unit(unit, make_reader()))

    (batch,) = make_batches(range(500, 600), 100)
    batch.labels = torch.zeros_like(batch.ids)
    unit.process_batch(ProbeBatch(batch, is_train=True), MetricBag(CPU))

    assert read_scores(run_unit(unit, make_reader())) == expected


def test_a_split_without_labels_is_refused() -> None:
    reader = make_reader()
    reader._readers["test"].batches[0].labels = None  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match="need labels"):
        run_unit(ProbeUnit(PatchModel(), PROBES, create_fake_gangs(CPU)), reader)


def test_reader_reads_one_split_after_the_other_and_starts_over_on_reset() -> None:
    reader = make_reader(range(5), range(7, 14), size=3)

    def read() -> list[tuple[bool, list[int]]]:
        return [(batch.is_train, batch.batch.ids.tolist()) for batches in reader for batch in batches]

    expected = [(True, [0, 1, 2]), (True, [3, 4]), (False, [7, 8, 9]), (False, [10, 11, 12]), (False, [13])]

    assert read() == expected
    assert read() == []

    reader.reset()
    assert read() == expected

    reader.reset()
    for _ in range(3):
        next(reader)
    other = make_reader(range(5), range(7, 14), size=3)
    other.load_state_dict(reader.state_dict())
    assert next(other)[0].batch.ids.tolist() == [10, 11, 12]


def test_an_empty_share_of_a_rank_does_not_end_the_split() -> None:
    """fairseq2's reader gives a rank that is through an empty list until the others are through too."""

    class WithEmptyLists(ListReader):
        def __next__(self) -> list[Batch]:
            batches = super().__next__()
            return batches if len(batches[0].ids) > 1 else []

    train, test = (WithEmptyLists(make_batches(ids, 2)) for ids in (range(5), range(4)))

    assert [len(batches) for batches in ProbeReader(train, test)] == [1, 1, 0, 1, 1]


def test_batches_move_to_the_device() -> None:
    (batch,) = make_batches(range(4), 4)

    ProbeBatch(batch, is_train=True).to(torch.device("meta"))

    assert batch.inputs.is_meta and batch.labels is not None and batch.labels.is_meta


def test_samples_whose_features_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NamedReader(ListReader):
        def name_sample(self, modality: Modality, sample: int) -> str:
            return f"split.tsv:{sample}: picture"

    warnings: list[str] = []
    monkeypatch.setattr(collection.log, "warning", lambda message, *values: warnings.append(message.format(*values)))
    train, test = make_batches(range(40), 7), make_batches(range(40, 60), 7)
    train[1].inputs[2] = torch.nan
    unit = ProbeUnit(PatchModel(), PROBES, create_fake_gangs(CPU))
    bag = MetricBag(CPU)
    unit.prepare_metric_bag(bag)
    for batches in ProbeReader(NamedReader(train), NamedReader(test)):
        for batch in batches:
            unit.process_batch(batch, bag)
    unit.finalize(bag)

    assert warnings == ["The features of 1 of 60 samples are not finite; probes leave them out: split.tsv:9: picture."]
    assert 0.0 < unit.scores["probe_knn"] <= 1.0
