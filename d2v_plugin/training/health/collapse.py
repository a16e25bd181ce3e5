"""Watch for collapse: targets, predictions and local features that no longer tell positions apart.

Self-distillation can end in a solution that is constant, and its loss then falls as if all were well. Three numbers show it,
computed from 128 tokens now and then (:func:`describe`). Students of short runs rather get stuck on the way, which shows
in how far a number has fallen below its highest value (recipes/study/starting.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, final

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Observation
from d2v_plugin.core.log import log
from d2v_plugin.core.ranges import Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.statistics import Signs, alpha_req, describe, lidar, rank_me
from d2v_plugin.training.observers import Observer

MAX_ROWS: Final = 16
MAX_POSITIONS: Final = 8
MAX_SAMPLES: Final = 64
PATIENCE: Final = 3
SILENCE: Final = 100

_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(kw_only=True)
class GuardSection(Checked):
    """Watch over a run while it trains; skipping updates that are not finite is always on."""

    collapse_every_n_steps: Annotated[int | None, Range(">= 1 or null")] = 100
    """Look for collapsed targets, predictions and local features every so many updates; null = never."""


@dataclass(frozen=True)
class Limits:
    """Limits below which a set of representations counts as collapsed, and advice for that case."""

    signs: Signs
    remedy: str


# Healthy runs of the objectives here, in three modalities, stayed above 0.15 (deviation), 3.4 (rank) and 0.28 (variation) for
# targets, and above 0.16, 2.3 and 0.2 for local features.
LIMITS: Final[Mapping[str, Limits]] = {
    "targets": Limits(
        Signs(deviation=0.05, rank=1.5, variation=0.02),
        "raise `criterion.config.ema.start`, lower `optimizer.config.lr`, lengthen the warm-up, or normalise the targets "
        "(`criterion.config.targets`)",
    ),
    # At first a student predicts the mean of the targets, everywhere.
    "predictions": Limits(
        Signs(deviation=0.005, rank=0.0, variation=0.001),
        "lower `optimizer.config.lr`, lengthen the warm-up, or mask less (`criterion.config.masking`)",
    ),
    "local features": Limits(
        Signs(deviation=0.01, rank=1.3, variation=0.02),
        "look at the inputs (silence, constant images, wrong scale), and lower `optimizer.config.lr` or the model's "
        "`local_grad_scale`",
    ),
}


@dataclass(frozen=True)
class Fall:
    """A number that should not fall far below the highest value that it had."""

    name: str
    sign: str
    share: float
    """Of the highest value."""

    patience: int
    """So many bad looks in a row are said."""

    least: float
    """Highest values below it say nothing."""

    meaning: str
    remedy: str


FALLS: Final = (
    Fall(
        *("targets", "rank", 1 / 6, PATIENCE, 12.0, "vary in few directions now"),
        remedy="raise `criterion.config.ema.start` and `end`: the average should reach back as far as the run is long",
    ),
    Fall(
        *("local features", "deviation", 1 / 4, 1, 0.1, "become the same everywhere: the student makes its input quiet"),
        remedy="set `prediction_init_scale` of the model to 0, lengthen the warm-up; for speech `audio.conv_norm: group_norm`",
    ),
    Fall(
        *("predictions", "explained variance", 1 / 2, PATIENCE, 0.4, "no longer follow the targets"),
        remedy="as for local features; then lower `optimizer.config.lr`, or train longer",
    ),
)

_MEANING: Final = {
    "deviation": "are the same everywhere",
    "rank": "vary in one direction only",
    "variation": "are constant within each sample",
}


def sample(x: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Take at most 16 rows and 8 positions of each; without a wait for the device.

    :param x: (R, S, D), or (P, D) if what belongs to one sample is not known.
    :param padding_mask: (R, S), True = padding.
    """
    x = x.detach()
    if x.dim() == 2:
        return x[_spread(x.size(0), MAX_ROWS * MAX_POSITIONS, x.device)].unsqueeze(0), None
    rows, positions = _spread(x.size(0), MAX_ROWS, x.device), _spread(x.size(1), MAX_POSITIONS, x.device)

    def choose(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, rows).index_select(1, positions)

    return choose(x), None if padding_mask is None else choose(padding_mask)


def average_views(observation: Observation) -> Tensor | None:
    """The mean prediction in each view of at most 64 samples, (n, M, D); None = there are not several samples and views."""
    local, x = observation.local, observation.predictions
    if local is None or x is None or x.dim() != 3 or len(local) < 2 or len(x) < 2 * len(local):
        return None

    means = x.detach().float().mean(dim=1)

    return means.view(len(local), -1, means.size(-1))[:MAX_SAMPLES]


def _spread(size: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` of ``size`` indices, spread by the golden ratio: equal steps would run down a column of patches."""
    indices = torch.arange(min(size, count), device=device)

    return indices if size <= count else ((indices * _GOLDEN).frac() * size).long()


@final
class CollapseObserver(Observer):
    """Looks every ``every_n_steps`` updates; three bad looks in a row are a collapse, which is said once in 100 looks.

    One rank is enough: all collapse together.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every_n_steps = every_n_steps
        self._wants_to_look = False
        self._samples: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._num_bad: dict[tuple[str, str], int] = {}
        self._next_words: dict[tuple[str, str], int] = {}
        self._has_predicted = False
        self._explained: Tensor | None = None
        self._highest: dict[Fall, float] = {}
        self.last: dict[str, Signs] = {}
        self._views: Tensor | None = None
        self._published: dict[str, float] = {}

    @override
    def before_update(self, step_nr: int) -> None:
        self._wants_to_look = self.is_due(step_nr)

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        if self._wants_to_look:
            self.look(output.observation)
            self._explained = output.metrics.get("explained_variance")
        self._wants_to_look = False  # the first pass of an update is enough

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        self.judge(step_nr)

    @override
    def add_metrics(self, values: MutableMapping[str, object]) -> None:
        values.update(self._published)
        if "targets" in self.last:
            values["target_rank"] = self.last["targets"].rank
        if "local features" in self.last:
            values["local_rank"] = self.last["local features"].rank
            values["local_deviation"] = self.last["local features"].deviation

    def is_due(self, step_nr: int) -> bool:
        return step_nr % self._every_n_steps == 0 or step_nr == 1

    def look(self, observation: Observation | None) -> None:
        """Take samples of what a criterion observed in a forward pass, for :meth:`judge`."""
        self._samples, self._views = {}, None
        if observation is None:
            return
        sets = {
            "targets": (observation.targets, observation.padding_mask),
            "predictions": (observation.predictions, None),
            "local features": (observation.local, observation.padding_mask),
        }
        self._samples = {name: sample(x, mask) for name, (x, mask) in sets.items() if x is not None}
        self._views = average_views(observation)

    def judge(self, step_nr: int) -> None:
        """Measure the samples, compare them with the limits, and warn. Waits until the device has taken them."""
        if not self._samples:
            return
        found = {name: describe(x, mask) for name, (x, mask) in self._samples.items()}
        (samples, self._samples), (views, self._views) = (self._samples, {}), (self._views, None)
        values = {(name, sign): value for name, signs in found.items() for sign, value in signs._asdict().items()}
        if self._explained is not None:
            values["predictions", "explained variance"] = float(self._explained)
        for fall in FALLS:
            self._follow(step_nr, fall, values.get((fall.name, fall.sign), math.nan))
        # What a run begins with is compared with, and nothing else.
        if step_nr % self._every_n_steps != 0:
            return

        self.last = found
        self._published = {} if views is None else {"prediction_lidar": lidar(views)}
        if "targets" in samples:
            x, mask = samples["targets"]
            tokens = x.flatten(0, 1) if mask is None else x.cpu()[~mask.cpu()]
            self._published |= {"target_rankme": rank_me(tokens), "target_alpha_req": alpha_req(tokens)}
        for name, signs in self.last.items():
            bad = [sign for sign in Signs._fields if getattr(signs, sign) < getattr(LIMITS[name].signs, sign)]
            if "deviation" in bad:
                bad = ["deviation"]  # the others are noise then
            if name == "predictions" and not self._has_predicted:
                self._has_predicted = not bad
                bad = []
            for sign in Signs._fields:
                self._count(step_nr, name, sign, is_bad=sign in bad)

    def _follow(self, step_nr: int, fall: Fall, value: float) -> None:
        """Compare a number with the highest that it was since the run began or was resumed."""
        highest = self._highest[fall] = max(self._highest.get(fall, 0.0), value)
        is_bad = highest >= fall.least and value < fall.share * highest
        if self._is_new((fall.name, f"fall of {fall.sign}"), step_nr, fall.patience, is_bad=is_bad):
            log.warning(
                f"Fallen at update {step_nr}: {fall.name} {fall.meaning} ({fall.sign} {value:.2g}, was {highest:.2g}). "
                f"What may help: {fall.remedy}."
            )

    def _count(self, step_nr: int, name: str, sign: str, *, is_bad: bool) -> None:
        if not self._is_new((name, sign), step_nr, PATIENCE, is_bad=is_bad):
            return
        value, limit = getattr(self.last[name], sign), getattr(LIMITS[name].signs, sign)
        since = step_nr - (self._num_bad[name, sign] - 1) * self._every_n_steps
        log.warning(
            f"Collapsed at update {step_nr}: {name} {_MEANING[sign]} since update {since} ({sign} {value:.2g}, limit {limit:g}). "
            f"What may help: {LIMITS[name].remedy}."
        )

    def _is_new(self, what: tuple[str, str], step_nr: int, patience: int, *, is_bad: bool) -> bool:
        """Count bad looks in a row; whether it is time to say so."""
        self._num_bad[what] = self._num_bad.get(what, 0) + 1 if is_bad else 0
        if self._num_bad[what] < patience or step_nr < self._next_words.get(what, 0):
            return False
        self._next_words[what] = step_nr + SILENCE * self._every_n_steps

        return True
