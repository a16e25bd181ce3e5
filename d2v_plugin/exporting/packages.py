"""Packages that some formats need, and the package itself does not."""

from __future__ import annotations

from importlib.util import find_spec

from d2v_plugin.core.errors import CheckpointError


def need(format: str, *names: str) -> None:
    """
    :raises CheckpointError: one of the packages is not installed.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        raise CheckpointError(
            f"The format `{format}` needs {' and '.join(missing)}: `pip install {' '.join(missing)}`, or all that exporting can "
            "use: `pip install '.[export]'` in a checkout."
        )
