"""Lets fairseq2 be imported without the libraries that it imports for what few runs use, which took most of the time of a start.

While ``fairseq2.recipe`` is imported, stand-ins answer for these libraries, which are imported when one of their names is used;
the rest of the process never sees a stand-in. Of torcheval fairseq2 needs a few base classes, which are imported without the
packages around them. Its file systems of stores are opened when an address asks for one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):
        """Nothing is imported here but Python's own: `doctor` answers where all else is broken."""
        return method


UNUSED: Final = (
    *("transformers", "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni", "huggingface_hub", "huggingface_hub.constants"),
    *("huggingface_hub.errors", "torch.utils.tensorboard", "tiktoken", "tiktoken.load", "sacrebleu"),
    *("sacrebleu.metrics.bleu", "sacrebleu.metrics.chrf", "clusterscope", "tqdm.auto"),
)
"""Modules that fairseq2 imports, and takes names of only for annotations or in functions; not wandb, whose class is a key."""

PACKAGES: Final[Mapping[str, Mapping[str, str]]] = {
    "torcheval.metrics": {
        "Metric": "torcheval.metrics.metric",
        **{name: f"torcheval.metrics.aggregation.{name.lower()}" for name in ("Max", "Mean", "Min", "Sum", "Throughput")},
    },
    "torcheval.metrics.aggregation": {},
    "torcheval.metrics.functional": {},
    "torcheval.metrics.functional.aggregation": {},
}
"""Packages that import all of their modules, and where the names are that fairseq2 takes from them."""


def lighten_fairseq2() -> None:
    """Let the next import of ``fairseq2.recipe`` be a light one; nothing happens where it has been imported."""
    if "fairseq2.recipe" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds ``fairseq2.recipe``, once."""

    @override
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "fairseq2.recipe":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)

        return spec


class _Loader(Loader):
    """Runs a module, and what fairseq2 is composed of, among stand-ins."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    @override
    def exec_module(self, module: ModuleType) -> None:
        with _stand_ins():
            self._loader.exec_module(module)
            importlib.import_module("fairseq2.recipe.composition")
        files: Any = sys.modules["fairseq2.file_system"]
        open_now = files.filesystem
        files.filesystem = lambda protocol, **options: (_FileSystem if protocol == "s3" else open_now)(protocol, **options)


@contextmanager
def _stand_ins() -> Iterator[None]:
    import torch
    import torch._functorch.config  # fairseq2 sets one of its values, and relies on the compiler to have imported it
    from torch._compile import _disable_dynamo

    modules = {name: _Module(name) for name in UNUSED if name not in sys.modules}
    sys.modules.update(modules)
    for name, places in PACKAGES.items():
        if name not in sys.modules and (spec := find_spec(name)) is not None:
            sys.modules[name] = _Package(spec, places)
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, sys.modules[name])
    disable = torch.compiler.disable
    torch.compiler.disable = _disable_dynamo  # type: ignore[assignment]  # imports the compiler when it is needed
    try:
        yield
    finally:
        torch.compiler.disable = disable
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _Module(ModuleType):
    """Stands for a module; each of its attributes stands for a name in it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # The same for everyone: fairseq2 registers objects by their classes.
        found = self.__dict__[name] = _Name(self.__name__, name)
        return found


class _Name:
    """Stands for what a module has under a name."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspects annotations asks for these
            raise AttributeError(name)
        return getattr(self.use(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.use()(*args, **kwargs)

    def __instancecheck__(self, x: object) -> bool:
        # Before the module is there, nothing can be of its classes.
        return self._module in sys.modules and isinstance(x, self.use())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.use(),)

    def use(self) -> Any:
        """Import the module, and put exceptions of its package in their places: no stand-in can tell whether one is raised."""
        package = self._module.partition(".")[0]
        for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "fairseq2"]:
            for key, value in list(vars(module).items()):
                if type(value) is _Name and key.endswith("Error") and value._module.partition(".")[0] == package:
                    setattr(module, key, value._real())
        return self._real()

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)


class _FileSystem:
    """Stands for ``fsspec.filesystem(protocol)``; fairseq2 opens that of S3 at every start, which takes a third of a second."""

    def __init__(self, protocol: str, **options: Any) -> None:
        self._protocol, self._options = protocol, options

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("fsspec").filesystem(self._protocol, **self._options), name)


class _Package(ModuleType):
    """A package without what it imports, until somebody asks for that."""

    def __init__(self, spec: ModuleSpec, places: Mapping[str, str]) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__path__, self.__file__ = spec, list(spec.submodule_search_locations or ()), spec.origin
        self._places: Mapping[str, str] | None = places

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._places is None or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in self._places:
            return getattr(importlib.import_module(self._places[name]), name)
        self._places = None
        self.__spec__.loader.exec_module(self)

        return getattr(self, name)
