"""``fairseq2 doctor``: what is installed, what works, and what is worth knowing of the machine.

Nothing but the standard library is imported here, so that it answers where fairseq2 or PyTorch cannot be imported.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from d2v_plugin.cli.doctor.checks import MISSING, NEEDED, OPTIONAL
from d2v_plugin.core.secrets import hide_in

_PINNED: Final = ("torch", "fairseq2", "fairseq2n", "torchvision")
"""Compiled against each other: a version that differs crashes or computes something else."""

_SECONDS: Final = 300
_MIN_FREE: Final = 2 << 30


def diagnose() -> int:
    """Print what was found.

    :returns: the exit status: 1 if something that is needed is broken.
    """
    print(f"d2v-plugin {_find_version('d2v-plugin')}, Python {platform.python_version()}, {platform.platform()}")
    broken = [*_print_all("versions that must fit", check_pins())]
    broken += _print_all("needed", run_apart([*NEEDED]))
    _print_all("optional", run_apart([*OPTIONAL]))
    broken += _print_all("here", [check_folder(Path.cwd())])
    print("\nhints:")
    for line in describe_machine():
        print(f"  {line}")
    print(f"\n{len(broken)} broken: {', '.join(broken)}" if broken else "\nEverything needed works.")

    return 1 if broken else 0


def _print_all(title: str, results: Sequence[tuple[str, bool, str]]) -> list[str]:
    """Print results; returns the names of those that do not work."""
    print(f"\n{title}:")
    for name, works, text in results:
        mark = "ok" if works else "-" if text == MISSING else "BROKEN"
        print(f"  {mark:<6} {name:<16} {hide_in(text)}")

    return [name for name, works, _ in results if not works]


def check_pins() -> list[tuple[str, bool, str]]:
    """Compare installed versions with those that the others of them were built for."""
    found = {name: here for name in _PINNED if (here := _find_version(name)) != MISSING}
    results = []
    for name in _PINNED:
        if name not in found:
            results.append((name, False, f"{MISSING}, but needed"))
            continue
        wrong = [
            f"{other} {found[other]} wants {pin}"
            for other, pin in _find_pins(name, found)
            if pin != found[name].partition("+")[0]
        ]
        results.append((name, not wrong, f"{found[name]}{'; ' if wrong else ''}{', '.join(wrong)}"))

    return results


def _find_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def _find_pins(name: str, found: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Which of the installed packages ask for one version of ``name``, and for which."""
    for other in found:
        for requirement in requires(other) or ():
            if pin := re.match(rf"{name} ?\(?==([\w.]+)\)?(?:;|$)", requirement):
                yield other, pin[1]


def run_apart(names: Sequence[str]) -> list[tuple[str, bool, str]]:
    """Run checks in another process, and in a new one after a check that ends it."""
    results: list[tuple[str, bool, str]] = []
    while left := names[len(results) :]:
        command = [sys.executable, "-m", "d2v_plugin.cli.doctor.checks", *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            output, status, error = done.stdout, done.returncode, done.stderr
        except subprocess.TimeoutExpired as ex:
            found = ex.stdout or b""
            output, status, error = found if isinstance(found, str) else found.decode(errors="replace"), None, ""
        lines = [line for line in output.splitlines() if line.startswith('["')]
        results += [tuple(json.loads(line)) for line in lines]
        if len(lines) < len(left):
            name = names[len(results)]
            why = f"no answer in {_SECONDS} s" if status is None else f"it ended the process (status {status})"
            last = f": {error.strip().splitlines()[-1]:.300}" if error.strip() else ""
            results.append((name, False, why + last))

    return results


def check_folder(folder: Path) -> tuple[str, bool, str]:
    """Write, rename and remove a file, as a checkpoint is written."""
    name, aside, final = "checkpoints", folder / ".doctor.tmp", folder / ".doctor"
    try:
        with aside.open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(final)
        final.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as ex:
        return name, False, f"cannot be written to {folder}: {ex.strerror or ex}; change to another folder"
    few = "; a checkpoint of a base model takes about 1.5 GiB" if free < _MIN_FREE else ""

    return name, True, f"can be written to {folder}, {free / 2**30:,.1f} GiB free{few}"


def describe_machine() -> Iterator[str]:
    """What decides speed and memory beside the recipe."""
    usable, cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield f"{usable} of {cores} cores may be used; OMP_NUM_THREADS is {threads or 'not set, so PyTorch takes one thread a core'}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield f"{memory:.0f} GiB of memory"
    libc, preloaded = platform.libc_ver()[0] or "another C library", os.environ.get("LD_PRELOAD")
    if preloaded:
        yield f"LD_PRELOAD is {preloaded}: the allocator of another library replaces that of {libc}"
    elif libc == "glibc":
        yield "glibc hands out memory; training keeps what it frees, which saves a tenth of the time and more"
    else:
        yield f"{libc} hands out memory: on a CPU, training is slower than with glibc"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < 4096:
        yield f"{files} files may be open at once; `ulimit -n 4096` lets many shards be open"
    if settings := os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        yield f"PYTORCH_CUDA_ALLOC_CONF is {settings}"
