"""Exported folders compute what our own models compute, in a process that has neither this package nor fairseq2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cases import BOOKS, CASES, describe_models, write_case

from d2v_plugin.cli.main import main
from d2v_plugin.core.batch import Modality
from d2v_plugin.criteria.supervised.ctc import CtcCriterion
from d2v_plugin.data.image import ImageReadingConfig, fit, normalize
from d2v_plugin.data.single import read_audio
from d2v_plugin.data.text import END, PADDING
from d2v_plugin.data.tokenizers import open_tokenizer
from d2v_plugin.exporting.export import export_model
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.scoring.ctc_decoding import GreedyDecoder
from d2v_plugin.verbs.extensions import open_library

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
ELSEWHERE = Path(__file__).parent / "elsewhere.py"
LINES = ["A devil's dictionary, naïve and “quoted”.", "  two   spaces ", "1,000 日本"]
RUNS = ("digits_tuned", "transcriber")
SHORT = ["regime={num_steps: 1, publish_metrics_every_n_steps: 1}", "lr_scheduler={name: passthrough, config: null}"]
SHORT += ["pictures.enabled=false", "common.torch.num_threads=1"]


@dataclass
class Found:
    """What the other process found."""

    version: str
    found: dict[str, Any]
    expected: dict[str, Any]
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, short_run: Any) -> Found:
    root, container = tmp_path_factory.mktemp("exported"), open_library()
    sources: dict[str, Path] = {}
    for name, case in CASES.items():
        sources[name] = root / f"{name}_ours"
        write_case(case, sources[name], container)
    for name, recipe, start in (("digits_tuned", "finetune_digits", "digits"), ("transcriber", "finetune_words", "words")):
        sources[name] = root / f"{name}_run"
        path = str(ROOT / "recipes" / "demo" / f"{recipe}.yaml")
        words = ["recipe", "train", "--config-file", path, str(sources[name]), "--config", *SHORT]
        main([*words, f"init.path={short_run(start)}"])

    folders, expected = {}, {}
    for name, source in sources.items():
        folders[name] = root / name
        exportable = export_model(source, folders[name], format="huggingface", resolver=container).exportable
        inputs, expected[name] = describe_inputs(exportable, root)
        torch.save({"models": describe_models(exportable), "inputs": inputs}, folders[name].with_suffix(".pt"))

    return Found(*run_elsewhere(folders.values(), root), expected, folders)


def run_elsewhere(folders: Any, cache: Path) -> tuple[str, dict[str, Any]]:
    """Run ``elsewhere.py`` in a process of its own, outside of the checkout and without its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(cache / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ELSEWHERE), *map(str, folders)], cwd=cache, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])

    return report["version"], report["found"]


def describe_inputs(exportable: Exportable, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Raw inputs, and what our own reading makes of them: tensors for the other process, plain data for this one."""
    if exportable.task is None:
        return {}, {}
    generator = np.random.default_rng(1)
    match exportable.modality:
        case Modality.AUDIO:
            waveforms = [generator.normal(0.1, size, size=length) for size, length in ((0.2, 4000), (0.002, 2500))]
            inputs = {"waveforms": [torch.from_numpy(waveform).float() for waveform in waveforms]}
            inputs["normalized"] = torch.zeros(2, 4000)  # type: ignore[assignment]
            for row, waveform in enumerate(inputs["waveforms"]):
                soundfile.write(root / "sound.wav", waveform.numpy(), 16_000, subtype="FLOAT")
                inputs["normalized"][row][: len(waveform)] = read_audio(root / "sound.wav")[0]
            return describe_symbols(exportable, {**inputs})
        case Modality.TEXT:
            rows = [line.tolist() for line in open_tokenizer(BOOKS).encode_lines(LINES)]
            singles = [[0, *row, END] for row in rows]
            pairs = [[0, *first, END, END, *second, END] for first, second in zip(rows, rows[::-1], strict=True)]
            return {"lines": LINES}, {"lines": singles, "pairs": pairs}
        case _:
            reading: ImageReadingConfig = exportable.task.config.image
            pictures = [torch.from_numpy(generator.integers(256, size=(3, side, side), dtype=np.uint8)) for side in (40, 64)]
            return {"pictures": pictures, "pixels": normalize([fit(picture, reading) for picture in pictures], reading)}, {}


def describe_symbols(exportable: Exportable, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(exportable.criterion, CtcCriterion) or exportable.labels is None:
        return inputs, {}
    generator = torch.Generator().manual_seed(1)
    # Each symbol some frames long, as in speech.
    rows = torch.randint(len(exportable.labels), (3, 12), generator=generator).repeat_interleave(2, dim=1)
    log_probs = torch.nn.functional.one_hot(rows, len(exportable.labels)).float()
    decoded = GreedyDecoder(exportable.labels).decode_batch(log_probs, torch.full((3,), rows.size(1)))
    text = "".join(label for label in exportable.labels.names[2:])
    spelled = [exportable.labels.indices[symbol] for symbol in text]

    return {**inputs, "symbols": rows.tolist(), "text": text}, {"symbols": decoded, "spelled": spelled}


ALL = [*CASES, *RUNS]


@pytest.mark.parametrize("name", ALL)
def test_hidden_states_and_outputs_are_equal(elsewhere: Found, name: str) -> None:
    for found in elsewhere.found[name]["models"].values():
        assert found["keys"] == []
        assert max(found[what] for what in ("difference", "encoder", "eager")) <= 1e-5, found


@pytest.mark.parametrize("name", ALL)
def test_a_saved_model_is_the_same_again_with_its_code(elsewhere: Found, name: str) -> None:
    for found in elsewhere.found[name]["models"].values():
        assert max(found["again"], found["again_encoder"]) <= 1e-5
        assert {"configuration_data2vec2.py", "modeling_data2vec2.py"} <= set(found["code"])


@pytest.mark.parametrize("name", ALL)
def test_it_trains_with_and_without_recomputation(elsewhere: Found, name: str) -> None:
    for found in elsewhere.found[name]["models"].values():
        assert found["checkpointing"] <= 1e-5, found
        frozen = CASES[name].frontend.get("local_grad_scale") == 0.0 if name in CASES else False
        if name != "multimodal" and not frozen:
            assert found["gradients"] == found["trainable"]


@pytest.mark.parametrize("name", ALL)
def test_it_loads_in_bfloat16(elsewhere: Found, name: str) -> None:
    assert all(found["bf16"] < 0.2 for found in elsewhere.found[name]["models"].values())


@pytest.mark.parametrize("name", ALL)
def test_it_tells_the_weights_of_attention(elsewhere: Found, name: str) -> None:
    for found in elsewhere.found[name]["models"].values():
        count, difference = found["attentions"]
        assert count >= 2 and difference < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("ctc", "Data2Vec2ForCTC"), ("tags", "Data2Vec2ForAudioClassification"), ("encoder", "Data2Vec2Model")),
        *(("pictures", "Data2Vec2ForImageClassification"), ("numbers", "Data2Vec2ForSequenceClassification")),
        *(("transcriber", "Data2Vec2ForCTC"), ("digits_tuned", "Data2Vec2ForImageClassification")),
    ],
)
def test_each_head_has_its_class(elsewhere: Found, name: str, kind: str) -> None:
    assert {found["class"] for found in elsewhere.found[name]["models"].values()} == {kind}


@pytest.mark.parametrize("name", ["ctc", "tags", "recordings", "transcriber"])
def test_recordings_are_normalized_as_in_training(elsewhere: Found, name: str) -> None:
    found = elsewhere.found[name]["inputs"]

    assert found["waveforms"] <= 1e-5 and found["mask"] == [4000, 2500]


@pytest.mark.parametrize("name", ["ctc", "transcriber"])
def test_symbols_become_the_same_transcripts(elsewhere: Found, name: str) -> None:
    found, expected = elsewhere.found[name]["inputs"], elsewhere.expected[name]

    assert found["symbols"] == expected["symbols"] and found["spelled"] == expected["spelled"]
    assert found["processor"][0] == "Data2Vec2Processor" and found["processor"][1] <= 1e-5


@pytest.mark.parametrize("name", ["sentences", "numbers"])
def test_text_becomes_the_same_ids(elsewhere: Found, name: str) -> None:
    found, expected = elsewhere.found[name]["inputs"], elsewhere.expected[name]

    assert found["lines"] == expected["lines"] and found["pairs"] == expected["pairs"]
    assert found["special"] == [PADDING, open_tokenizer(BOOKS).vocabulary.mask, 0, END]
    assert found["padded"] == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("name", ["pictures", "pictures_mean", "digits_tuned"])
def test_square_pictures_become_the_same_pixels(elsewhere: Found, name: str) -> None:
    # Pillow's numbers round as torch's do, up to one level of 255.
    assert elsewhere.found[name]["inputs"]["pictures"] <= 1.01 / 255 / 0.22
