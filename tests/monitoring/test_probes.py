"""Probes agree with scikit-learn, and their unit with a single process, whatever mode validation runs in."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import d2v_plugin  # noqa: F401  # isort: skip
import fairseq2.recipe  # noqa: F401  # isort: skip
from fairseq2.datasets import DataReader
from fairseq2.gang import FakeGang, Gangs, create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter, ValueConverter
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from d2v_plugin.data.batch import Batch, Modality
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.monitoring import probes as probes_module
from d2v_plugin.monitoring.probes import (
    KnnProbe,
    KnnProbeConfig,
    LinearProbe,
    LinearProbeConfig,
    Probe,
    ProbeBatch,
    ProbeReader,
    ProbeSection,
    ProbeUnit,
    create_probes,
    pool_features,
    probe_scores,
    register_probes,
)

CPU = torch.device("cpu")

PROBES: dict[str, Probe] = {"knn": KnnProbe(KnnProbeConfig()), "linear": LinearProbe(LinearProbeConfig())}

Split = tuple[Tensor, Tensor]


def make_splits(seed: int, *, dim: int = 12, sizes: tuple[int, int] = (150, 300)) -> tuple[Split, Split]:
    """Draw overlapping clusters with class labels 2, 3, 5 and 9, and dimensions of very different scales."""
    generator = torch.Generator().manual_seed(seed)

    centres = torch.randn(4, dim, generator=generator)
    scale = 10.0 ** torch.linspace(-3, 3, dim)

    def draw(size: int) -> Split:
        y = torch.randint(4, (size,), generator=generator)
        x = centres[y] + 1.5 * torch.randn(size, dim, generator=generator)

        return x * scale + 7, torch.tensor([2, 3, 5, 9])[y]

    return draw(sizes[0]), draw(sizes[1])


def scale_splits(train_x: Tensor, test_x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(train_x.double().numpy())

    return scaler.transform(train_x.double().numpy()), scaler.transform(test_x.double().numpy())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_agrees_with_scikit_learn(k: int, metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "KNN_CHUNK_SIZE", 70)

    for seed in range(5):
        (train_x, train_y), (test_x, test_y) = make_splits(seed)

        scaled_train, scaled_test = scale_splits(train_x, test_x)
        reference = KNeighborsClassifier(k, metric=metric).fit(scaled_train, train_y.numpy())

        probe = KnnProbe(KnnProbeConfig(k=k, metric=metric))

        assert probe.score(train_x, train_y, test_x, test_y) == reference.score(scaled_test, test_y.numpy())

        # Sample by sample
        classes, targets = train_y.unique(return_inverse=True)
        predicted = probe.predict(torch.tensor(scaled_train), targets, torch.tensor(scaled_test))
        assert classes[predicted].tolist() == reference.predict(scaled_test).tolist()


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_linear_probe_agrees_with_scikit_learn(l2: float) -> None:
    for seed in range(5):
        (train_x, train_y), (test_x, test_y) = make_splits(seed)

        scaled_train, scaled_test = scale_splits(train_x, test_x)
        reference = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(scaled_train, train_y.numpy())

        probe = LinearProbe(LinearProbeConfig(l2=l2))

        assert probe.score(train_x, train_y, test_x, test_y) == reference.score(scaled_test, test_y.numpy())

        classes, targets = train_y.unique(return_inverse=True)
        predicted = probe.predict(torch.tensor(scaled_train), targets, torch.tensor(scaled_test))
        assert classes[predicted].tolist() == reference.predict(scaled_test).tolist()


@pytest.mark.parametrize("name", list(PROBES))
def test_scale_and_offset_of_features_do_not_matter(name: str) -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)

    expected = PROBES[name].score(train_x, train_y, test_x, test_y)

    # What is constant but for rounding must not be blown up to the scale of the others.
    noise = 1e-12 * torch.randn(len(train_x) + len(test_x), 50, generator=torch.Generator().manual_seed(1))
    train_x, test_x = (
        torch.cat([x.double() * 50 - 3, n.double() + 1], dim=1)
        for x, n in ((train_x, noise[: len(train_x)]), (test_x, noise[len(train_x) :]))
    )

    assert PROBES[name].score(train_x, train_y, test_x, test_y) == expected


@pytest.mark.parametrize("name", list(PROBES))
def test_features_that_are_not_finite_score_nan(name: str) -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)

    for x in (train_x, test_x):
        broken = x.clone()
        broken[3, 2] = math.inf
        splits = (broken, train_y, test_x, test_y) if x is train_x else (train_x, train_y, broken, test_y)
        assert math.isnan(PROBES[name].score(*splits))


@pytest.mark.parametrize("name", list(PROBES))
def test_small_and_one_sided_splits_are_scored(name: str) -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    # Fewer training samples than neighbours; a single class; a test class that was never seen.
    assert PROBES[name].score(x, torch.tensor([4, 4]), x, torch.tensor([4, 7])) == 0.5


@pytest.mark.parametrize("name", list(PROBES))
def test_an_empty_split_is_refused(name: str) -> None:
    (x, y), _ = make_splits(1)

    with pytest.raises(ValueError, match="150 and 0"):
        PROBES[name].score(x, y, x[:0], y[:0])


class PatchModel(EncoderModel):
    """Two linear blocks on the columns of an image; dropout betrays a model in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 6, bias=False), nn.Linear(6, 6, bias=False)])
        self.dropout = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(4)
        for block in self.blocks:
            nn.init.normal_(block.weight, generator=generator)

    def extract_features(
        self, inputs: Tensor, padding_mask: Tensor | None = None, *, modality: Modality | None = None
    ) -> Features:
        assert modality is Modality.IMAGE
        x, layers = inputs.mean(dim=2).transpose(1, 2), []
        for block in self.blocks:
            x = self.dropout(block(x)).tanh()
            layers.append(x)

        return Features(x, padding_mask, layers, None)


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

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        self.seen = [x.flatten().tolist() for x in (train_x, train_y, test_x)]

        return torch.zeros(len(test_x), dtype=torch.int64)


def read_scores(bag: MetricBag) -> dict[str, float]:
    return {name: float(bag.get(name, Mean).compute()) for name in ("probe_knn", "probe_linear")}


def test_unit_scores_the_pooled_features_of_both_splits() -> None:
    model = PatchModel().eval()

    scores = read_scores(run_unit(ProbeUnit(model, PROBES, create_fake_gangs(CPU), layer=0), make_reader()))

    def extract(ids: Sequence[int]) -> Split:
        (batch,) = make_batches(ids, len(ids))
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        lengths = (~batch.padding_mask).sum(dim=1)
        pooled = [x[:length].float().mean(dim=0) for x, length in zip(features.layers[0], lengths, strict=True)]
        return torch.stack(pooled), batch.labels

    expected = probe_scores(PROBES, *extract(TRAIN_IDS), *extract(TEST_IDS))

    assert scores == pytest.approx(expected, abs=1e-6)
    assert all(0.5 < score < 1.0 for score in scores.values())


def test_unit_probes_the_chosen_layer() -> None:
    def run(**layer: int) -> dict[str, float]:
        return read_scores(run_unit(ProbeUnit(PatchModel(), PROBES, create_fake_gangs(CPU), **layer), make_reader()))

    assert run(layer=0) != run(layer=1) == run()

    with pytest.raises(ValueError, match="`layer` must be between -2 and 1, but is 2"):
        run(layer=2)


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

    expected = read_scores(run_unit(ProbeUnit(PatchModel(), alone, create_fake_gangs(CPU)), make_reader(size=1)))

    # The first rank reads one training sample and no test sample; the last nothing.
    shares: list[tuple[Sequence[int], Sequence[int]]] = [([59], []), (range(59), range(149, 39, -1)), ([], [])]

    together = {**PROBES, "recording": RecordingProbe()}

    barrier, slots, bags = threading.Barrier(3, timeout=60), [torch.empty(0)] * 3, [MetricBag(CPU)] * 3

    def run(rank: int) -> None:
        gang = ThreadGang(rank, 3, barrier, slots)
        unit = ProbeUnit(PatchModel(), together, Gangs(root=gang, dp=gang, rdp=gang, sdp=gang, tp=gang, pp=gang))
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
    reader._readers[1].batches[0].labels = None  # type: ignore[attr-defined]

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


def test_pooling_ignores_what_stands_at_padding() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    padding_mask = torch.tensor([[False, False, True, True], [False] * 4])

    broken = x.clone()
    broken[0, 2:] = math.nan

    pooled = pool_features(Features(x, padding_mask, [broken], None))

    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.stack([x[0, :2].float().mean(0), x[1].float().mean(0)]))
    torch.testing.assert_close(pool_features(Features(x, None, [x], None)), x.float().mean(dim=1))


def test_statistics_are_mean_and_deviation_of_the_valid_positions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    padded = torch.cat([x, torch.full((2, 2, 3), torch.inf)], dim=1)
    padding_mask = torch.arange(7).expand(2, -1) >= 5

    pooled = pool_features(Features(padded, padding_mask, [padded], None), pooling="statistics")

    torch.testing.assert_close(pooled, torch.cat([x.mean(dim=1), x.std(dim=1, correction=0)], dim=1))


def test_batches_move_to_the_device() -> None:
    (batch,) = make_batches(range(4), 4)

    ProbeBatch(batch, is_train=True).to(torch.device("meta"))

    assert batch.inputs.is_meta and batch.labels is not None and batch.labels.is_meta


def test_probes_are_selected_by_name_and_described_to_the_score_metric() -> None:
    container = DependencyContainer()
    container.register_type(ComponentManager, _StandardComponentManager, singleton=True)
    container.register_type(ValueConverter, StandardValueConverter)
    container.register_type(MetricDescriptorRegistry)

    register_probes(container)

    sections = [ProbeSection(name="knn", config={"k": 9, "metric": "cosine"}), ProbeSection()]
    for section in sections:
        section.structure(container)

    probes = create_probes(container, sections)

    assert list(probes) == ["knn", "linear"]
    assert isinstance(probes["knn"], KnnProbe) and probes["knn"].config == KnnProbeConfig(k=9, metric="cosine")
    assert isinstance(probes["linear"], LinearProbe)

    descriptors = container.resolve(MetricDescriptorRegistry)
    for name, display_name in (("probe_knn", "Probe k-NN Accuracy"), ("probe_linear", "Probe Linear Accuracy")):
        descriptor = descriptors.maybe_get(name)
        assert isinstance(descriptor, MetricDescriptor)
        assert descriptor.display_name == display_name and descriptor.higher_better


@pytest.mark.parametrize(("field", "config"), [("k", KnnProbeConfig(k=0)), ("l2", LinearProbeConfig(l2=-1.0))])
def test_wrong_settings_are_refused_with_the_name_of_the_field(field: str, config: object) -> None:
    with pytest.raises(ValidationError, match=f"`{field}` must"):
        StandardObjectValidator().validate(ProbeSection(config=config))
