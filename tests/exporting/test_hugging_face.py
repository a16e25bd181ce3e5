"""Exported folders compute what our own models compute, in a process that has neither this package nor fairseq2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cases import BOOKS, CASES, describe_models, write_case
from fairseq2.recipe.error import RecipeError

from d2v_plugin.cli.main import main
from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcCriterion
from d2v_plugin.data.image import ImageReadingConfig, fit, normalize
from d2v_plugin.data.preparation.pieces import learn_pieces
from d2v_plugin.data.single import read_audio
from d2v_plugin.data.text import END, PADDING, SENTENCEPIECE_FILE
from d2v_plugin.data.tokenizers import open_tokenizer
from d2v_plugin.data.transcripts import Pieces
from d2v_plugin.exporting.export import export_model
from d2v_plugin.exporting.exportable import Exportable, read_exportable
from d2v_plugin.exporting.hugging_face.inputs import find_reading
from d2v_plugin.exporting.hugging_face.settings import describe_head
from d2v_plugin.exporting.hugging_face.tokenizers import write_symbols, write_tokenizer
from d2v_plugin.scoring.ctc_decoding import GreedyDecoder
from d2v_plugin.verbs.extensions import open_library

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
ELSEWHERE = Path(__file__).parent / "elsewhere.py"
LINES = ["A devil's dictionary, naïve and “quoted”.", "  two   spaces ", "1,000 日本"]
RUNS = ("digits_tuned", "transcriber", "multimodal_run")
SHORT = ["regime={num_steps: 1, publish_metrics_every_n_steps: 1}", "lr_scheduler={name: passthrough, config: null}"]
SHORT += ["pictures.enabled=false", "common.torch.num_threads=1"]


@dataclass
class Found:
    """What the other process found."""

    version: str
    found: dict[str, Any]
    expected: dict[str, Any]
    wrong: str
    """What went wrong with the code of the pages."""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, short_run: Any) -> Found:
    root, container = tmp_path_factory.mktemp("exported"), open_library()
    sources: dict[str, Path] = {}
    for name, case in CASES.items():
        sources[name] = root / f"{name}_ours"
        write_case(case, sources[name], container)
    sources["multimodal_run"] = short_run("multimodal")
    for name, recipe, start in (("digits_tuned", "finetune_digits", "digits"), ("transcriber", "finetune_words", "words")):
        sources[name] = root / f"{name}_run"
        path = str(ROOT / "recipes" / "demo" / f"{recipe}.yaml")
        words = ["recipe", "train", "--config-file", path, str(sources[name]), "--config", *SHORT]
        main([*words, f"init.path={short_run(start)}"])

    folders, expected = {}, {}
    for name, source in sources.items():
        folders[name] = root / name
        exportable = export_model(source, folders[name], format="huggingface", resolver=container).exportable
        inputs, expected[name] = {}, {}
        for modality in exportable.model.config.frontends if exportable.task is not None else ():
            place = "" if len(exportable.model.config.frontends) == 1 else modality.value
            inputs[place], expected[name][place] = describe_inputs(exportable, modality, root)
        torch.save({"models": describe_models(exportable), "inputs": inputs}, folders[name].with_suffix(".pt"))

    words = short_run("words")
    export_model(words, root / "shared_encoder", format="huggingface", resolver=container, weights="teacher")

    report = run_elsewhere(read_pages(root), folders.values(), root)

    return Found(report["version"], report["found"], expected, report.get("shown", ""))


def run_elsewhere(shown: str, folders: Iterable[Path], cache: Path) -> dict[str, Any]:
    """Run ``elsewhere.py`` in a process of its own, outside of the checkout and without its path; returns what it found."""
    (cache / "shown.py").write_text(shown)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(cache / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ELSEWHERE), str(cache / "shown.py"), *map(str, folders)]
    done = subprocess.run(words, cwd=cache, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]

    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def read_pages(root: Path) -> str:
    """What the pages show of exported folders, with inputs and checks."""
    page, readme = (ROOT.joinpath(page).read_text(encoding="utf-8") for page in ("recipes/exporting.md", "README.md"))
    blocks = [
        re.findall(rf"<!-- code: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
        for text, name in ((readme, "elsewhere"), (page, "hugging face"), (page, "hugging face encoder"))
    ]
    assert all(len(found) == 1 for found in blocks)
    code = GIVEN + "".join(found[0] for found in blocks) + SHOWN
    for name, folder in (("shared_encoder", "shared_encoder"), ("shared_digits", "digits_tuned"), ("shared", "transcriber")):
        code = code.replace(f'"out/{name}"', repr(str(root / folder)))

    return code


GIVEN = """
import numpy as np, torch
from PIL import Image
waveform = np.random.default_rng(1).normal(size=16_000).astype("float32")
waveforms, picture = torch.randn(2, 8000), Image.new("RGB", (40, 40))
"""
SHOWN = """
assert len(transcripts) == 2 and logits.shape[:2] == (2, 49)
assert name in "0123456789" and output.last_hidden_state.shape[-1] == 96 and len(output.hidden_states) == 5
"""


def describe_inputs(exportable: Exportable, modality: Modality, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Raw inputs, and what our own reading makes of them: tensors for the other process, plain data for this one."""
    generator = np.random.default_rng(1)
    match modality:
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
            reading: ImageReadingConfig = find_reading(exportable, modality)
            pictures = [torch.from_numpy(generator.integers(256, size=(3, side, side), dtype=np.uint8)) for side in (40, 64)]
            return {"pictures": pictures, "pixels": normalize([fit(picture, reading) for picture in pictures], reading)}, {}


def describe_symbols(exportable: Exportable, inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(exportable.criterion, CtcCriterion) or exportable.labels is None:
        return inputs, {}
    generator = torch.Generator().manual_seed(1)
    # Each symbol some frames long, as in speech.
    rows = torch.randint(len(exportable.labels), (3, 12), generator=generator).repeat_interleave(2, dim=1)
    log_probs = torch.nn.functional.one_hot(rows, len(exportable.labels)).float()
    found = GreedyDecoder(exportable.labels).decode_batch(log_probs, torch.full((3,), rows.size(1)))
    decoded = [transcript.hypothesis for transcript in found]
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
        if not name.startswith("multimodal") and not frozen:
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


@pytest.mark.parametrize(
    ("name", "place"), [*((name, "") for name in ("ctc", "tags", "recordings", "transcriber")), ("multimodal_run", "audio")]
)
def test_recordings_are_normalized_as_in_training(elsewhere: Found, name: str, place: str) -> None:
    found = elsewhere.found[name]["inputs"][place]

    assert found["waveforms"] <= 1e-5 and found["mask"] == [4000, 2500]


@pytest.mark.parametrize("name", ["ctc", "transcriber"])
def test_symbols_become_the_same_transcripts(elsewhere: Found, name: str) -> None:
    found, expected = elsewhere.found[name]["inputs"][""], elsewhere.expected[name][""]

    assert found["symbols"] == expected["symbols"] and found["spelled"] == expected["spelled"]
    assert found["processor"][0] == "Data2Vec2Processor" and found["processor"][1] <= 1e-5


@pytest.mark.parametrize(("name", "place"), [("sentences", ""), ("numbers", ""), ("multimodal_run", "text")])
def test_text_becomes_the_same_ids(elsewhere: Found, name: str, place: str) -> None:
    found, expected = elsewhere.found[name]["inputs"][place], elsewhere.expected[name][place]

    assert found["lines"] == expected["lines"] and found["pairs"] == expected["pairs"]
    assert found["special"] == [PADDING, open_tokenizer(BOOKS).vocabulary.mask, 0, END]
    assert found["padded"] == ["attention_mask", "input_ids"]


@pytest.mark.parametrize(
    ("name", "place"), [("pictures", ""), ("pictures_mean", ""), ("digits_tuned", ""), ("multimodal_run", "image")]
)
def test_square_pictures_become_the_same_pixels(elsewhere: Found, name: str, place: str) -> None:
    # Pillow's numbers round as torch's do, up to one level of 255.
    assert elsewhere.found[name]["inputs"][place]["pictures"] <= 1.01 / 255 / 0.22


def test_what_the_pages_show_works(elsewhere: Found) -> None:
    assert elsewhere.wrong == ""


def test_heads_of_extensions_are_refused_by_name(tmp_path: Path) -> None:
    class Mine(ClassificationCriterion):
        """May compute anything."""

    write_case(CASES["pictures"], tmp_path / "ours", open_library())
    exportable = read_exportable(tmp_path / "ours", open_library())
    criterion = Mine(ClassificationConfig())
    criterion.set_labels(exportable.labels)

    with pytest.raises(CheckpointError, match=r"a `Mine`, is none that Hugging Face's classes have\. `head=false` exports"):
        describe_head(replace(exportable, criterion=criterion))


def test_bytes_of_gpt_2_keep_our_ids(tmp_path: Path) -> None:
    letters = ["\u0120", *"abcdehlorw", "he", "ll", "\u0120w"]
    (tmp_path / "encoder.json").write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nh e\nl l\n\u0120 w\n")
    (tmp_path / "dict.txt").write_text("".join(f"{index} 1\n" for index in reversed(range(len(letters)))))
    (tmp_path / "out").mkdir()

    write_tokenizer(tmp_path, tmp_path / "out", max_length=20)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = open_tokenizer(tmp_path).encode_lines(["hello world"])[0].tolist()
    assert tokenizer("hello world")["input_ids"] == [0, *expected, END] and len(expected) == 8
    assert tokenizer.decode(expected) == "hello world" and tokenizer.mask_token_id == len(letters) + 4


def test_pieces_without_an_id_are_refused(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    (tmp_path / "dict.txt").write_text("0 1\n")

    with pytest.raises(RecipeError, match="1 of the pieces have no id in the dictionary, such as `b`"):
        write_tokenizer(tmp_path, tmp_path, max_length=20)


def test_pieces_of_transcripts_keep_their_numbers(tmp_path: Path) -> None:
    lines = ["the owl and the cat", "a cat that sat", "another owl at the hat", "the other hat"]
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(
        learn_pieces(lines * 5, size=20, num_more=1, source="x", bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0)
    )
    spelling = Pieces(tmp_path / SENTENCEPIECE_FILE)
    labels = spelling.find_labels([])

    write_symbols(labels.names, tmp_path / SENTENCEPIECE_FILE, tmp_path)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for line in lines:
        numbers = [labels.indices[symbol] for symbol in spelling.spell(line)]
        assert tokenizer(line)["input_ids"] == numbers
        # A blank behind each symbol, as between equal ones.
        frames = [number for symbol in numbers for number in (symbol, symbol, 0)]
        assert tokenizer.decode(frames) == line
    assert tokenizer.pad_token_id == 0 and len(tokenizer) == len(labels)


def test_pieces_without_their_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pieces of a SentencePiece model, which is not there"):
        write_symbols(["<blank>", "▁the"], None, tmp_path)
