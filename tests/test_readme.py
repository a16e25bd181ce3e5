"""Commands of the README and of the pages work as they stand there; the line with the tests is CI's (.ci/run)."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_plugin.cli.main import main
from d2v_plugin.cli.manifest import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    "regime={num_steps: 1, publish_metrics_every_n_steps: 1}",
    "probing.probes=[]",
    "pictures.enabled=false",
    "lr_scheduler={name: passthrough, config: null}",
]


def read_commands(path: str) -> list[str]:
    """All commands of the fenced blocks without language, comments left out; indented ones are examples, not commands."""
    lines, language = [], None
    for line in ROOT.joinpath(path).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "":
            lines.append(line.split("   #")[0].strip())

    return lines


DOCS = (
    *("README.md", "recipes/README.md", "recipes/fine_tuning.md", "recipes/long_runs.md", "recipes/comparing.md"),
    *("recipes/pictures.md", "recipes/differences.md", "recipes/speed/README.md", "recipes/using.md"),
    "recipes/exporting.md",
)
COMMANDS = [line for path in DOCS for line in read_commands(path)]
RECIPES = sorted({line[line.index("recipe ") :] for line in COMMANDS if " recipe " in line and "venv" not in line})
TRAIN = [line for line in RECIPES if line.startswith("recipe train")]
OTHERS = [line for line in RECIPES if line.split()[1] in ("evaluate", "predict", "extract", "inspect", "export")]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def fine_tuned(short_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the output directory of the README's fine-tuning command for a run called so, after one update."""
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            (line,) = (line for line in TRAIN if f" out/{name} " in line)
            runs[name] = tmp_path_factory.mktemp("tuned") / name
            main([*place_train(line, runs[name], short_run), *SHORT])

        return runs[name]

    return run


def place_train(line: str, out: Path, short_run: Any) -> list[str]:
    """A training command that writes to ``out`` and starts from short runs, ready for more settings."""
    before, _, after = line.partition(" --config ")
    words = shlex.split(before)
    words[next(i for i, word in enumerate(words) if word.startswith("out/"))] = str(out)
    settings = [place(word, short_run) for word in shlex.split(after) if not word.startswith("regime.")]

    return [*words, "--config", *settings]


def place(text: str, short_run: Any) -> str:
    return re.sub(r"out/(digits|words|books)\b(?!_)", lambda found: str(short_run(found[1])), text)


def test_every_command_is_known_here() -> None:
    """A new kind of command in the documents needs a test of its own."""
    kinds = ("fairseq2 recipe", "torchrun --nproc-per-node 2 -m d2v_plugin", "python3 -m venv .venv", "python -m tools.")
    assert COMMANDS and all(command.startswith(kinds) for command in COMMANDS)
    assert len(TRAIN) >= 8 and len(OTHERS) >= 8


@pytest.mark.parametrize("line", [line for line in TRAIN if "--resume" not in line and "--extend" not in line])
def test_training_commands_train(command: Any, tmp_path: Path, line: str, short_run: Any) -> None:
    outcome = command(*place_train(line, tmp_path / "out", short_run), *SHORT)

    assert outcome.status == 0, outcome.err
    assert "Finished after 1 updates." in outcome.out


@pytest.mark.parametrize("line", [line for line in TRAIN if "--resume" in line or "--extend" in line])
def test_resuming_commands_resume(command: Any, tmp_path: Path, line: str, short_run: Any) -> None:
    shutil.copytree(short_run("digits"), tmp_path / "out")
    line = line.replace("out/digits/checkpoints/step_300", str(tmp_path / "out" / "checkpoints" / "step_1"))
    out = tmp_path / ("branch" if "out/branch" in line else "out")
    two_updates = [SHORT[0].replace("1", "2"), *SHORT[1:], "criterion.config.num_views=1", "common.torch.num_threads=1"]

    outcome = command(*place_train(line, out, short_run), *two_updates)

    assert outcome.status == 0, outcome.err
    assert "Finished after 2 updates." in outcome.out


@pytest.mark.parametrize("line", OTHERS)
def test_commands_on_checkpoints_work(command: Any, tmp_path: Path, line: str, short_run: Any, fine_tuned: Any) -> None:
    if "beam_search" in line:
        pytest.importorskip("flashlight.lib.text")
        line = line.replace("lexicon.txt", str(write_lexicon(tmp_path))).replace("4-gram.arpa", str(write_arpa(tmp_path)))
    words = [
        place(re.sub(r"out/(digits_tuned|transcriber|book_pairs)\b", lambda found: str(fine_tuned(found[1])), word), short_run)
        for word in shlex.split(line)
    ]
    words[2] = str(tmp_path / "out")

    outcome = command(*words)

    assert outcome.status == 0, outcome.err
    assert str(tmp_path / "out") in outcome.out


def write_lexicon(folder: Path) -> Path:
    path = folder / "lexicon.txt"
    path.write_text("one\ntwo\n")

    return path


def write_arpa(folder: Path) -> Path:
    path = folder / "lm.arpa"
    grams = "\n".join(f"-1.0\t{word}\t-0.3" for word in ("<unk>", "<s>", "one", "two"))
    pairs = "\\2-grams:\n-0.5\tone two\n\n\\end\\\n"
    path.write_text(f"\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n{grams}\n-1.0\t</s>\n\n{pairs}")

    return path


def test_list_lists(command: Any) -> None:
    assert any(line.startswith("fairseq2 recipe list") for line in COMMANDS)
    assert "image_pretraining" in command("recipe", "list").out


def test_manifest_commands_of_the_page_about_data_are_understood() -> None:
    lines = [line for line in read_commands("manifests/README.md") if line.startswith("fairseq2")]
    assert len(lines) >= 14

    for line in lines:
        program, *words = shlex.split(line)[1:]
        assert program == "recipe" and words[0] == "manifest"
        make_parser().parse_args(words[1:])


def test_conversion_commands_convert(command: Any, tmp_path: Path, fairseq_checkpoint: Any) -> None:
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    small = Data2VecAudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=2,
    )
    Data2VecAudioModel(small).save_pretrained(tmp_path / "data2vec-audio-base")
    shutil.copy(fairseq_checkpoint("audio"), tmp_path / "base_libri.pt")
    lines = [line for line in COMMANDS if line.startswith("fairseq2 recipe convert")]
    assert len(lines) == 3

    for line in lines:
        *words, source, out = shlex.split(line)[1:]
        assert command(*words, tmp_path / source, tmp_path / out).status == 0

    assert (tmp_path / "out" / "base_libri" / "model.safetensors").is_file()
    Data2VecAudioModel.from_pretrained(tmp_path / "out" / "audio_hf")


def test_the_example_of_loading_loads(command: Any, tmp_path: Path, tiny_recipe: Path, with_head: Any) -> None:
    from torchvision.io import write_png

    found = re.search(r"<!-- code: load -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "digits", "--config", *SHORT).status == 0
    (tmp_path / "pictures").mkdir()
    write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), str(tmp_path / "pictures" / "black.png"))

    names: dict[str, Any] = {"images": torch.randn(2, 3, 32, 32)}
    code = found[1].replace("out/digits_tuned", str(with_head("classes"))).replace("out/digits", str(tmp_path / "digits"))
    exec(code.replace('"pictures"', repr(str(tmp_path / "pictures"))), names)

    assert names["features"].x.shape == (2, 64, 32)
    assert len(names["classes"]) == 1 and names["classes"][0].label in "0123456789"
