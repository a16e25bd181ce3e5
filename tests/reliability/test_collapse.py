"""The collapse watch is silent while all is well, and says what has collapsed when something has."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_plugin.core.contracts import LossOutput, Observation
from d2v_plugin.models.statistics import Signs, describe
from d2v_plugin.training.health.collapse import CollapseObserver, sample

FAULTS = Path(__file__).with_name("faults.py")

SETTINGS = [
    *("guard.collapse_every_n_steps=2", "regime.num_steps=24", "regime.checkpoint_every_n_steps=null"),
    "criterion.name=faulty",
]

ALWAYS = list(range(1, 25))


def train(command: Any, recipe: Path, out: Path, *settings: str) -> str:
    """What a run has logged, without line breaks."""
    words = ["recipe", "train", "--extension", FAULTS, "--config-file", recipe, out, "--config", *SETTINGS, *settings]
    outcome = command(*words)
    assert outcome.status == 0, outcome.err

    return " ".join(outcome.err.split())


@pytest.mark.parametrize("seed", range(1, 11))
def test_a_healthy_run_is_not_disturbed(command: Any, tiny_recipe: Path, tmp_path: Path, seed: int) -> None:
    text = train(command, tiny_recipe, tmp_path, f"common.seed={seed}", "regime.num_steps=48")

    assert "Collapsed" not in text and "is far above" not in text and "Skipped update " not in text
    assert not (tmp_path / "suspects").exists()


NO_AVERAGE = ["criterion.config.ema={start: 0.0, end: 0.0}", "optimizer.config.lr=0.03"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"criterion.config.faults={{constant_targets: {ALWAYS}}}"], "6: targets are the same everywhere since update 2"),
        ([f"criterion.config.faults={{dead_frontend: {ALWAYS}}}"], "6: local features are the same everywhere since update 2"),
        ([f"criterion.config.faults={{constant_images: {ALWAYS}}}"], "6: local features are constant within each sample since"),
        ([*NO_AVERAGE, "criterion.config.targets.instance_norm_layers=false"], r"\d+: targets are the same everywhere"),
        ([*NO_AVERAGE, "regime.num_steps=150"], r"\d+: targets vary in one direction only"),
    ],
    ids=["constant targets", "dead frontend", "time-constant features", "no average, no norm", "no average"],
)
def test_a_collapse_is_named(command: Any, tiny_recipe: Path, tmp_path: Path, settings: list[str], message: str) -> None:
    text = train(command, tiny_recipe, tmp_path, *settings)

    assert re.search(f"Collapsed at update {message}", text)
    kinds = re.findall(r"Collapsed at update \d+: ((?:targets|predictions|local features) [a-z ]+?) since", text)
    assert len(kinds) == len(set(kinds)), "each is said once"
    assert "What may help: " in text and "`optimizer.config.lr`" in text


def test_an_interval_that_is_none_is_one_line(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    setting = "guard.collapse_every_n_steps=0"
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", setting)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert "`guard`" in outcome.err and "`collapse_every_n_steps` must be at least 1 or null, but is 0." in outcome.err


def test_it_speaks_once_in_100_looks(caplog: pytest.LogCaptureFixture) -> None:
    watch, dead = CollapseObserver(10), Observation(local=torch.ones(4, 6, 8))
    said = []
    for step in range(10, 2100, 10):
        assert watch.is_due(step) and not watch.is_due(step + 1)
        watch.look(dead)
        caplog.clear()
        watch.judge(step)
        said += [step] * len(caplog.records)

    assert said == [30, 1030, 2030]


def test_a_student_that_has_not_begun_to_predict_has_not_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseObserver(1)

    def look(deviation: float) -> int:
        caplog.clear()
        for step in range(5):
            watch.look(Observation(predictions=1.0 + deviation * torch.randn(40, 8)))
            watch.judge(step)
        return len(caplog.records)

    assert [look(1e-4), look(0.1), look(1e-4)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("course", "said_at"),
    [
        # Explained variance of a seed that failed, and of one that learned; a look every 10 updates, and one at the first.
        ([-1.5, 0.60, 0.78, 0.80, 0.35, 0.29, 0.27], [60]),
        ([-0.3, 0.33, 0.25, 0.31, 0.46, 0.51, 0.58], []),
        ([-1.5, 0.10, 0.24, 0.10, 0.10, 0.10, 0.10], []),
    ],
    ids=["stuck", "learning", "never above 0.4"],
)
def test_a_student_that_stops_following_is_named(
    caplog: pytest.LogCaptureFixture, course: list[float], said_at: list[int]
) -> None:
    watch, said = CollapseObserver(10), []
    observation = Observation(predictions=torch.randn(40, 8))
    for step, explained in zip([1, *range(10, 70, 10)], course, strict=True):
        watch.before_update(step)
        metrics = {"explained_variance": torch.tensor(explained)}
        watch.after_forward(None, LossOutput(torch.tensor(1.0), 1, metrics, observation))  # type: ignore[arg-type]
        watch.judge(step)
        said += [step for record in caplog.records if "no longer follow the targets" in record.message]
        caplog.clear()

    assert said == said_at


def test_a_student_that_makes_its_input_quiet_is_told_the_cure(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseObserver(100)
    for step, deviation in ((1, 0.6), (100, 0.1), (200, 0.1)):
        watch.look(Observation(local=1.0 + deviation * torch.randn(16, 8, 32)))
        watch.judge(step)

    (message,) = [record.message for record in caplog.records]
    assert message.startswith("Fallen at update 100: local features") and "`prediction_init_scale`" in message


def test_the_signs_are_those_of_the_definition() -> None:
    torch.manual_seed(1)
    x = torch.randn(16, 8, 128)

    assert describe(x).deviation == pytest.approx(1.0, abs=0.01)
    assert describe(x).variation == pytest.approx(7 / 8, abs=0.03)
    values = torch.linalg.svdvals(x.flatten(0, 1) - x.mean(dim=(0, 1))).double()
    assert describe(x).rank == pytest.approx(float(torch.distributions.Categorical(values).perplexity()), rel=1e-4)
    assert describe(x + 100.0).deviation == pytest.approx(0.01, rel=0.02)
    line = torch.randn(16, 8, 1) * torch.randn(128)
    assert describe(line).rank == pytest.approx(1.0, abs=1e-3)
    still = torch.randn(16, 1, 128).expand(-1, 8, -1)
    assert describe(still).variation == pytest.approx(0.0, abs=1e-12) and describe(still).rank < 16
    assert describe(torch.ones(4, 4, 8)) == Signs(0.0, 0.0, 0.0)
    assert math.isnan(describe(torch.full((4, 4, 8), torch.nan)).deviation)
    assert math.isnan(describe(x[:1]).variation) and math.isnan(describe(x[:, :1]).variation)


def test_padding_is_not_looked_at() -> None:
    torch.manual_seed(1)
    x, padding = torch.randn(5, 7, 16), torch.arange(7).expand(5, -1) >= 4

    expected = describe(x[:, :4])

    assert describe(x.masked_fill(padding.unsqueeze(-1), 1e6), padding) == pytest.approx(expected)


def test_few_tokens_of_all_places_are_taken() -> None:
    x = torch.arange(100 * 196.0).view(100, 196, 1)

    taken, padding = sample(x, torch.zeros(100, 196, dtype=torch.bool))

    assert taken.shape == (16, 8, 1) and padding is not None and padding.shape == (16, 8)
    columns = {int(place) % 14 for place in taken.flatten().tolist()}
    assert len(taken.unique()) == 128 and len(columns) >= 6
    assert sample(torch.zeros(5000, 3))[0].shape == (1, 128, 3)
    assert sample(torch.zeros(3, 5, 2))[0].shape == (3, 5, 2)


def test_a_look_costs_less_than_a_percent_of_100_small_updates() -> None:
    """Those of a base model on a GPU take 28 ms."""
    observation = Observation(torch.randn(16, 196, 768), torch.randn(16, 196, 768), torch.randn(64, 157, 768))
    watch = CollapseObserver(1)
    seconds = []
    for step in range(5):
        start = time.process_time()
        watch.look(observation)
        watch.judge(step)
        seconds.append(time.process_time() - start)

    assert min(seconds) < 0.028
