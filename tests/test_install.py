"""The package runs on machines without a system libsndfile, and is installed with one version and two entry points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import torch

import d2v_plugin

ROOT = Path(__file__).parent.parent

# Lets the dynamic loader find libsndfile only if it is in the process already, as on a machine that does not have it.
WITHOUT_SYSTEM_LIBSNDFILE = """
import ctypes, os
CDLL = ctypes.CDLL
def without_system_libsndfile(name, mode=ctypes.DEFAULT_MODE, **kwargs):
    if name is not None and os.path.basename(str(name)) == "libsndfile.so.1":
        mode |= os.RTLD_NOLOAD
    return CDLL(name, mode, **kwargs)
ctypes.CDLL = without_system_libsndfile
"""

# fairseq2 loads the library, but its decoder is not called: with a newer PyTorch, whose tensors it does not know, it crashes.
DECODE = """
import d2v_plugin, fairseq2.data.audio, numpy, soundfile, sys
soundfile.write(sys.argv[1], numpy.zeros(16000, dtype="float32"), 16000)
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libsndfile" in line}
print(d2v_plugin.read_audio(sys.argv[1]).numel(), *libraries)
"""


def run_python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    env.pop("LD_PRELOAD", None)
    if "CONDA_PREFIX" not in environment:
        env.pop("CONDA_PREFIX", None)

    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, cwd=ROOT, timeout=120)


def test_fairseq2_runs_without_a_system_libsndfile(tmp_path: Path) -> None:
    without = run_python(WITHOUT_SYSTEM_LIBSNDFILE + "ctypes.CDLL('libsndfile.so.1')")
    assert "libsndfile" in without.stderr, "the test does not hide the library"

    result = run_python(WITHOUT_SYSTEM_LIBSNDFILE + DECODE, str(tmp_path / "silence.flac"))

    length, library = result.stdout.split()
    assert length == "16000" and "_soundfile_data" in library, result.stderr


def test_fairseq2_runs_in_a_conda_environment_without_libsndfile(tmp_path: Path) -> None:
    code = "import d2v_plugin, fairseq2, os; print(os.environ['CONDA_PREFIX'])"

    result = run_python(WITHOUT_SYSTEM_LIBSNDFILE + code, CONDA_PREFIX=str(tmp_path))

    assert result.stdout.strip() == str(tmp_path), result.stderr


def test_importing_the_package_does_not_import_fairseq2() -> None:
    result = run_python("import d2v_plugin, sys; print('fairseq2' in sys.modules, 'torch' in sys.modules)")

    # A PyTorch for CUDA 13 has to be there before fairseq2's native library.
    is_newer = torch.version.cuda is not None and not torch.version.cuda.startswith("12.")
    assert result.stdout.split() == ["False", str(is_newer)], result.stderr


def test_the_package_hands_out_what_users_need() -> None:
    from d2v_plugin import load, read_text
    from d2v_plugin.data import single
    from d2v_plugin.verbs import loading

    assert load is loading.load and read_text is single.read_text
    assert all(callable(getattr(d2v_plugin, name)) for name in d2v_plugin.__all__)
    with pytest.raises(AttributeError, match="module 'd2v_plugin' has no attribute 'loda'"):
        d2v_plugin.loda  # noqa: B018


def test_the_version_is_written_in_one_place() -> None:
    assert version("d2v-plugin") == d2v_plugin.__version__

    texts = [ROOT.joinpath(name).read_text() for name in ("setup.py", "pyproject.toml")]
    assert not any(re.search(rf"\b{re.escape(d2v_plugin.__version__)}\b", text) for text in texts)


def test_command_and_extension_are_installed() -> None:
    commands = {entry.name: entry.value for entry in entry_points(group="console_scripts")}
    extensions = {entry.name: entry.value for entry in entry_points(group="fairseq2.extension")}

    assert commands["fairseq2"] == "d2v_plugin.cli.main:main"
    assert extensions["d2v_plugin"] == "d2v_plugin:setup_fairseq2_extension"


def test_the_cards_of_published_models_are_installed() -> None:
    setup = ROOT.joinpath("setup.py").read_text()

    assert '"d2v_plugin.weights.cards": ["*.yaml"]' in setup
    assert len(list(ROOT.glob("d2v_plugin/weights/cards/*.yaml"))) == 2


def read_dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    lines = ROOT.joinpath("Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()

    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line and not line.startswith("#")]


def test_the_dockerfile_copies_what_is_there_and_its_lines_are_shell() -> None:
    instructions = read_dockerfile()
    ignored = ROOT.joinpath(".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]

    assert {name for name, _ in instructions} <= {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert instructions[0][0] == "FROM" and [name for name, _ in instructions].count("FROM") == 2
    assert all(ROOT.joinpath(name).exists() for name in kept) and {"setup.py", "pyproject.toml", "recipes"} <= {*kept}
    for _, line in (item for item in instructions if item[0] == "RUN"):
        subprocess.run(["bash", "-n", "-c", re.sub(r"^(--\S+ )+", "", line)], check=True)


def test_documents_name_no_install_that_cannot_work() -> None:
    """The package is not on an index: its extras can be had from a checkout or a wheel only."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("recipes/**/*.md"), *ROOT.glob("d2v_plugin/**/*.py"), *ROOT.glob("tools/**/*.py")]

    assert [page for page in pages if re.search(r"pip install '?d2v-plugin", page.read_text(encoding="utf-8"))] == []


def test_what_scripts_make_stays_out_of_wheel_and_source_distribution() -> None:
    """A checkout in which the data of the study have been made would build packages of 360 MB."""
    patterns = re.findall(r"^/manifests/(\S+)/\*$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    made = {path.parent.name for path in ROOT.glob("manifests/*/make.py") for name in patterns if path.parent.match(name)}
    manifest = (ROOT / "MANIFEST.in").read_text()

    assert made == {"english", "fashion", "prompts", "signals"}
    assert all(f"prune manifests/{name}\n" in manifest and f"include manifests/{name}/README.md" in manifest for name in made)
    assert f"MADE = {str(tuple(patterns)).replace(chr(39), chr(34))}\n" in (ROOT / "setup.py").read_text()


def test_every_dependency_has_bounds() -> None:
    listed = ROOT.joinpath("setup.py").read_text(encoding="utf-8").partition("install_requires=[")[2].partition("]")[0]
    needed = dict(re.findall(r'"([\w-]+)([^"]*)",', listed))

    assert len(needed) >= 9
    assert [name for name, bounds in needed.items() if not re.fullmatch(r"==[\d.]+|>=[\d.]+,<[\d.]+", bounds)] == []
