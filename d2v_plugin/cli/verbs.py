"""Verbs of ``fairseq2 recipe``. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2v_plugin.cli.help import HELP
from d2v_plugin.cli.running import run
from d2v_plugin.cli.words import PROGRAM, fail, take_values

if TYPE_CHECKING:
    from d2v_plugin.verbs.extensions import Extension


def train(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe train``: all flags of fairseq2's runner, ``--extension``, and what resuming needs."""
    words, sources = take_values(words, "--resume", "`auto`, `none`, a number or a directory", once=True)
    if sources and sources[0].isdecimal() and len(sources[0]) > 18:
        fail(f"--resume: no run has as many updates as a number of {len(sources[0]):,} digits says.")
    switches = {"--extend-schedule": "extend_schedule", "--accept-changed-data": "accept_changed_data"}
    switched = {switches[word]: True for word in words if word in switches}
    words = [word for word in words if word not in switches]

    from d2v_plugin.training.checkpoints.resume import Resume
    from d2v_plugin.verbs.train.recipe import TrainRecipe

    run(TrainRecipe(extensions, Resume(sources[0] if sources else "auto", **switched)), "train", words)


def evaluate(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe evaluate``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.evaluate.recipe import EvaluateRecipe

    run(EvaluateRecipe(extensions), "evaluate", words)


def extract(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe extract``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.extract.recipe import ExtractRecipe

    run(ExtractRecipe(extensions), "extract", words)


def predict(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe predict``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.predict.recipe import PredictRecipe

    run(PredictRecipe(extensions), "predict", words)


def inspect(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe inspect``: all flags of fairseq2's runner, and ``--extension``."""
    from d2v_plugin.verbs.inspect.recipe import InspectRecipe

    run(InspectRecipe(extensions), "inspect", words)


def export(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe export``: all flags of fairseq2's runner, ``--extension``, and ``--force``."""
    force = "--force" in words
    words = [word for word in words if word != "--force"]

    from d2v_plugin.verbs.export.recipe import ExportRecipe

    run(ExportRecipe(extensions, force=force), "export", words)


def list_registered(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe list``: everything a recipe may name."""
    if words in (["-h"], ["--help"]):
        print(HELP["list"])
        return
    if words:
        fail(f"`{PROGRAM} recipe list` takes no `{words[0]}`; only --extension FILE.py.")

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.cli.listing import describe_registered

    try:
        print(describe_registered(extensions))
    except RecipeError as ex:
        fail(str(ex))


VERBS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "extract": extract,
    "inspect": inspect,
    "export": export,
    "list": list_registered,
}
