"""Mistakes of the user, told in one line.

fairseq2 answers a mistyped key with a chain of five exceptions. What the user needs is the file, the key, and what may stand
there; :func:`explain` finds those, or returns None for errors that are not the user's and deserve their traceback.
"""

from __future__ import annotations

import errno
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from fairseq2.assets import AssetSourceNotFoundError
from fairseq2.cluster import ClusterNotKnownError
from fairseq2.datasets import DatasetError, DatasetFamily, DatasetFamilyNotKnownError, DatasetNotKnownError
from fairseq2.error import OperationalError
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.models import ModelArchitectureNotKnownError, ModelFamily, ModelFamilyNotKnownError, ModelNotKnownError
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.recipe import error as recipe_error
from fairseq2.recipe.component import ComponentNotKnownError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import ValidationError
from fairseq2.utils.yaml import YamlError, YamlLoader
from ruamel.yaml.error import MarkedYAMLError
from torch.optim import Optimizer

from d2v_plugin.core.errors import CheckpointError, causes
from d2v_plugin.core.registry import registered_names, unknown_component, unknown_name

# Their own message is one clear line already.
SELF_EXPLAINING = (
    recipe_error.DatasetTypeNotValidError,
    recipe_error.DeviceTypeNotSupportedError,
    recipe_error.FSDPNotSupportedError,
    recipe_error.GangTopologyError,
    recipe_error.HSDPTopologyError,
    recipe_error.HuggingFaceNotSupportedError,
    recipe_error.LayerwiseACNotSupportedError,
    recipe_error.ManualGradScalingNotSupportedError,
    recipe_error.ModelTypeNotValidError,
    recipe_error.RecipeError,
    recipe_error.TorchCompileNotSupportedError,
    AssetSourceNotFoundError,
    CheckpointError,
    ValidationError,
)


def explain(ex: BaseException, resolver: DependencyResolver, args: Namespace) -> str | None:
    """Describe a mistake of the user in one line; None if ``ex`` is not one.

    :param resolver: knows what is registered.
    :param args: fairseq2's parsed command line.
    """
    line = _explain(ex, resolver, args)

    return None if line is None else " ".join(line.split())


def _explain(ex: BaseException, resolver: DependencyResolver, args: Namespace) -> str | None:
    match ex:
        case recipe_error.RecipeConfigParseError():
            return _explain_config(ex, resolver, args)
        case ComponentNotKnownError():
            return str(unknown_component(resolver, ex))
        case recipe_error.OptimizerNotKnownError():
            return unknown_name("optimizer", ex.name, registered_names(resolver, Optimizer))
        case recipe_error.LRSchedulerNotKnownError():
            return unknown_name("lr scheduler", ex.name, registered_names(resolver, LRScheduler))
        case ModelFamilyNotKnownError():
            return unknown_name("model family", ex.name, _names(resolver, ModelFamily))
        case ModelArchitectureNotKnownError():
            return unknown_name(f"arch of the model family `{ex.family}`", ex.arch, family_archs(resolver, ex.family or ""))
        case DatasetFamilyNotKnownError():
            return unknown_name("dataset family", ex.name, _names(resolver, DatasetFamily))
        case ModelNotKnownError():
            return f"`{ex.name}` is not a known model; `python -m fairseq2.assets list --kind model` lists them."
        case DatasetNotKnownError():
            return f"`{ex.name}` is not a known dataset; for a manifest set `dataset.family` and its `path` instead."
        case recipe_error.SplitNotKnownError():
            return unknown_name(f"split of {ex.dataset_name}", ex.split, ex.available_splits)
        case recipe_error.MetricNotKnownError():
            known = (descriptor.name for descriptor in resolver.collection.resolve(MetricDescriptor))
            return unknown_name("metric", ex.name, known)
        case ClusterNotKnownError():
            return unknown_name("cluster", ex.cluster, ["auto", "none", *ex.known_clusters])
        case recipe_error.ModelCheckpointNotFoundError():
            return f"`model.path`: {ex.path} does not point to a model checkpoint."
        case OperationalError() if isinstance(ex.__cause__, OSError):
            return _explain_os_error(ex.__cause__)
        case FileNotFoundError() | NotADirectoryError() | PermissionError() | FileExistsError() | IsADirectoryError():
            return _explain_os_error(ex)
        case DatasetError():
            return " ".join(str(cause) for cause in causes(ex))
        case _ if isinstance(ex, SELF_EXPLAINING):
            return str(ex)
    return None


def family_archs(resolver: DependencyResolver, family_name: str) -> list[str]:
    """The names of the archs of a model family, sorted."""
    family = resolver.maybe_resolve(ModelFamily, key=family_name)

    return [] if family is None else sorted(str(key) for key in resolver.iter_keys(family.config_kls))


def _names(resolver: DependencyResolver, kls: type[object]) -> list[str]:
    return [str(key) for key in resolver.iter_keys(kls)]


def _explain_os_error(ex: OSError) -> str | None:
    if ex.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{ex.filename or 'the output directory'}: {ex.strerror}. Make room and repeat the command."
    # Only mistakes with a path: an error of the network happens to a correct configuration, too.
    if ex.filename is None or isinstance(ex, BlockingIOError | ConnectionError | InterruptedError):
        return None

    return f"{ex.filename}: {ex.strerror}."


def _explain_config(ex: BaseException, resolver: DependencyResolver, args: Namespace) -> str:
    chain = list(causes(ex))
    if any(isinstance(cause, StructureError) for cause in chain):
        return _explain_structure([str(cause) for cause in chain], resolver, args)
    if args.config_file is not None and not args.config_file.is_file():
        return f"{args.config_file} does not exist or is not a file{_similar_files(args.config_file)}."
    if any(isinstance(cause, YamlError) for cause in chain):
        mark = next((c for c in chain if isinstance(c, MarkedYAMLError) and c.problem_mark is not None), None)
        where = "" if mark is None else f", line {mark.problem_mark.line + 1}: {mark.problem}"
        return f"{args.config_file} is not valid YAML{where}."

    return " ".join(str(cause) for cause in chain)


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    known = sorted(str(file) for file in path.parent.glob("*.yaml"))

    return f"; in that directory there are: {', '.join(known)}" if known else ""


def _explain_structure(messages: Sequence[str], resolver: DependencyResolver, args: Namespace) -> str:
    path = [key for message in messages for key in _keys_in(message)]
    key = ".".join(path)
    source = f"{args.config_file}: " if args.config_file is not None else ""

    extra = re.search(r"fields of `<class '([^']+)'>`, but it contains extra key\(s\) (.+)\.$", messages[-1])
    if extra is not None:
        known = _field_names(extra[1])
        section = f" of `{key}`" if path else ""
        return source + " ".join(unknown_name(f"key{section}", name, known) for name in extra[2].split(", "))

    value = _look_up(_user_config(resolver, args), path)
    given = "" if value is None else f"`{value}` is not valid: "

    return f"{source}`{key or 'the configuration'}`: {given}{_expectation(messages)}"


def _keys_in(message: str) -> list[str]:
    """The part of the dotted path of the offending key that one of fairseq2's messages tells, the outermost the first."""
    for pattern in (
        r"^`([\w.]+)` field cannot be structured",
        r"^`([\w.]+)` cannot be structured",
        r"at index (\d+) cannot be structured",
        r"^Value of the (\S+) key cannot be structured",
    ):
        if (found := re.search(pattern, message)) is not None:
            return found[1].split(".")

    return []


def _expectation(messages: Sequence[str]) -> str:
    parsed_as = (re.search(r"^`obj` cannot be parsed as (.+)\.$", message) for message in reversed(messages))
    kind = next((found[1] for found in parsed_as if found is not None), None)
    message = messages[-1].split("\n")[0] if kind is None else f"Value must be of type {kind}."

    # "`<class 'int'>`" -> "int"
    message = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", message)

    return message.replace("`", "").replace("typing.", "").replace("collections.abc.", "")


def _field_names(qualified_name: str) -> list[str]:
    module_name, _, name = qualified_name.rpartition(".")
    kls = getattr(sys.modules.get(module_name), name, None)

    return [field.name for field in fields(kls)] if is_dataclass(kls) else []


def _user_config(resolver: DependencyResolver, args: Namespace) -> object:
    """The file that the user wrote, below the overrides of the command line."""
    config: object = {}
    merger = StandardConfigMerger()
    if args.config_file is not None:
        config = merger.merge(config, resolver.resolve(YamlLoader).load(args.config_file)[0])
    for overrides in args.config_overrides or []:
        config = merger.merge(config, overrides)

    return config


def _look_up(config: object, path: Sequence[str]) -> object:
    for key in path:
        if isinstance(config, Mapping):
            config = config.get(key)
        elif isinstance(config, list) and key.isdigit() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None

    return config
