"""Our checkpoint manager in the place of fairseq2's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from fairseq2.checkpoint import CheckpointDir, CheckpointManager
from fairseq2.gang import Gangs
from fairseq2.recipe.config import GangSection, RegimeSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.threading import ThreadPool

from d2v_plugin.core.fairseq2_private import remove_provider
from d2v_plugin.core.remote import place
from d2v_plugin.core.store import teach_fairseq2
from d2v_plugin.training.checkpoints.manager import VerifiedCheckpointManager
from d2v_plugin.training.checkpoints.resume import Resume
from d2v_plugin.training.host_group import HostGroup, Timeouts
from d2v_plugin.weights.run_folder import RunFolder


def register_checkpoints(container: DependencyContainer, resume: Resume) -> None:
    """Take the place of fairseq2's checkpoint manager, which it registers before a recipe registers its own objects."""

    def create_hosts(resolver: DependencyResolver) -> HostGroup:
        section = resolver.resolve(GangSection)
        timeouts = {
            phase: timedelta(minutes=getattr(section, f"{phase}_timeout", None) or section.timeout)
            for phase in ("start", "step", "save")
        }
        return HostGroup(resolver.resolve(Gangs).root, Timeouts(**timeouts))

    def create_manager(resolver: DependencyResolver) -> CheckpointManager:
        regime = resolver.resolve(RegimeSection)
        every, after = regime.publish_metrics_every_n_steps, regime.publish_metrics_after_n_steps
        folder = resolver.resolve(CheckpointDir).path or RunFolder(resolver.resolve(Path)).checkpoints
        return VerifiedCheckpointManager(
            place(folder),
            resolver.resolve(Gangs),
            resolver.resolve(HostGroup),
            resolver.resolve(ThreadPool),
            resume=resume,
            keep_hours=getattr(regime, "keep_checkpoints_for_hours", None),
            last_step=regime.num_steps,
            publishes=lambda step_nr: every is not None and step_nr > after and step_nr % every == 0,
        )

    teach_fairseq2()
    container.register(HostGroup, create_hosts, singleton=True)
    remove_provider(container, CheckpointManager)
    container.register(CheckpointManager, create_manager, singleton=True)
