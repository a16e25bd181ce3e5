"""k-NN and the linear probe agree with scikit-learn; all probes cope with whatever features they get."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import d2v_plugin  # noqa: F401  # isort: skip
import fairseq2.recipe  # noqa: F401  # isort: skip
from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StandardValueConverter, ValueConverter
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from d2v_plugin.probing import knn
from d2v_plugin.probing.attentive import AttentiveProbe, AttentiveProbeConfig
from d2v_plugin.probing.base import Probe, ProbeData, ProbeSection, create_probes, probe_scores
from d2v_plugin.probing.knn import KnnProbe, KnnProbeConfig
from d2v_plugin.probing.linear import LinearProbe, LinearProbeConfig
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.verbs.registration import register_probes

PROBES: dict[str, Probe] = {
    "knn": KnnProbe(KnnProbeConfig()),
    "linear": LinearProbe(LinearProbeConfig()),
    "attentive": AttentiveProbe(AttentiveProbeConfig(num_epochs=5)),
}

Split = tuple[Tensor, Tensor]


def make_data(x: Tensor, y: Tensor) -> ProbeData:
    """Features of one token per sample, which all probes can be shown."""
    return ProbeData(x, y, [row[None] for row in x])


def score(probe: Probe, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    return probe.score(make_data(train_x, train_y), make_data(test_x, test_y))


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
    monkeypatch.setattr(knn, "CHUNK_SIZE", 70)

    for seed in range(5):
        (train_x, train_y), (test_x, test_y) = make_splits(seed)

        scaled_train, scaled_test = scale_splits(train_x, test_x)
        reference = KNeighborsClassifier(k, metric=metric).fit(scaled_train, train_y.numpy())

        probe = KnnProbe(KnnProbeConfig(k=k, metric=metric))

        assert score(probe, train_x, train_y, test_x, test_y) == reference.score(scaled_test, test_y.numpy())

        # Sample by sample
        classes, targets = train_y.unique(return_inverse=True)
        predicted = probe.predict_vectors(torch.tensor(scaled_train), targets, torch.tensor(scaled_test))
        assert classes[predicted].tolist() == reference.predict(scaled_test).tolist()


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_linear_probe_agrees_with_scikit_learn(l2: float) -> None:
    for seed in range(5):
        (train_x, train_y), (test_x, test_y) = make_splits(seed)

        scaled_train, scaled_test = scale_splits(train_x, test_x)
        reference = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000).fit(scaled_train, train_y.numpy())

        probe = LinearProbe(LinearProbeConfig(l2=l2))

        assert score(probe, train_x, train_y, test_x, test_y) == reference.score(scaled_test, test_y.numpy())

        classes, targets = train_y.unique(return_inverse=True)
        predicted = probe.predict_vectors(torch.tensor(scaled_train), targets, torch.tensor(scaled_test))
        assert classes[predicted].tolist() == reference.predict(scaled_test).tolist()


@pytest.mark.parametrize("name", list(PROBES))
def test_scale_and_offset_of_features_do_not_matter(name: str) -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)

    expected = score(PROBES[name], train_x, train_y, test_x, test_y)

    # What is constant but for rounding must not be blown up to the scale of the others.
    noise = 1e-12 * torch.randn(len(train_x) + len(test_x), 50, generator=torch.Generator().manual_seed(1))
    train_x, test_x = (
        torch.cat([x.double() * 50 - 3, n.double() + 1], dim=1)
        for x, n in ((train_x, noise[: len(train_x)]), (test_x, noise[len(train_x) :]))
    )

    assert score(PROBES[name], train_x, train_y, test_x, test_y) == expected


@pytest.mark.parametrize("name", list(PROBES))
def test_samples_whose_features_are_not_finite_are_left_out(name: str) -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)
    kept = torch.arange(len(train_x)) != 3
    kept_test = torch.arange(len(test_x)) != 3

    for bad in (math.inf, math.nan):
        broken, broken_test = train_x.clone(), test_x.clone()
        broken[3, 2] = broken_test[3, 2] = bad
        expected = score(PROBES[name], train_x[kept], train_y[kept], test_x[kept_test], test_y[kept_test])
        assert score(PROBES[name], broken, train_y, broken_test, test_y) == expected > 0.3
    assert math.isnan(score(PROBES[name], torch.full_like(train_x, math.nan), train_y, test_x, test_y))


def test_a_split_of_which_nothing_could_be_read_scores_nan() -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)
    data = {0: (make_data(train_x, train_y), make_data(test_x[:0], test_y[:0]))}
    assert math.isnan(probe_scores({"linear": PROBES["linear"]}, data)["probe_linear"])


@pytest.mark.parametrize("name", list(PROBES))
def test_small_and_one_sided_splits_are_scored(name: str) -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    # Fewer training samples than neighbours; a single class; a test class that was never seen.
    assert score(PROBES[name], x, torch.tensor([4, 4]), x, torch.tensor([4, 7])) == 0.5


@pytest.mark.parametrize("name", list(PROBES))
def test_an_empty_split_is_refused(name: str) -> None:
    (x, y), _ = make_splits(1)

    with pytest.raises(ValueError, match="150 and 0"):
        score(PROBES[name], x, y, x[:0], y[:0])


def test_probes_are_selected_by_name_and_described_to_the_score_metric() -> None:
    container = DependencyContainer()
    container.register_type(ComponentManager, _StandardComponentManager, singleton=True)
    container.register_type(ValueConverter, StandardValueConverter)
    container.register_type(MetricDescriptorRegistry)

    register_probes(container)

    sections = [ProbeSection(name="knn", config={"k": 9, "metric": "cosine"}), ProbeSection(), ProbeSection(name="attentive")]
    for section in sections:
        section.structure(container)

    probes = create_probes(container, sections)

    assert list(probes) == ["knn", "linear", "attentive"]
    assert isinstance(probes["knn"], KnnProbe) and probes["knn"].config == KnnProbeConfig(k=9, metric="cosine")
    assert isinstance(probes["linear"], LinearProbe)

    descriptors = container.resolve(MetricDescriptorRegistry)
    for name, display_name in (
        ("probe_knn", "Probe k-NN Accuracy"),
        ("probe_linear", "Probe Linear Accuracy"),
        ("probe_attentive", "Probe Attentive Accuracy"),
    ):
        descriptor = descriptors.maybe_get(name)
        assert isinstance(descriptor, MetricDescriptor)
        assert descriptor.display_name == display_name and descriptor.higher_better


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("k", KnnProbeConfig(k=0)),
        ("l2", LinearProbeConfig(l2=-1.0)),
        ("num_queries", AttentiveProbeConfig(num_queries=0)),
        ("lr", AttentiveProbeConfig(lr=0.0)),
    ],
)
def test_wrong_settings_are_refused_with_the_name_of_the_field(field: str, config: object) -> None:
    with pytest.raises(ValidationError, match=f"`{field}` must"):
        StandardObjectValidator().validate(ProbeSection(config=config))


def make_needles(seed: int, size: int) -> ProbeData:
    """Each sample is 6 to 12 tokens of noise and one, at a random place, that is marked and has the class as its sign."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (size,), generator=generator)
    tokens = []
    for label in y.tolist():
        sample = torch.randn(int(torch.randint(6, 13, (), generator=generator)), 8, generator=generator)
        sample[:, 0] = 0.0
        place = int(torch.randint(len(sample), (), generator=generator))
        sample[place, 0], sample[place, 1] = 5.0, 2.0 * (label - 0.5)
        tokens.append(sample)

    return ProbeData(torch.stack([sample.mean(dim=0) for sample in tokens]), y, tokens)


def test_the_attentive_probe_finds_the_token_that_matters() -> None:
    train, test = make_needles(1, 200), make_needles(2, 200)

    assert PROBES["linear"].score(train, test) < 0.8
    assert AttentiveProbe(AttentiveProbeConfig()).score(train, test) > 0.95


def test_the_attentive_probe_is_deterministic_and_leaves_the_random_state_alone() -> None:
    train, test, probe = make_needles(1, 50), make_needles(2, 300), AttentiveProbe(AttentiveProbeConfig(num_epochs=3))
    state = torch.get_rng_state()

    first = probe.predict(train, test)
    torch.rand(5)

    assert torch.equal(probe.predict(train, test), first)
    torch.set_rng_state(state)
    probe.predict(train, test)
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_does_not_change_what_the_attentive_probe_predicts() -> None:
    train, test = make_needles(1, 50), make_needles(2, 64)
    probe = AttentiveProbe(AttentiveProbeConfig(num_epochs=3))
    longest = torch.cat([test.tokens[0], torch.zeros(40, 8)])

    predicted = probe.predict(train, ProbeData(test.x, test.y, [longest, *test.tokens[1:]]))

    assert torch.equal(predicted[1:], probe.predict(train, test)[1:])


def test_of_several_layers_the_best_gives_the_score() -> None:
    (train_x, train_y), (test_x, test_y) = make_splits(1)
    good = (make_data(train_x, train_y), make_data(test_x, test_y))
    bad = (make_data(torch.zeros_like(train_x), train_y), make_data(torch.zeros_like(test_x), test_y))
    broken = (make_data(torch.full_like(train_x, torch.inf), train_y), bad[1])
    probes = {"linear": PROBES["linear"]}

    alone = probe_scores(probes, {3: good})
    assert list(alone) == ["probe_linear"]
    several = probe_scores(probes, {0: bad, 3: good, 5: broken})

    assert list(several) == ["probe_linear", "probe_linear_layer0", "probe_linear_layer3", "probe_linear_layer5"]
    assert several["probe_linear"] == several["probe_linear_layer3"] == alone["probe_linear"] > several["probe_linear_layer0"]
    assert math.isnan(several["probe_linear_layer5"])


def test_the_table_has_a_line_for_each_layer() -> None:
    scores = {"probe_knn": 0.5, "probe_knn_layer0": 0.25, "probe_knn_layer1": 0.5, "probe_linear": 0.75}
    scores |= {"probe_linear_layer0": 0.75, "probe_linear_layer1": 0.6}

    lines = format_accuracies({"pre-trained": scores, "raw pixels": {"probe_knn": 0.1, "probe_linear": 0.2}})

    assert [line.split() for line in lines] == [
        ["accuracy", "probe_knn", "probe_linear"],
        ["pre-trained,", "layer", "0", "0.250", "0.750"],
        ["pre-trained,", "layer", "1", "0.500", "0.600"],
        ["pre-trained,", "best", "layer", "0.500", "0.750"],
        ["raw", "pixels", "0.100", "0.200"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert format_accuracies({}) == []


def make_layers(seed: int, size: int, signal: int) -> ProbeData:
    """Three layers side by side, 4 tokens a sample; one of them has the class in it, the others are noise of another scale."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (size,), generator=generator)
    x = torch.randn(size, 4, 3, 6, generator=generator) * torch.tensor([100.0, 1.0, 0.01])[:, None]
    centers = torch.eye(6)[:3] * 2.0
    x[:, :, signal] += centers[y][:, None] * 10.0 ** (2 - 2 * signal)
    tokens = x.flatten(2)

    return ProbeData(tokens.mean(dim=1), y, list(tokens), num_layers=3)


@pytest.mark.parametrize("signal", [0, 2])
@pytest.mark.parametrize("probe", [LinearProbe(LinearProbeConfig()), AttentiveProbe(AttentiveProbeConfig())])
def test_learned_weights_find_the_layer_that_knows(probe: Probe, signal: int) -> None:
    train, test = make_layers(1, 200, signal), make_layers(2, 200, signal)

    scores = probe_scores({"linear": probe}, {0: (train, test)})

    weights = [scores[f"probe_linear_layer{layer}_weight"] for layer in range(3)]
    assert next(iter(scores)) == "probe_linear" and len(scores) == 4
    assert scores["probe_linear"] > 0.95
    assert sum(weights) == pytest.approx(1.0) and weights[signal] > 2 * max(weights[:signal] + weights[signal + 1 :]), weights
    table = [line.split() for line in format_accuracies({"pre-trained": scores})]
    assert table[1][:2] == ["pre-trained", f"{scores['probe_linear']:.3f}"]
    assert table[2 + signal] == ["pre-trained,", "weight", "of", "layer", str(signal), f"{weights[signal]:.3f}"]


def test_one_layer_has_no_weights() -> None:
    train, test = make_needles(1, 50), make_needles(2, 50)

    assert list(probe_scores({"linear": PROBES["linear"]}, {0: (train, test)})) == ["probe_linear"]
