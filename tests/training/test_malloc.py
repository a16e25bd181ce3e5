"""Memory of small tensors is kept for the next ones, that of the largest is given back; in training and with checkpoints."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.verbs.extract.recipe import ExtractRecipe

# Not in the tests' own process, whose memory has been used by others.
SCRIPT = """
import resource

import torch

from d2v_plugin.training.malloc import MAPPED_BYTES, keep_freed_memory


def fill(num_bytes):
    return torch.ones(num_bytes, dtype=torch.uint8)


def read_resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def count_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [fill(MAPPED_BYTES // 2) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_freed_memory()
large = fill(4 * MAPPED_BYTES)
before = read_resident_bytes()
del large
print((before - read_resident_bytes()) / MAPPED_BYTES)
# Not at once: glibc does not put an aligned piece where one of the same size has been.
print(min(count_page_faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_small_pieces_are_reused_and_large_ones_returned() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE, text=True)

    returned, page_faults = map(float, done.stdout.split())
    assert returned > 3.9
    assert page_faults < 100


def test_recipes_of_checkpoints_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr("d2v_plugin.verbs.common.keep_freed_memory", lambda: calls.append(None))
    ExtractRecipe().register(DependencyContainer())

    assert calls == [None]
