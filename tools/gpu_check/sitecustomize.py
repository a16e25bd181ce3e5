"""Lets fairseq2n, built for PyTorch 2.9.1 and CUDA 12.8, load beside a newer PyTorch; Python runs this file at its start.

``carried.install`` copies it to the front of ``PYTHONPATH``, beside ``libtbb.so.12``, so that the processes that a check,
torchrun or pytest start have it as well. Nothing happens until somebody imports ``fairseq2n``, or a recorder's package that is not there.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ABSENT = ("wandb", "wandb.errors")  # fairseq2 imports them, whether a run uses them or not


class FairseqLoader(Loader):
    """Loads fairseq2n's libraries while PyTorch says that it has the CUDA that they are built for."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch  # before the libraries below, with its own CUDA

        ctypes.CDLL(str(Path(__file__).with_name("libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)
        for package, pattern, mode in (
            ("_soundfile_data", "libsndfile*.so", ctypes.RTLD_GLOBAL),
            (
                "nvidia.cuda_runtime",
                "lib/libcudart.so.12",
                ctypes.RTLD_LOCAL,
            ),  # for fairseq2n alone
        ):
            try:
                found = importlib.util.find_spec(package)
            except ModuleNotFoundError:
                found = None
            for folder in (found.submodule_search_locations or ()) if found else ():
                for library in Path(folder).glob(pattern):
                    ctypes.CDLL(str(library), mode=mode)
        version, torch.version.cuda = torch.version.cuda, "12.8"
        try:
            self.loader.exec_module(module)
            importlib.import_module("fairseq2n.bindings")
        finally:
            torch.version.cuda = version


class StandIn(Loader):
    """Loads a package in which every name is an exception that nobody raises."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)

        def find(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (Exception,), {})

        module.__getattr__ = find  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "fairseq2n" and name not in ABSENT:
            return None
        spec = PathFinder.find_spec(name, path)
        if name == "fairseq2n" and spec is not None and spec.loader is not None:
            spec.loader = FairseqLoader(spec.loader)
        if name in ABSENT and spec is None:
            spec = ModuleSpec(name, StandIn(), is_package=name == "wandb")
        return spec


sys.meta_path.insert(0, Finder())
