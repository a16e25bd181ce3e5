"""The training recipe: puts model, criterion, task and probes together for fairseq2's trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

from fairseq2.checkpoint import CheckpointDir
from fairseq2.datasets import DataReader
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import ModelTypeNotValidError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task as Runnable
from torch import nn
from typing_extensions import override

from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion, criterion_of
from d2v_plugin.criteria.supervised.base import SupervisedConfig, SupervisedCriterion
from d2v_plugin.data.reader import name_sample
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.evaluation.provenance import check_labels, describe_origin, write_origin
from d2v_plugin.evaluation.run_scores import Scores, compare_checkpoints
from d2v_plugin.evaluation.unit import EvaluationUnit
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.pictures.recorder import Album
from d2v_plugin.probing.section import Probing
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig
from d2v_plugin.training.checkpoints import Resume, VerifiedCheckpointManager, register_checkpoints
from d2v_plugin.training.health.incidents import Suspects
from d2v_plugin.training.health.update_guard import UpdateGuard, create_watch
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.training.layer_groups import format_layers
from d2v_plugin.training.malloc import keep_freed_memory
from d2v_plugin.training.stopping import StoppableReader, StoppableTask
from d2v_plugin.training.unit import CriterionUnit
from d2v_plugin.verbs.extensions import ExtensibleRecipe, Extension
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.summary import SummarizedTask, Summarizer
from d2v_plugin.weights.loading import load_weights


@final
class TrainRecipe(ExtensibleRecipe):
    """Trains a model on a task with a criterion, all three named by the configuration."""

    config_kls = TrainConfig

    def __init__(self, extensions: Sequence[Extension] = (), resume: Resume | None = None) -> None:
        """
        :param extensions: as for :class:`ExtensibleRecipe`.
        :param resume: where to go on; None = the last complete checkpoint, if there is one.
        """
        super().__init__(extensions)
        self._resume = resume or Resume()

    @override
    def register(self, container: DependencyContainer) -> None:
        super().register(container)
        register_checkpoints(container, self._resume)

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        # In an update of one modality the frontends of the others get no gradients.
        config = context.get_config_as(TrainConfig)
        if isinstance(config.criterion.config, SupervisedConfig) and config.criterion.config.freeze_updates > 0:
            # The encoder gets no gradients at first.
            return False

        return not isinstance(config.task.config, MultimodalPretrainingConfig)

    @override
    def setup_model(self, context: RecipeContext, model: nn.Module, newly_initialized: bool) -> nn.Module:
        """Attach the criterion; ``model`` may be on the meta device (on ranks other than 0, and when resuming)."""
        if not isinstance(model, EncoderModel):
            raise ModelTypeNotValidError(type(model), EncoderModel, "model")

        config = context.get_config_as(TrainConfig)
        if newly_initialized and config.init.path is not None:
            load_weights(model, config.init.path, weights=config.init.weights)

        section = config.criterion
        criterion = create(context.resolver, Criterion, section)
        labels = None
        if isinstance(criterion, SupervisedCriterion):
            labels = create(context.resolver, Task, config.task).read_labels(context.get_dataset())
            if not newly_initialized:
                check_labels(find_checkpoints(context), labels)
        attach_criterion(model, criterion, labels, called=f"criterion `{section.name}`")

        # fairseq2 did both before the criterion was there.
        model.requires_grad_(True)
        model.train()

        return model

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config = context.get_config_as(TrainConfig)
        gangs, seed = context.gangs, config.common.seed

        # Data first: a missing manifest or split is known before a large model is built.
        task = create(context.resolver, Task, config.task)
        task.bad_samples_report = context.output_dir / "bad_samples.tsv"
        dataset = context.get_dataset()
        task.labels = task.read_labels(dataset)
        train_reader = task.create_train_reader(dataset, gangs, seed)
        reader = StoppableReader(train_reader)
        probing = Probing(context.resolver, config.probing, partial(task.create_labelled_reader, dataset))
        eval_readers: list[DataReader[Any]] = [probing.create_reader(gangs)] if probing.probes else []

        model = context.get_model_as(EncoderModel)
        criterion = criterion_of(model)
        assert criterion is not None
        rank = gangs.root.rank
        guard = UpdateGuard(
            Suspects(context.output_dir, rank, partial(name_sample, train_reader)), create_watch(config.guard, rank), rank=rank
        )
        unit = CriterionUnit(context.get_data_parallel_model(), criterion, guard, seed=seed)
        if gangs.device.type == "cpu":
            keep_freed_memory()
        guard.attach(context.get_data_parallel_model(), context.get_optimizer(), partial(criterion.after_step, model))

        album: Album | None = None
        # One process cannot draw a sharded model.
        if config.pictures.enabled and gangs.root.rank == 0 and gangs.sdp.size == 1:
            album = Album(config.pictures, model, context.output_dir, seed=seed, spell=task.read_spelling(dataset))
            album.attach(context.get_data_parallel_model(), context.get_optimizer(), lambda: unit.step_nr)

        eval_units: list[EvalUnit[Any]] = [probing.create_unit(model, gangs)] if probing.probes else []
        if isinstance(criterion, SupervisedCriterion):
            for split in config.validation.splits:
                eval_readers.append(task.create_labelled_reader(dataset, gangs, split))
                report = context.output_dir / "predictions" / f"{split}.tsv"
                eval_units.append(EvaluationUnit(model, criterion, gangs, split=split, report=report))
        task.check_model(model)
        if gangs.root.rank == 0:
            write_origin(find_checkpoints(context), describe_origin(config, task.labels))
            # Not through the log, which breaks lines at the width of the terminal.
            print(f"\n{format_layers(model, context.get_optimizer())}\n", flush=True)
        trainer = context.create_trainer(unit, reader, eval_units, eval_readers)
        checkpoints = context.get_checkpoint_manager()
        assert isinstance(checkpoints, VerifiedCheckpointManager)
        stoppable = StoppableTask(trainer, reader, checkpoints, gangs, context.resolver.resolve(HostGroup))

        compare = create_comparison(context, criterion) if isinstance(criterion, SupervisedCriterion) else None
        summarizer = Summarizer(context, probing, task.modality, compare)

        return SummarizedTask(stoppable, summarizer, rank=gangs.root.rank, album=album)


def create_comparison(context: RecipeContext, criterion: SupervisedCriterion[Any]) -> Callable[[], dict[str, Scores]]:
    """What reads the scores of the last and the best checkpoint at the end of a run."""
    known = {descriptor.name: descriptor.display_name for descriptor in context.resolver.collection.resolve(MetricDescriptor)}
    displayed = {known[name]: name for name in (*criterion.score_names, "loss") if name in known}
    splits = context.get_config_as(TrainConfig).validation.splits

    return partial(compare_checkpoints, context.output_dir, find_checkpoints(context), splits, displayed)


def find_checkpoints(context: RecipeContext) -> Path:
    """Where the checkpoints of a run lie."""
    return context.resolver.resolve(CheckpointDir).path or context.output_dir / "checkpoints"
