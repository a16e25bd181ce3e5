"""Packaging of d2v-plugin; tool settings live in pyproject.toml."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent

# The version lives in the package; reading it as text keeps installation free of the package's own imports.
version = re.search(r'^__version__ = "(.+)"$', here.joinpath("d2v_plugin", "__init__.py").read_text(), re.MULTILINE)
if version is None:
    raise RuntimeError("d2v_plugin/__init__.py must define `__version__`.")


# Hundreds of megabytes where a user has made them; .gitignore and MANIFEST.in leave them out, too.
MADE = ("english*", "fashion", "prompts*", "signals")


class BuildWithData(build_py):
    """Puts recipes and small datasets into wheels, where ``d2v_plugin/core/shipped.py`` finds them.

    An installation for development needs no copies: there they lie beside the package.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("recipes", "manifests"):
            target = Path(self.build_lib, "d2v_plugin", "shipped", folder)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(here / folder, target, ignore=shutil.ignore_patterns("*.py", "*.png", "__pycache__", *MADE))
        shutil.copy(here / "CHANGELOG.md", Path(self.build_lib, "d2v_plugin", "shipped"))


def read(name: str) -> str:
    return here.joinpath(name).read_text(encoding="utf-8")


# What the formats of `fairseq2 recipe export` need: Hugging Face, timm, ONNX.
EXPORT = ["transformers>=4.57", "timm>=1.0.20", "onnx", "onnxscript", "onnxruntime"]

setup(
    name="d2v-plugin",
    version=version[1],
    description="data2vec 1.0 and 2.0 for speech, images and text, as a fairseq2 plugin",
    # Links of the README lead to files of the repository, which are in the source distribution.
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="d2v_plugin contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["data2vec", "fairseq2", "self-supervised learning", "speech", "vision", "text"],
    project_urls={
        "data2vec 2.0": "https://arxiv.org/abs/2212.07525",
        "data2vec 1.0": "https://arxiv.org/abs/2202.03555",
        "fairseq2": "https://github.com/facebookresearch/fairseq2",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA :: 12",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["d2v_plugin", "d2v_plugin.*"]),
    package_data={"d2v_plugin": ["py.typed"], "d2v_plugin.cli": ["registered.txt"], "d2v_plugin.weights.cards": ["*.yaml"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.10,<3.13",
    # fairseq2n is compiled for one version of PyTorch, and torchvision for the same: exact. Others: from the oldest with what is
    # used here to before the next version that may break it.
    install_requires=[
        "fairseq2==0.8.1",  # brings torch 2.9.1, numpy, rich, tensorboard, transformers
        "torchvision==0.24.1",
        "matplotlib>=3.8,<4",  # pictures of runs, which are drawn by default; without it all else works
        "safetensors>=0.6,<1",
        "scipy>=1.11,<2",
        "sentencepiece>=0.2,<0.3",
        "soundfile>=0.12.1,<0.15",  # also carries the libsndfile that fairseq2 needs
        "soxr>=0.3.7,<2",
        "threadpoolctl>=3.1,<4",
        "typing_extensions>=4.12,<5",
    ],
    extras_require={
        "export": EXPORT,
        "parquet": ["pyarrow>=15,<27"],  # Parquet files and Hugging Face datasets on disk
        "ffmpeg": ["av>=13,<19"],  # m4a, aac, webm, wma, amr, g722, …; its wheel brings ffmpeg along
        "decoding": ["flashlight-text>=0.0.7,<0.1"],  # beam search with a language model; its wheel brings KenLM along
        "test": [
            "av>=13,<19",
            "build>=1.2",
            "flashlight-text>=0.0.7,<0.1",
            "flask",  # with the next two moto is a server
            "flask-cors",
            "jiwer>=3,<5",
            "moto[s3]>=5,<6",  # of S3, for tests of object stores
            "mypy>=1.15",
            "pyarrow>=15,<27",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scikit-learn>=1.4,<2",
            *EXPORT,
        ],
    },
    entry_points={
        "console_scripts": ["fairseq2 = d2v_plugin.cli.main:main"],
        "fairseq2.extension": ["d2v_plugin = d2v_plugin:setup_fairseq2_extension"],
    },
)
