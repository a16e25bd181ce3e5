"""Fine-tuning on two processes, replicated and sharded: what is frozen stays, what is not is trained as on one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ranks
from torch import Tensor

from d2v_plugin.cli.main import main
from d2v_plugin.weights.sources import NativeSource, find_source

FROZEN_UPDATES, UPDATES = 2, 4

# As in test_ddp.py: a large epsilon makes Adam's update smooth in the gradient.
RECIPE = """
task: {{_set_: {{name: image_classification, config: {{
  batch_size: 8, image: {{size: 32, crop_scale: [0.6, 1.0], eval_resize: 1.0}},
  mixing: {{mixup: 0.8, cutmix: 1.0}}, erasing: 0.25}}}}}}
base: tiny.yaml
init: {{path: {pretrained}}}
criterion: {{_set_: {{name: classification, config: {{freeze_frontend: true, freeze_updates: {frozen}}}}}}}
optimizer: {{config: {{lr: 0.1, eps: 1.0, weight_decay: 0.5, layer_decay: 0.5, head_lr: 0.3, head_weight_decay: 0.1}}}}
regime: {{num_steps: {updates}, checkpoint_every_n_steps: 1, publish_metrics_every_n_steps: 1, validate_every_n_steps: 4}}
pictures: {{enabled: false}}
"""


@dataclass
class Runs:
    """Where runs and evaluations lie, and what two processes printed, one run after the other."""

    folder: Path
    printed: str

    def weights(self, run: str, step: int | None = None) -> dict[str, Tensor]:
        path = self.folder / run if step is None else self.folder / run / "checkpoints" / f"step_{step}"
        source = find_source(path)
        assert isinstance(source, NativeSource)

        return source.read_all()

    def optimizer(self, run: str, step: int) -> dict[str, Any]:
        path = sorted((self.folder / run / "checkpoints" / f"step_{step}" / "optimizer").rglob("*.pt"))[0]

        return torch.load(path, weights_only=False)  # type: ignore[no-any-return]

    def scores(self, evaluation: str) -> dict[str, float]:
        return json.loads((self.folder / evaluation / "scores.json").read_text())["scores"]["valid"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Runs:
    folder = tmp_path_factory.mktemp("fine_tuning")
    (folder / "tiny.yaml").write_text(tiny_recipe_text)
    text = RECIPE.format(pretrained=folder / "pretrained", frozen=FROZEN_UPDATES, updates=UPDATES)
    (folder / "tune.yaml").write_text(text)
    main(["recipe", "train", "--config-file", str(folder / "tiny.yaml"), str(folder / "pretrained")])
    main(["recipe", "train", "--config-file", str(folder / "tune.yaml"), str(folder / "one")])
    main(["recipe", "evaluate", str(folder / "one_by_one"), "--config", f"checkpoint.path={folder / 'one'}"])

    commands: dict[str, list[object]] = {
        name: ["train", "--config-file", folder / "tune.yaml", folder / name, "--config", f"trainer.data_parallelism={name}"]
        for name in ("ddp", "fsdp")
    }
    commands["one_by_two"] = ["evaluate", folder / "one_by_two", "--config", f"checkpoint.path={folder / 'one'}"]
    printed = ""
    for name, words in commands.items():
        ranks = Ranks(["recipe", *words], folder / f"{name}_printed", size=2)
        assert ranks.wait() == [0, 0], ranks.output()[-3000:]
        printed += "".join(path.read_text() for path in sorted((folder / f"{name}_printed").iterdir()))

    return Runs(folder, printed)


RUNS = ("one", "ddp", "fsdp")


@pytest.mark.parametrize("run", RUNS)
def test_the_encoder_does_not_move_while_the_head_is_trained_alone(runs: Runs, run: str) -> None:
    pretrained, first, last = runs.weights("pretrained"), runs.weights(run, 1), runs.weights(run, FROZEN_UPDATES)

    encoder = [name for name in last if not name.startswith("criterion.")]
    assert encoder and [name for name in encoder if not torch.equal(last[name], pretrained[name])] == []
    head = [name for name in last if name.startswith("criterion.")]
    assert all(not torch.equal(last[name], first[name]) for name in head)


@pytest.mark.parametrize("run", RUNS)
def test_the_optimizer_knows_nothing_of_the_frozen_updates(runs: Runs, run: str) -> None:
    num_head = sum(name.startswith("criterion.") for name in runs.weights(run))
    frozen, thawed = (runs.optimizer(run, step)["state"] for step in (FROZEN_UPDATES, UPDATES))

    assert len(frozen) == num_head < len(thawed)
    steps = sorted(float(state["step"]) for state in thawed.values())
    assert steps == [UPDATES - FROZEN_UPDATES] * (len(thawed) - num_head) + [UPDATES] * num_head


@pytest.mark.parametrize("run", RUNS)
def test_afterwards_everything_is_trained_but_the_frontend_and_what_is_not_used(runs: Runs, run: str) -> None:
    pretrained, last = runs.weights("pretrained"), runs.weights(run)

    still = {name for name in last if not name.startswith("criterion.") and torch.equal(last[name], pretrained[name])}
    parts = {name.removeprefix("modality_encoders.IMAGE.").split(".")[0] for name in still}
    assert parts == {"local_encoder", "fixed_positional_encoder", "decoder"}
    assert not any(".decoder." not in name and ".blocks." in name for name in still)


@pytest.mark.parametrize("run", ["ddp", "fsdp"])
def test_two_processes_train_as_one(runs: Runs, run: str) -> None:
    one, two = runs.weights("one"), runs.weights(run)

    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-6, atol=1e-6), name
    groups = [[(group["initial_lr"], group["weight_decay"]) for group in runs.optimizer(name, UPDATES)["param_groups"]]
              for name in ("one", run)]  # fmt: skip
    assert groups[0] == groups[1]
    assert {lr for lr, _ in groups[0]} == {0.3, 0.05, 0.025, 0.0125, 0.00625}


def test_one_of_two_processes_describes_the_run_and_logs_the_layers(runs: Runs) -> None:
    printed = [line for line in runs.printed.splitlines() if line.startswith(("train: ", "device: "))]
    assert len(printed) == 4 and printed[0] == printed[2]  # one of each run
    assert printed[0].endswith(f"{UPDATES} updates, the head alone in the first {FROZEN_UPDATES}")
    assert "2 processes (ddp), each on CPU" in printed[1] and "2 processes (fsdp), each on CPU" in printed[3]

    tables = []
    for run in ("ddp", "fsdp"):
        lines = (runs.folder / run / "logs" / "rank_0.log").read_text().splitlines()
        (start,) = (number for number, line in enumerate(lines) if line.startswith("trained "))
        tables.append(lines[start : start + 8])
        assert "\ntrained " not in (runs.folder / run / "logs" / "rank_1.log").read_text()
    first, second = tables
    assert first == second
    assert first[1].split()[0] == "frontend" and first[5].split()[0] == "head"
    assert first[5].split()[2:] == ["0.3", "0.1", "on", "320"]
    assert first[7] == "Updates 1 to 2 train the head alone."


def test_scores_and_predictions_do_not_depend_on_the_number_of_processes(runs: Runs) -> None:
    expected = runs.scores("one_by_one")

    assert runs.scores("one_by_two") == pytest.approx(expected, abs=1e-6)
    texts = [(runs.folder / name / "predictions" / "valid.tsv").read_text() for name in ("one_by_one", "one_by_two")]
    assert texts[0] == texts[1] and texts[0].count("\n") == 598
