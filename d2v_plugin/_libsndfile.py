"""Makes ``libsndfile`` available to fairseq2 on machines that do not have it installed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from d2v_plugin._newer_torch import load_fairseq2n


def preload_libsndfile() -> None:
    """Load the libsndfile of the ``soundfile`` wheel where fairseq2 would not find one.

    ``fairseq2n`` opens ``libsndfile.so.1`` when it is imported. The dynamic loader answers with a library that is
    already in the process if its soname is the same, so loading the bundled copy first is all that is needed.
    """
    if sys.platform == "darwin":
        soname, bundled = "libsndfile.1.dylib", "libsndfile_*.dylib"
    else:
        soname, bundled = "libsndfile.so.1", "libsndfile_*.so"

    in_conda = "CONDA_PREFIX" in os.environ
    own_copy = Path(sysconfig.get_path("purelib")).parent.parent / soname
    if own_copy.exists() or (not in_conda and _can_load(soname)):
        return

    if not any(_can_load(str(path)) for path in _bundled_libraries(bundled)):
        return  # `import fairseq2` says what is missing and how to install it

    if in_conda:
        _import_fairseq2n_outside_conda()


def _can_load(name: str) -> bool:
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False

    return True


def _bundled_libraries(pattern: str) -> list[Path]:
    spec = importlib.util.find_spec("_soundfile_data")
    if spec is None or spec.submodule_search_locations is None:
        return []

    return sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob(pattern))


def _import_fairseq2n_outside_conda() -> None:
    # Under Conda fairseq2n asks for files of the environment by their full path, which a loaded library does not answer.
    prefix = os.environ.pop("CONDA_PREFIX")
    try:
        load_fairseq2n()
        import fairseq2n  # noqa: F401
    finally:
        os.environ["CONDA_PREFIX"] = prefix
