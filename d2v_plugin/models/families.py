"""The model families of this package, by the names under which recipes and checkpoints know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairseq2.composition import register_model_family
from fairseq2.models import ModelFamily
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.models.base import EncoderModel, drop_criterion
from d2v_plugin.models.data2vec1 import archs as data2vec1_archs
from d2v_plugin.models.data2vec1 import factory as data2vec1
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2 import archs as data2vec2_archs
from d2v_plugin.models.data2vec2 import factory as data2vec2
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.parallel import apply_activation_checkpointing, apply_fsdp, compile_blocks

AnyConfig = Data2VecConfig | Data2Vec1ModelConfig
"""The configuration of a model of this package."""

AnyModel = Data2VecModel | Data2Vec1Model
"""A model of this package."""


@dataclass(frozen=True)
class Family:
    """A kind of model."""

    model_kls: type[EncoderModel]
    """The class of its models."""

    config_kls: type[AnyConfig]
    """The class of their configurations."""

    create: Callable[[Any], AnyModel]
    """Builds a model with the original's initialisation."""

    archs: Mapping[str, Callable[[], Any]]
    """Named configurations."""


FAMILIES: Final[Mapping[str, Family]] = {
    "data2vec": Family(Data2VecModel, Data2VecConfig, data2vec2.create_model, data2vec2_archs.ARCHS),
    "data2vec1": Family(Data2Vec1Model, Data2Vec1ModelConfig, data2vec1.create_model, data2vec1_archs.ARCHS),
}


def create_model(config: AnyConfig) -> AnyModel:
    """Build a new model with the original's initialisation.

    :raises ValueError: the configuration makes no model.
    """
    return FAMILIES[family_of(config)].create(config)


def family_of(config: AnyConfig) -> str:
    """The name of the family that a configuration belongs to."""
    return next(name for name, family in FAMILIES.items() if isinstance(config, family.config_kls))


def is_family(name: object) -> bool:
    """Tell whether something that a file says, of whatever type, is the name of a family."""
    return isinstance(name, str) and name in FAMILIES


def is_registered(container: DependencyContainer) -> bool:
    """Tell whether fairseq2 found this package's entry point; in a mere checkout, not installed, there is none."""
    return any(key in FAMILIES for key in container.iter_keys(ModelFamily))


def register_models(container: DependencyContainer) -> None:
    """Register the families and their archs with fairseq2."""
    for name, family in FAMILIES.items():
        register_model_family(
            container,
            name,
            family.model_kls,
            family.config_kls,
            factory=family.create,  # type: ignore[arg-type]  # a family's own configuration only
            state_dict_converter=drop_criterion,
            compiler=compile_blocks,
            fsdp_applier=apply_fsdp,
            layerwise_ac_applier=apply_activation_checkpointing,
        )
        arch = ConfigRegistrar[Any](container, family.config_kls)
        for arch_name, config in family.archs.items():
            arch(arch_name)(config)
