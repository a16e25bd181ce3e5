"""Layout of a training recipe's YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fairseq2.recipe.config import (
    COSINE_ANNEALING_LR,
    DatasetSection,
    GangSection,
    LRSchedulerSection,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
)
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.core.ranges import NonNegativeFloat, Range
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.probing.section import ProbingSection
from d2v_plugin.tasks.base import TaskSection
from d2v_plugin.training.health.collapse import GuardSection
from d2v_plugin.training.optimizer import DATA2VEC_ADAMW
from d2v_plugin.training.picture_recorder import PicturesSection
from d2v_plugin.verbs.common import BoundedCommonSection

Minutes = Annotated[float, Range("> 0, < 1e6")]


@dataclass(kw_only=True)
class ScheduleSection(LRSchedulerSection):
    """fairseq2's section; the cosine ends at zero, as the original's does, unless the recipe says otherwise.

    fairseq2 computes update n (from 1) with the rate of n - 1 finished updates, as fairseq did: the first has rate 0.
    """

    config: object = field(default_factory=dict)
    """Settings of the scheduler; what is not named keeps the scheduler's own default."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        config = self.config
        if self.name == COSINE_ANNEALING_LR and isinstance(config, dict):
            # `final_lr` excludes `final_lr_scale`.
            self.config = {"final_lr_scale": None if config.get("final_lr") is not None else 0.0, **config}

        super().structure(resolver)


@dataclass(kw_only=True)
class InitSection:
    """Continued pre-training: what a new run's model starts from. Schedules and teacher start anew."""

    path: str | None = None
    """A directory written by `fairseq2 recipe convert`, a run's output directory, or a registered name; a file of fairseq, a
    folder of Hugging Face, or a run of fairseq2, of which comes over what fits (recipes/other_models.md); None = random."""

    weights: Literal["student", "teacher"] = "student"
    """Which of the two weights there."""


@dataclass(kw_only=True)
class ValidationSection:
    """Labelled splits that score fine-tuned models; the regime's ``validate_every_n_steps`` says how often."""

    splits: list[str] = field(default_factory=lambda: ["valid"])
    """The labelled splits."""


@dataclass(kw_only=True)
class KeepingRegimeSection(Checked, RegimeSection):
    """fairseq2's section, and one more rule by which checkpoints are kept: what any rule keeps is kept."""

    keep_checkpoints_for_hours: NonNegativeFloat | None = None
    """Checkpoints younger than this are kept; None = age does not matter."""


@dataclass(kw_only=True)
class PatientGangSection(Checked, GangSection):
    """fairseq2's section, whose ``timeout`` is for computing together, and the minutes a rank waits for the others besides."""

    start_timeout: Minutes | None = None
    """While the run starts, when the ranks check a checkpoint together; None = ``timeout``."""

    step_timeout: Minutes | None = None
    """Between two updates; None = ``timeout``."""

    save_timeout: Minutes | None = None
    """While a checkpoint is written; None = ``timeout``."""


@dataclass(kw_only=True)
class ExactTrainerSection(Checked, TrainerSection):
    """fairseq2's section, and the choice between speed and bits."""

    max_grad_norm: Annotated[float | None, Range("> 0 or null")] = None

    deterministic: bool = False
    """Give the same bits in every run on the same kind of GPU, so that a resumed run equals one that was not stopped: slower
    kernels that add in a fixed order, and no TF32. On CPUs runs are so in any case."""


@dataclass(kw_only=True)
class TrainConfig(Validatable):
    """The sections of a training recipe; a YAML names what differs from these defaults."""

    task: TaskSection = field(default_factory=TaskSection)
    """Which manifest is read and how it becomes batches."""

    dataset: DatasetSection = field(default_factory=DatasetSection)
    """What the task reads: ``family`` and ``config_overrides`` (with the ``path`` of the manifest)."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family="data2vec"))
    """The model: ``arch``, and ``config_overrides`` for what differs from it."""

    init: InitSection = field(default_factory=InitSection)
    """Weights to start from."""

    criterion: CriterionSection = field(default_factory=CriterionSection)
    """What the model is trained for."""

    optimizer: OptimizerSection = field(default_factory=lambda: OptimizerSection(name=DATA2VEC_ADAMW, config={}))
    """The optimizer; :class:`d2v_plugin.training.optimizer.Data2VecAdamWConfig` or one of fairseq2's."""

    lr_scheduler: ScheduleSection = field(default_factory=ScheduleSection)
    """The learning rate over the run, ``cosine_annealing`` to zero by default."""

    trainer: ExactTrainerSection = field(
        default_factory=lambda: ExactTrainerSection(mixed_precision=MixedPrecisionConfig(mode="off"))
    )
    """Precision, parallelism, gradient clipping. Without ``mixed_precision`` everything is computed in ``model.dtype``."""

    regime: KeepingRegimeSection = field(default_factory=KeepingRegimeSection)
    """How long to train (``num_steps``, required) and how often to log, validate (run the probes) and save."""

    guard: GuardSection = field(default_factory=GuardSection)
    """What is watched for while training."""

    probing: ProbingSection = field(default_factory=ProbingSection)
    """The probes that measure the features during training."""

    pictures: PicturesSection = field(default_factory=PicturesSection)
    """What is drawn during training."""

    validation: ValidationSection = field(default_factory=ValidationSection)
    """The splits that a fine-tuned model is scored on during training."""

    gang: PatientGangSection = field(default_factory=PatientGangSection)
    """How processes are grouped, and how long they wait for each other."""

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads. The output directory is used as it is given, so that a repeated command resumes."""

    @override
    def validate(self) -> ValidationResult:
        num_steps, warmup = self.regime.num_steps, getattr(self.lr_scheduler.config, "num_warmup_steps", 0)

        return report(
            (
                # fairseq2's own message names a key that does not exist.
                self.lr_scheduler.name == "polynomial_decay" and num_steps is not None and warmup >= max(num_steps, 1),
                f"`lr_scheduler.config.num_warmup_steps` ({warmup}) must be less than `regime.num_steps` ({num_steps}); shorten "
                "the warm-up or train longer.",
            ),
            (num_steps is None, "`regime.num_steps` must be set: the number of updates to train for."),
            (
                # A cosine of no length; a run that ends before its warm-up does is a common way to try a recipe.
                num_steps is not None and warmup == num_steps > 0 and self.lr_scheduler.name != "polynomial_decay",
                f"`lr_scheduler.config.num_warmup_steps` must not equal `regime.num_steps` ({num_steps}).",
            ),
            (
                self.regime.num_data_epochs is not None,
                "`regime.num_data_epochs` must not be set, because such runs cannot resume; set `regime.num_steps`.",
            ),
            (
                self.trainer.fsdp.version != "v2",
                "`trainer.fsdp.version` must stay v2: checkpoints hold plain tensors, which FSDP1 does not have.",
            ),
            (
                self.trainer.grad_accumulation.num_batches != 1,
                "`trainer.grad_accumulation.num_batches` must stay 1, because the task divides an update into batches; "
                "set `task.config.max_batch_size`.",
            ),
        )
