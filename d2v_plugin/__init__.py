"""Entry point of the plugin, and of Python users; also loads what fairseq2 needs, before anything here imports it.

Not every machine has ``libsndfile.so.1``: the ``soundfile`` wheel carries a copy, which is loaded where the system has none. Nor
does every machine have the PyTorch that fairseq2 was built with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2v_plugin._libsndfile import preload_libsndfile
from d2v_plugin._light_imports import lighten_fairseq2
from d2v_plugin._newer_torch import load_fairseq2n

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

    from d2v_plugin.data.single import read_audio, read_image, read_text
    from d2v_plugin.verbs.loading import load

__all__ = ["load", "read_audio", "read_image", "read_text", "setup_fairseq2_extension"]

__version__ = "0.2.0"

preload_libsndfile()
load_fairseq2n()
lighten_fairseq2()

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the functions for users at their first use, since with them come torch and fairseq2."""
        if name == "load":
            from d2v_plugin.verbs.loading import load

            return load
        if name in __all__:
            from d2v_plugin.data import single

            return getattr(single, name)

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    """Register everything this package brings; fairseq2 calls it through the ``fairseq2.extension`` entry point."""
    import fairseq2.recipe  # noqa: F401  # first: fairseq2.trainer and others cannot be imported before it

    from d2v_plugin.verbs.registration import register_everything

    register_everything(container)
