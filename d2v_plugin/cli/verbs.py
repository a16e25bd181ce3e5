"""Verbs of ``fairseq2 recipe``. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from d2v_plugin.cli.help import HELP
from d2v_plugin.cli.running import parse, run
from d2v_plugin.cli.words import PROGRAM, check_words, fail, fail_if_mistaken, fail_unknown, take_values

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
    _check_first("train", words, extensions)

    from d2v_plugin.training.checkpoints.resume import Resume
    from d2v_plugin.verbs.train.recipe import TrainRecipe

    run(TrainRecipe(extensions, Resume(sources[0] if sources else "auto", **switched)), "train", words)


def _check_first(verb: str, words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """Tell the mistakes that are known before anything heavy is imported."""
    if "-h" in words or "--help" in words:
        return
    from d2v_plugin.cli.listing import is_extended
    from d2v_plugin.verbs.first_checks import find_mistakes

    check_words(words)
    fail_if_mistaken(find_mistakes(words, verb, extended=is_extended(extensions)))


def pretrain(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe pretrain``: plans a run for a folder of data, then does what ``train`` does with the plan."""
    _follow_plan("pretrain", words, extensions)


def finetune(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe finetune``: plans fine-tuning of a run on labelled data, then does what ``train`` does with the plan."""
    _follow_plan("finetune", words, extensions)


def _follow_plan(verb: str, words: Sequence[str], extensions: Sequence[Extension]) -> None:
    args = parse(verb, words)
    if args.config_file is not None:
        fail(f"`{PROGRAM} recipe {verb}` writes its own recipe; run another one by `{PROGRAM} recipe train --config-file`.")
    if args.output_dir is None:
        fail("the output directory is missing: the plan is written there, also to print it.")

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.core.errors import CheckpointError
    from d2v_plugin.verbs.extensions import ExtensionFile
    from d2v_plugin.verbs.own.finetuning import plan_finetuning
    from d2v_plugin.verbs.own.pretraining import plan_pretraining
    from d2v_plugin.verbs.own.wish import take_wish

    planners = {"pretrain": plan_pretraining, "finetune": plan_finetuning}
    try:
        words, wish = take_wish(words, [file.path for file in extensions if isinstance(file, ExtensionFile)])
        plan = planners[verb](args.output_dir, wish)
    except (RecipeError, CheckpointError, OSError) as ex:
        fail(str(ex))
    train(["--config-file", str(plan), *words], extensions)


def evaluate(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe evaluate``: all flags of fairseq2's runner, and ``--extension``."""
    _check_first("evaluate", words, extensions)
    from d2v_plugin.verbs.evaluate.recipe import EvaluateRecipe

    run(EvaluateRecipe(extensions), "evaluate", words)


def extract(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe extract``: all flags of fairseq2's runner, and ``--extension``."""
    _check_first("extract", words, extensions)
    from d2v_plugin.verbs.extract.recipe import ExtractRecipe

    run(ExtractRecipe(extensions), "extract", words)


def predict(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe predict``: all flags of fairseq2's runner, and ``--extension``."""
    _check_first("predict", words, extensions)
    from d2v_plugin.verbs.predict.recipe import PredictRecipe

    run(PredictRecipe(extensions), "predict", words)


def inspect(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe inspect``: all flags of fairseq2's runner, and ``--extension``."""
    _check_first("inspect", words, extensions)
    from d2v_plugin.verbs.inspect.recipe import InspectRecipe

    run(InspectRecipe(extensions), "inspect", words)


def export(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe export``: all flags of fairseq2's runner, ``--extension``, and ``--force``."""
    force = "--force" in words
    words = [word for word in words if word != "--force"]
    _check_first("export", words, extensions)

    from d2v_plugin.verbs.export.recipe import ExportRecipe

    run(ExportRecipe(extensions, force=force), "export", words)


def list_registered(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe list``: everything a recipe may name."""
    if words in (["-h"], ["--help"]):
        print(HELP["list"])
        return
    if words not in ([], ["--registered"]):
        fail(f"`{PROGRAM} recipe list` takes no `{words[0]}`; only --extension FILE.py.")

    from d2v_plugin.cli.listing import describe_all

    if not words and not extensions:
        print(describe_all([]))
        return

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.cli.registered import describe_registered

    try:
        print(describe_registered(extensions) if words else describe_all(extensions))
    except RecipeError as ex:
        fail(str(ex))


def describe(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe describe``: every field of what a recipe may name."""
    if words in (["-h"], ["--help"]):
        print(HELP["describe"])
        return

    from fairseq2.recipe.error import RecipeError

    from d2v_plugin.cli.describe.text import list_topics, print_topic, write_page
    from d2v_plugin.cli.describe.topics import find_topics

    try:
        topics = find_topics(extensions)
    except RecipeError as ex:
        fail(str(ex))
    if words == ["--page"]:
        print(write_page(topics), end="")
        return
    known = {topic.name for topic in topics}
    for name in words:
        if name not in known:
            fail_unknown("name to describe", name, known)
    chosen = [topic for name in words for topic in topics if topic.name == name]
    print("\n\n".join(map(print_topic, chosen)) if words else list_topics(topics))


def convert(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe convert``: checkpoints of other programs become ours, and ours theirs."""
    if extensions:
        fail(f"`{PROGRAM} recipe convert` takes no --extension.")

    from d2v_plugin.cli.convert import main

    sys.exit(main(words))


def manifest(words: Sequence[str], extensions: Sequence[Extension]) -> None:
    """``fairseq2 recipe manifest``: folders of one's own data become manifests."""
    if extensions:
        fail(f"`{PROGRAM} recipe manifest` takes no --extension.")

    from d2v_plugin.cli.manifest import main

    sys.exit(main(words))


VERBS = {
    "train": train,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "predict": predict,
    "extract": extract,
    "inspect": inspect,
    "export": export,
    "manifest": manifest,
    "convert": convert,
    "list": list_registered,
    "describe": describe,
}
