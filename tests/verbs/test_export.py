"""`fairseq2 recipe export` writes a folder that is whole and checked, or nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.exporting import export as exporting
from d2v_plugin.exporting.formats import FORMATS, Format

ROOT = Path(__file__).parents[2]
SHORT = ["regime={num_steps: 1, publish_metrics_every_n_steps: 1}", "lr_scheduler={name: passthrough, config: null}"]
SHORT += ["pictures.enabled=false", "common.torch.num_threads=1"]


@pytest.fixture(scope="module")
def tuned(short_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fine-tuning, after one update."""
    from d2v_plugin.cli.main import main

    out = tmp_path_factory.mktemp("tuned") / "digits"
    recipe = str(ROOT / "recipes" / "demo" / "finetune_digits.yaml")
    main(["recipe", "train", "--config-file", recipe, str(out), "--config", *SHORT, f"init.path={short_run('digits')}"])

    return out


def test_our_own_directory_keeps_the_head_and_its_scores(command: Any, tuned: Path, tmp_path: Path) -> None:
    outcome = command("recipe", "export", tmp_path / "kept", "--config", f"checkpoint.path={tuned}", "format=d2v_plugin")

    assert outcome.status == 0, outcome.err
    assert "head: ClassificationCriterion" in outcome.out and "blocks 0.0e+00, head 0.0e+00" in outcome.out
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        *("complete.json", "config.json", "head.safetensors", "model.safetensors"),
    ]
    scores = []
    for path in (tuned, tmp_path / "kept"):
        out = tmp_path / f"scores_{path.name}"
        assert command("recipe", "evaluate", out, "--config", f"checkpoint.path={path}").status == 0
        scores.append(json.loads((out / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1]


def test_the_folder_is_for_others(command: Any, short_run: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    settings = [f"checkpoint.path={short_run('digits')}", "format=huggingface", "checkpoint.weights=teacher"]

    outcome = command("recipe", "export", tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    assert "largest difference from our own model: blocks" in outcome.out
    # No logs, no configuration of the command, nothing aside.
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "config.json", "configuration_data2vec2.py", "export.json", "model.safetensors"),
        *("modeling_data2vec2.py", "preprocessor_config.json"),
    ]
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "out").iterdir())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: ") and "teacher's weights" in card and "`digits`" in card
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert described["checkpoint"] == "digits" and described["largest_differences"]["blocks"] <= 1e-5
    assert not any(str(ROOT) in path.read_text() for path in (tmp_path / "out").glob("*.[mj]*") if path.suffix != ".safetensors")


def test_the_card_tells_the_scores_of_the_run(command: Any, tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    summary = json.loads((tuned / "summary.json").read_text())["scores"]

    assert command("recipe", "export", tmp_path / "out", "--config", f"checkpoint.path={tuned}", "format=huggingface").status == 0

    card = (tmp_path / "out" / "README.md").read_text()
    assert summary and all(f"| {name} |" in card for name in summary)
    assert "pipeline_tag: image-classification" in card and "AutoModelForImageClassification" in card


def test_a_head_is_left_out_if_that_is_wanted(command: Any, tuned: Path, tmp_path: Path) -> None:
    settings = [f"checkpoint.path={tuned}", "format=d2v_plugin", "head=false"]

    outcome = command("recipe", "export", tmp_path / "out", "--config", *settings)

    assert outcome.status == 0 and "no head" in outcome.out
    assert "is left out" in " ".join(outcome.err.split())
    assert not (tmp_path / "out" / "head.safetensors").exists()


def test_only_exports_are_replaced(command: Any, short_run: Any, tmp_path: Path) -> None:
    words = ["recipe", "export", tmp_path / "out", "--config", f"checkpoint.path={short_run('digits')}", "format=d2v_plugin"]
    assert command(*words).status == 0

    again = command(*words)
    assert again.status == 2 and "replace it with --force" in again.err
    assert command(*words, "--force").status == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    words[2] = tmp_path / "mine"
    kept = command(*words, "--force")
    assert kept.status == 2 and "--force replaces nothing else" in kept.err
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_what_computes_something_else_is_not_left_in_place(
    command: Any, short_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Format(FORMATS["d2v_plugin"].export, tolerance=-1.0)
    monkeypatch.setitem(exporting.FORMATS, "d2v_plugin", strict)

    outcome = command(
        "recipe", "export", tmp_path / "out", "--config", f"checkpoint.path={short_run('digits')}", "format=d2v_plugin"
    )

    assert outcome.status == 2 and "does not compute what our own model computes (blocks by 0.0e+00" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["checkpoint.path={run}"], "`format` must be set: d2v_plugin, huggingface"),
        (["format=huggingface"], "`checkpoint.path` must be set"),
        (["checkpoint.path={run}", "format=huggingfase"], "`huggingfase` is not a known format. Did you mean `huggingface`?"),
        (["checkpoint.path=nowhere/at/all", "format=huggingface"], "nowhere/at/all does not exist"),
        (["checkpoint.path={run}", "format=d2v_plugin", "haed=false"], "Did you mean `head`?"),
        (["checkpoint.path={tuned}", "format=d2v_plugin", "checkpoint.weights=teacher"], "is fine-tuned and has no teacher"),
        (["checkpoint.path={run}", "format=d2v_plugin", "checkpoint.best=true"], "has no scores"),
    ],
)
def test_mistakes_are_told(command: Any, short_run: Any, tuned: Path, tmp_path: Path, settings: list[str], message: str) -> None:
    words = [setting.format(run=short_run("digits"), tuned=tuned) for setting in settings]

    outcome = command("recipe", "export", tmp_path / "out", "--config", *words)

    assert outcome.status == 2 and message in outcome.err, outcome.err
    assert not (tmp_path / "out").exists()


def test_without_transformers_there_is_a_line(
    command: Any, short_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)

    outcome = command(
        "recipe", "export", tmp_path / "out", "--config", f"checkpoint.path={short_run('digits')}", "format=huggingface"
    )

    assert outcome.status == 2 and "needs transformers: `pip install" in outcome.err
