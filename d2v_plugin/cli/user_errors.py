"""Mistakes of the user, told in one line.

fairseq2 answers a mistyped key with a chain of five exceptions. What the user needs is the file, the key, and what may stand
there; :func:`explain` finds those, or returns None for errors that are not the user's and deserve their traceback.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from errno import EACCES, EEXIST, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EREMOTE, EROFS

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
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import ValidationError, ValidationResult
from safetensors import SafetensorError
from torch.optim import Optimizer

from d2v_plugin.cli.words import join_mistakes
from d2v_plugin.core.errors import FULL, CheckpointError, causes
from d2v_plugin.core.registry import registered_names, unknown_component, unknown_name
from d2v_plugin.verbs.inheritance import read_whole
from d2v_plugin.verbs.recipe_files import look_up, merge

# Their own message is one clear line already.
SELF_EXPLAINING = (
    recipe_error.DeviceTypeNotSupportedError,
    recipe_error.FSDPNotSupportedError,
    recipe_error.GangTopologyError,
    recipe_error.HSDPTopologyError,
    recipe_error.HuggingFaceNotSupportedError,
    recipe_error.LayerwiseACNotSupportedError,
    recipe_error.ManualGradScalingNotSupportedError,
    recipe_error.RecipeError,
    recipe_error.TorchCompileNotSupportedError,
    AssetSourceNotFoundError,
    CheckpointError,
)

# A path that is not what it should be; an error of the network or a full disk happens to a correct configuration, too.
_PATH_ERRORS = (ENOENT, EREMOTE, ENOTDIR, EISDIR, EEXIST, EACCES, EPERM, EROFS, ENAMETOOLONG, ELOOP)
_OS_ERROR = re.compile(r"\(os error (\d{1,3})\)")

_EXTRA_KEYS = re.compile(r"fields of `<class '([^']+)'>`, but it contains extra key\(s\) (.+)\.$")


def explain(ex: BaseException, resolver: DependencyResolver, args: Namespace) -> str | None:
    """Describe a mistake of the user in one line; None if ``ex`` is not one.

    :param resolver: knows what is registered.
    :param args: fairseq2's parsed command line.
    """
    text = _explain(ex, resolver, args)

    return None if text is None else tidy(text)


def explain_unreadable(ex: BaseException, args: Namespace) -> str:
    """Describe why a configuration could not be read where nothing better is known: whatever happens there is its mistake."""
    source = "The command line" if args.config_file is None else str(args.config_file)
    reason = next((str(cause) for cause in reversed([*causes(ex)]) if str(cause)), "no reason is given")

    return tidy(f"{source} is no configuration of this recipe: {type(ex).__name__}: {reason:.500}")


def tidy(text: str) -> str:
    """One mistake a line, without the blanks of its origin."""
    return "\n  ".join(" ".join(line.split()) for line in text.strip().split("\n"))


def _explain(ex: BaseException, resolver: DependencyResolver, args: Namespace) -> str | None:
    match ex:
        case recipe_error.RecipeConfigParseError():
            return _explain_config(ex, args)
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
        case recipe_error.DatasetTypeNotValidError():
            return (
                f"`{ex.section_name}.family` opens {ex.kls.__name__}, but `task.name` reads {ex.valid_kls.__name__}; "
                "change one of them."
            )
        case recipe_error.ModelTypeNotValidError():
            return f"`model.family`: {ex.kls.__name__} cannot be trained here; `fairseq2 recipe list` names what can."
        case recipe_error.ModelCheckpointNotFoundError():
            return f"`model.path`: {ex.path} does not point to a model checkpoint."
        case OperationalError() if isinstance(ex.__cause__, OSError):
            return _explain_os_error(ex.__cause__)
        case OSError():
            return _explain_os_error(ex)
        case ValidationError():
            return join_mistakes([*list_mistakes(ex.result)])
        case DatasetError():
            return " ".join(str(cause) for cause in causes(ex))
        case _ if isinstance(ex, SELF_EXPLAINING):
            return str(ex)
    return next(filter(None, map(_explain_full_disk, causes(ex, contexts=True))), None)


def family_archs(resolver: DependencyResolver, family_name: str) -> list[str]:
    """The names of the archs of a model family, sorted."""
    family = resolver.maybe_resolve(ModelFamily, key=family_name)

    return [] if family is None else sorted(str(key) for key in resolver.iter_keys(family.config_kls))


def _names(resolver: DependencyResolver, kls: type[object]) -> list[str]:
    return [str(key) for key in resolver.iter_keys(kls)]


def _explain_os_error(ex: OSError) -> str | None:
    if ex.filename is not None and ex.errno in _PATH_ERRORS:
        return f"{ex.filename!s:.300}: {ex.strerror}."

    return _explain_full_disk(ex)


def _explain_full_disk(ex: BaseException) -> str | None:
    """Tell if there was no room for what was written; safetensors and PyTorch do not say it by an OSError."""
    place, reason, found = "the output directory, or the standard output", "", _OS_ERROR.search(str(ex))
    if isinstance(ex, OSError) and ex.errno in FULL:
        place, reason = ex.filename or place, ex.strerror or str(ex)
    elif isinstance(ex, SafetensorError) and found is not None and int(found[1]) in FULL:
        reason = os.strerror(int(found[1]))
    elif isinstance(ex, RuntimeError) and "PytorchStreamWriter failed writing" in str(ex):
        reason = "what was written there is not whole"

    return f"{place}: {reason}. Make room and repeat the command." if reason else None


def list_mistakes(result: ValidationResult) -> list[str]:
    """All mistakes of a configuration, each with its key."""
    return [f"`{key}`: {message}" if key else message for key, message in _mistakes_in(result, "")]


def _mistakes_in(result: ValidationResult, key: str) -> Iterator[tuple[str, str]]:
    yield from ((key, message) for message in result.errors)
    for name, inner in result.sub_results.items():
        # `[0]` of a list and `['image']` of a mapping as they are set: `probes.0`, `modalities.image`.
        yield from _mistakes_in(inner, ".".join(filter(None, (key, name.strip("[']")))))


def _explain_config(ex: BaseException, args: Namespace) -> str:
    chain = list(causes(ex))
    if any(isinstance(cause, StructureError) for cause in chain):
        return _explain_structure([str(cause) for cause in chain], args)

    return " ".join(str(cause) for cause in chain)


def _explain_structure(messages: Sequence[str], args: Namespace) -> str:
    path = [key for message in messages for key in _keys_in(message)]
    key = ".".join(path)
    extra = _EXTRA_KEYS.search(messages[-1])
    if extra is not None:
        known = _field_names(extra[1])
        section = f" of `{key}`" if path else ""
        return "\n".join(
            _source(args, [*path, name]) + unknown_name(f"key{section}", name, known) for name in extra[2].split(", ")
        )

    value = look_up(merge([*_file_of(args), *(args.config_overrides or [])]), key)
    given = "" if value is None else f"`{value!s:.200}` is not valid: "

    return f"{_source(args, path)}`{key or 'the configuration'}`: {given}{_expectation(messages)}"


def _source(args: Namespace, path: Sequence[str]) -> str:
    """Name where a key was written: on the command line, which has the last word, or in the recipe file."""
    if look_up(merge(args.config_overrides or []), ".".join(path)) is not None:
        return "--config: "

    return "" if args.config_file is None else f"{args.config_file}: "


def _file_of(args: Namespace) -> Sequence[Mapping[str, object]]:
    return [] if args.config_file is None else read_whole(args.config_file)


def place_of(ex: BaseException) -> tuple[list[str], list[str]] | None:
    """Where the configuration cannot be read: the path of a section, and those of its keys that are wrong.

    :returns: None if ``ex`` does not tell, or if it is in a list.
    """
    messages = [str(cause) for cause in causes(ex)]
    path = [key for message in messages for key in _keys_in(message)]
    extra = _EXTRA_KEYS.search(messages[-1])
    if extra is not None:
        section, names = path, extra[2].split(", ")
    else:
        section, names = path[:-1], path[-1:]

    return None if not names or any(key.isdecimal() for key in path) else (section, names)


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
