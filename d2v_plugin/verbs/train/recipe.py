"""The training recipe: puts model, criterion, task and probes together for fairseq2's trainer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import fairseq2.recipe  # noqa: F401  # fairseq2.evaluator cannot be imported before it
import torch
from fairseq2.datasets import DataReader
from fairseq2.evaluator import EvalUnit
from fairseq2.logging import log as file_log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import ModelTypeNotValidError, RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task as Runnable
from fairseq2.trainer import Trainer
from torch import nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.core.registry import create
from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.criteria.base import Criterion, criterion_of
from d2v_plugin.criteria.supervised.base import SupervisedConfig, SupervisedCriterion
from d2v_plugin.data.ahead import copy_ahead
from d2v_plugin.data.composed_readers import find_mixtures, name_sample
from d2v_plugin.data.mixture import Mixture
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.evaluation.unit import EvaluationUnit
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.probing.section import Probing
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig
from d2v_plugin.training.checkpoints.hold import HoldObserver
from d2v_plugin.training.checkpoints.manager import VerifiedCheckpointManager
from d2v_plugin.training.checkpoints.registration import register_checkpoints
from d2v_plugin.training.checkpoints.resume import Resume
from d2v_plugin.training.health.collapse import CollapseObserver
from d2v_plugin.training.health.incidents import Incidents, SkipObserver
from d2v_plugin.training.health.spikes import SpikeObserver
from d2v_plugin.training.health.update_guard import UpdateGuard
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.training.layer_groups import format_layers
from d2v_plugin.training.malloc import keep_freed_memory
from d2v_plugin.training.memory import MemoryObserver
from d2v_plugin.training.numerics import set_numerics
from d2v_plugin.training.observers import EmaObserver, Observer
from d2v_plugin.training.picture_recorder import PictureRecorder
from d2v_plugin.training.recorders.files import survive_full_disk
from d2v_plugin.training.recorders.registration import register_recorders
from d2v_plugin.training.recorders.screen import TrainingScreen
from d2v_plugin.training.run_lock import lock_run
from d2v_plugin.training.stopping import StoppableTask
from d2v_plugin.training.unit import CriterionUnit
from d2v_plugin.verbs.common import open_task
from d2v_plugin.verbs.extensions import ExtensibleRecipe, Extension
from d2v_plugin.verbs.inheritance import read_whole
from d2v_plugin.verbs.recipe_files import look_up, merge
from d2v_plugin.verbs.train.arguments import complete_arguments
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.opening import describe_start
from d2v_plugin.verbs.train.summary import Summarizer, find_checkpoints
from d2v_plugin.weights.loading import load_weights
from d2v_plugin.weights.provenance import check_labels, describe_provenance, write_provenance
from d2v_plugin.weights.run_folder import RunFolder


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
        self._notes: list[str] = []
        self._task: Task[Any, Any] | None = None

    @override
    def register(self, container: DependencyContainer) -> None:
        super().register(container)
        survive_full_disk()
        register_checkpoints(container, self._resume)
        register_recorders(container, trains=True)

    @override
    def resolve_arguments(self, args: Namespace) -> Namespace:
        """
        :raises RecipeError: as for the base class, or another run writes to the output directory.
        """
        recipe = {} if args.config_file is None else merge(read_whole(args.config_file))
        args = super().resolve_arguments(args)
        args, self._notes = complete_arguments(args, look_up(recipe, "regime.num_steps"))
        if args.output_dir is not None and not args.dump_config:
            folders = [args.output_dir, *([] if args.checkpoint_dir is None else [place(args.checkpoint_dir)])]
            for folder in folders:
                if isinstance(folder, RemotePath):
                    folder.check_writable()
            lock_run(*(folder for folder in folders if not isinstance(folder, RemotePath)))

        return args

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
        allow_tf32, deterministic = config.common.torch.allow_tf32, config.trainer.deterministic
        set_numerics(context.device, deterministic=deterministic, allow_tf32=allow_tf32)
        if newly_initialized and config.init.path is not None:
            load_weights(model, config.init.path, weights=config.init.weights)

        section = config.criterion
        criterion = create(context.resolver, Criterion, section)
        labels = None
        if isinstance(criterion, SupervisedCriterion):
            task = self._open_task(context)
            check_label_kind(task, criterion, config)
            labels = task.labels
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
        task = self._open_task(context)
        # Which kernel is the fastest may differ from run to run, and with it the order of sums.
        torch.backends.cudnn.benchmark = task.has_fixed_shapes and not torch.are_deterministic_algorithms_enabled()
        train_reader = task.create_train_reader(gangs, seed)
        if config.pictures.num_embedded > 0:
            task.open_rows(config.probing.valid_split)
        probing = Probing(context.resolver, config.probing, task.create_labelled_reader)
        eval_readers: list[DataReader[Any]] = [probing.create_reader(gangs)] if probing.probes else []
        eval_readers += [task.create_labelled_reader(gangs, split) for split in _scored_splits(config)]

        model = context.get_model_as(EncoderModel)
        task.check_model(model)
        observers = create_observers(context, task, train_reader, probing)
        unit = create_unit(context, observers, find_mixtures(train_reader, task.modality))
        eval_units = create_eval_units(context, task, probing)
        for note in self._notes:
            log.info("{}", note)
        if gangs.root.rank == 0:
            write_provenance(find_checkpoints(context), describe_provenance(config, task.labels))
            start = describe_start(context, model, find_checkpoints(context))
            layers = format_layers(model, context.get_optimizer())
            file_log.info("Start:\n{}\n\n{}", start, layers)
            print_unwrapped(f"\n{start}\n")

        def create_trainer(reader: DataReader[Batch]) -> Trainer:
            return context.create_trainer(unit, reader, eval_units, eval_readers)

        hosts = context.resolver.resolve(HostGroup)

        return StoppableTask(
            create_trainer, copy_ahead(train_reader, gangs.device), get_checkpoints(context), observers, gangs, hosts
        )

    def _open_task(self, context: RecipeContext) -> Task[Any, Any]:
        """Open the task, once for all: who needs its labels does not read them again."""
        if self._task is None:
            self._task = open_task(context, context.get_config_as(TrainConfig).task)

        return self._task


def check_label_kind(task: Task[Any, Any], criterion: SupervisedCriterion[Any], config: TrainConfig) -> None:
    """:raises RecipeError: the criterion learns from other labels than the task reads."""
    kind, kinds = task.label_kind, criterion.label_kinds
    if kind is not None and kinds and kind not in kinds:
        raise RecipeError(
            f"`task.name: {config.task.name}` reads {kind}, but `criterion.name: {config.criterion.name}` learns from "
            f"{' or '.join(kinds)}; change one of them."
        )


def get_checkpoints(context: RecipeContext) -> VerifiedCheckpointManager:
    """The checkpoints of the run."""
    checkpoints = context.get_checkpoint_manager()
    assert isinstance(checkpoints, VerifiedCheckpointManager)

    return checkpoints


def create_observers(
    context: RecipeContext, task: Task[Any, Any], train_reader: DataReader[Batch], probing: Probing
) -> list[Observer]:
    """Create those who are told what training does, in the order in which they are told.

    1. The teacher follows the student before anything can end the run, and before both are drawn.
    2. Checkpoints are held while updates are skipped, before the third ends the run.
    3. Incidents know the samples of an update before those below write them down.
    4. Skipped updates end the run when three come in a row; nobody below is told of the last one.
    5. Spikes are looked for in what was not skipped.
    6. The screen shows the update, on rank 0.
    7. Collapse is judged on rank 0, where it waits for the device: reports that need not wait are out by then.
    8. Memory is read, on rank 0, once the first updates have taken what they need.
    9. Pictures show, on rank 0, the student and the teacher after the update. They take the most time, and come after all else.
    10. The summary has something to do at the end alone, on rank 0: it says where the results are, the last pictures among them.
    """
    config = context.get_config_as(TrainConfig)
    model, output_dir, rank = context.get_model_as(EncoderModel), context.output_dir, context.gangs.root.rank
    incidents = Incidents(output_dir, rank, partial(name_sample, train_reader))
    hold = HoldObserver(get_checkpoints(context))
    observers: list[Observer] = [EmaObserver(model), hold, incidents, SkipObserver(incidents), SpikeObserver(incidents)]
    if rank != 0:
        return observers
    observers.append(context.resolver.resolve(TrainingScreen))

    # One rank is enough: all collapse together.
    if config.guard.collapse_every_n_steps is not None:
        observers.append(CollapseObserver(config.guard.collapse_every_n_steps))
    observers.append(MemoryObserver(context.device))
    # One process cannot draw a sharded model.
    if config.pictures.enabled and context.gangs.sdp.size == 1:
        spell = task.read_spelling()
        observers.append(PictureRecorder(config.pictures, model, output_dir, seed=config.common.seed, spell=spell))
    observers.append(Summarizer(context, probing, task))

    return observers


def create_unit(context: RecipeContext, observers: Sequence[Observer], mixtures: Mapping[Modality, Mixture]) -> CriterionUnit:
    """Create what computes an update, with the guard that decides whether it counts."""
    model, criterion = context.get_data_parallel_model(), criterion_of(context.get_model_as(EncoderModel))
    assert criterion is not None
    if context.gangs.device.type == "cpu":
        keep_freed_memory()  # before the optimizer makes room for its moments
    guard = UpdateGuard(observers, rank=context.gangs.root.rank)
    guard.attach(model, context.get_optimizer())

    seed = context.get_config_as(TrainConfig).common.seed
    return CriterionUnit(model, criterion, guard, seed=seed, mixtures=mixtures)


def create_eval_units(context: RecipeContext, task: Task[Any, Any], probing: Probing) -> list[EvalUnit[Any]]:
    """Create what measures the model during training: the probes, if there are any, and the scores of labelled splits."""
    model, gangs = context.get_model_as(EncoderModel), context.gangs
    units: list[EvalUnit[Any]] = [probing.create_unit(model, gangs)] if probing.probes else []
    for split in _scored_splits(context.get_config_as(TrainConfig)):
        criterion = criterion_of(model)
        assert isinstance(criterion, SupervisedCriterion)
        report = RunFolder(context.output_dir).predictions / f"{split}.tsv"
        locate = partial(task.locate, split)
        units.append(EvaluationUnit(model, criterion, gangs, split=split, report=report, locate=locate))

    return units


def _scored_splits(config: TrainConfig) -> Sequence[str]:
    """The labelled splits that a fine-tuned model is scored on; none in pre-training."""
    return config.validation.splits if isinstance(config.criterion.config, SupervisedConfig) else ()
