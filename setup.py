"""Packaging of d2v-plugin; tool settings live in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent

# The version lives in the package; reading it as text keeps installation free of the package's own imports.
version = re.search(r'^__version__ = "(.+)"$', here.joinpath("d2v_plugin", "__init__.py").read_text(), re.MULTILINE)
if version is None:
    raise RuntimeError("d2v_plugin/__init__.py must define `__version__`.")

readme = here.joinpath("README.md")

setup(
    name="d2v-plugin",
    version=version[1],
    description="data2vec 1.0 and 2.0 for speech, images and text, as a fairseq2 plugin",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="d2v_plugin contributors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["data2vec", "fairseq2", "self-supervised learning", "speech", "vision", "text"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["d2v_plugin", "d2v_plugin.*"]),
    package_data={"d2v_plugin": ["py.typed"], "d2v_plugin.weights.cards": ["*.yaml"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "fairseq2==0.8.1",  # brings torch 2.9.1, numpy, tensorboard, editdistance, tokenizers
        "torchvision==0.24.1",
        "safetensors",
        "scipy",
        "sentencepiece",
        "soundfile",  # also carries the libsndfile that fairseq2 needs
        "soxr",
        "threadpoolctl",
        "typing_extensions",
    ],
    extras_require={
        "decoding": ["flashlight-text"],  # beam search with a language model; its wheel brings KenLM along
        "plots": ["matplotlib"],  # tools/experiments/ablate.py
        "test": ["flashlight-text", "jiwer", "matplotlib", "mypy", "pytest", "pytest-xdist", "ruff", "scikit-learn"],
    },
    entry_points={
        "console_scripts": ["fairseq2 = d2v_plugin.cli.main:main"],
        "fairseq2.extension": ["d2v_plugin = d2v_plugin:setup_fairseq2_extension"],
    },
)
