"""The training recipe: puts model, criterion, task and probes together for fairseq2's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, final

from fairseq2.datasets import DataReader
from fairseq2.evaluator import EvalUnit
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import ModelTypeNotValidError, RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task as Runnable
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from d2v_plugin.criteria.base import Criterion
from d2v_plugin.extensions import Extension, register_all
from d2v_plugin.loading import load_weights
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.registry import create
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig
from d2v_plugin.training.config import TrainConfig
from d2v_plugin.training.probing import Probing
from d2v_plugin.training.summary import SummarizedTask, Summarizer
from d2v_plugin.training.unit import CriterionUnit


@final
class TrainRecipe(Recipe):
    """Trains a model on a task with a criterion, all three named by the configuration."""

    def __init__(self, extensions: Sequence[Extension] = ()) -> None:
        """
        :param extensions: functions that register more, such as an extension file's ``setup_fairseq2_extension``.
        """
        self._extensions = extensions

    @property
    @override
    def config_kls(self) -> type[object]:
        return TrainConfig

    @override
    def register(self, container: DependencyContainer) -> None:
        register_all(container, self._extensions)

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        # In an update of one modality the frontends of the others get no gradients.
        return not isinstance(context.get_config_as(TrainConfig).task.config, MultimodalPretrainingConfig)

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
        try:
            criterion.build(model)
        except ValueError as ex:
            raise RecipeError(f"criterion `{section.name}`: {ex}") from ex
        model.criterion = criterion

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
        reader = task.create_train_reader(dataset, gangs, seed)
        probing = Probing(context.resolver, config.probing, partial(task.create_labelled_reader, dataset))
        probe_readers: list[DataReader[Any]] = [probing.create_reader(gangs)] if probing.probes else []

        model = context.get_model_as(EncoderModel)
        criterion = model.criterion
        assert isinstance(criterion, Criterion)
        unit = CriterionUnit(context.get_data_parallel_model(), criterion, seed=seed)

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            criterion.after_step(model, unit.step_nr)

        # A hook runs once per successful step and before that step's checkpoint, whatever the gradient accumulation.
        context.get_optimizer().register_step_post_hook(after_step)

        probe_units: list[EvalUnit[Any]] = [probing.create_unit(model, gangs)] if probing.probes else []
        trainer = context.create_trainer(unit, reader, probe_units, probe_readers)

        return SummarizedTask(trainer, Summarizer(context, probing, task.modality), rank=gangs.root.rank)
