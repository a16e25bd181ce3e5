"""Export recipe: writes a checkpoint in a format that others read, and compares what was written with our own model."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.task import Task as Runnable
from typing_extensions import override

from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.exporting.export import check_place, export_model
from d2v_plugin.verbs.common import RecipeTask
from d2v_plugin.verbs.export.config import ExportConfig
from d2v_plugin.verbs.extensions import ExtensibleRecipe, Extension


@final
class ExportRecipe(ExtensibleRecipe):
    """Exports a checkpoint, on one process.

    The output directory is what others get: logs and configuration of the command stay out of it.
    """

    config_kls = ExportConfig

    def __init__(self, extensions: Sequence[Extension] = (), *, force: bool = False) -> None:
        """
        :param force: replace what an earlier export wrote.
        """
        super().__init__(extensions)
        self._force = force
        self._out = Path()
        self._scratch = tempfile.TemporaryDirectory(prefix="d2v_export_")

    @override
    def resolve_arguments(self, args: Namespace) -> Namespace:
        """
        :raises CheckpointError: the output directory has something already.
        :raises RecipeError: as for the base class.
        """
        if args.output_dir is not None:
            self._out = args.output_dir
            check_place(self._out, force=self._force)
            args = Namespace(**vars(args) | {"output_dir": Path(self._scratch.name)})

        return super().resolve_arguments(args)

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        return ExportTask(
            context.get_config_as(ExportConfig), self._out, self._force, context.resolver, context.gangs.root.rank == 0
        )


@final
@dataclass(eq=False)
class ExportTask(RecipeTask):
    """Writes the folder, then says what is in it and how far it is from our own model."""

    config: ExportConfig
    out: Path
    force: bool
    resolver: DependencyResolver
    is_first: bool

    @override
    def run(self) -> None:
        if not self.is_first:
            return
        config = self.config
        assert config.format is not None
        with torch.inference_mode(False):
            export = export_model(
                config.checkpoint.choose(),
                self.out,
                format=config.format,
                resolver=self.resolver,
                weights=config.checkpoint.weights,
                head=config.head,
                force=self.force,
            )
        print_unwrapped("\n".join(export.describe()))
