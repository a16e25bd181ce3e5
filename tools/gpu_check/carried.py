"""What a host without network lacks to run a checkout: collected where there is one, unpacked there. Needs nothing but Python.

For a host with Python 3.12 and a PyTorch that may be newer than the one of fairseq2n 0.8.1 (``d2v_plugin`` sees to that), with
NumPy, SciPy, scikit-learn, torchvision, transformers, safetensors, sentencepiece and pytest.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from tools.gpu_check.driver import ROOT

PACKAGES: Final = (
    *("fairseq2==0.8.1", "fairseq2n==0.8.1", "tbb", "tcmlib", "nvidia-cuda-runtime-cu12"),
    *("clusterscope==0.0.32", "importlib_metadata==7.2.1", "importlib_resources==6.5.2", "ruamel.yaml", "ruamel.yaml.clib"),
    *("torcheval", "soxr", "mypy_extensions", "editdistance", "soundfile", "cffi", "pycparser"),
)
PLATFORMS: Final = tuple(
    f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_12", "2010", "_2_5", "1")
)
STAND_IN: Final = """\
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Exception,), {})
"""
"""A module in which every name is an exception that nobody raises."""

LIMIT: Final = 64 << 20
"""Bytes that are carried at most, the checkout with them."""


def collect(folder: Path) -> None:
    """Download the wheels, take out of two of them the library of oneTBB, and say how much there is to carry."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", "3.12", "--implementation", "cp", *platforms, "--only-binary=:all:", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *target, "-d", str(folder), *PACKAGES], check=True)
    # Wheels put it into the environment's `lib`, which `pip install --target` leaves out.
    for wheel in (*folder.glob("tbb-*.whl"), *folder.glob("tcmlib-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith("/data/lib/libtbb.so.12"):
                    (folder / "libtbb.so.12").write_bytes(archive.read(name))
        wheel.unlink()
    size = sum(path.stat().st_size for path in folder.iterdir())
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    checkout = sum((ROOT / name).stat().st_size for name in listing.stdout.split("\0") if (ROOT / name).is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB, and the tracked files {checkout / 2**20:.1f} MiB")
    if size + checkout > LIMIT:
        raise SystemExit(f"That is more than {LIMIT >> 20} MiB together.")


def install(folder: Path, site: Path) -> dict[str, str]:
    """Unpack what was collected.

    :returns: the variables with which every process finds it, the checkout and its entry point.
    """
    wheels = sorted(str(path) for path in folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"{folder}: no wheels; `python -m tools.gpu_check carry {folder}` collects them.")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    subprocess.run([*pip, "--target", str(site), *wheels], check=True)
    shutil.copy(folder / "libtbb.so.12", site)
    if importlib.util.find_spec("wandb") is None:
        # fairseq2 imports it, whether a run uses it or not.
        (site / "wandb").mkdir(exist_ok=True)
        for name in ("__init__.py", "errors.py"):
            (site / "wandb" / name).write_text(STAND_IN)
    # As an installation would leave it, for fairseq2 to find the package.
    information = site / "d2v_plugin-0.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: d2v-plugin\nVersion: 0\n")
    (information / "RECORD").touch()
    entry = "[fairseq2.extension]\nd2v_plugin = d2v_plugin:setup_fairseq2_extension\n"
    (information / "entry_points.txt").write_text(entry)
    libraries = str(site.resolve()), os.environ.get("LD_LIBRARY_PATH")

    return {"PYTHONPATH": f"{site.resolve()}:{ROOT}", "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
