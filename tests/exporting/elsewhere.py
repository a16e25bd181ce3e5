"""Loads exported folders as a stranger does: neither this package nor fairseq2 can be imported. Run as a program by the tests.

``python elsewhere.py SHOWN.py FOLDER…`` reads ``FOLDER.pt`` beside each folder, what our own model computes, runs SHOWN.py,
and prints what it found as one line of JSON. ``D2V_TRANSFORMERS`` names a folder with another version of transformers, which is
taken first.
"""

from __future__ import annotations

import importlib.abc
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

if other := os.environ.get("D2V_TRANSFORMERS"):
    sys.path.insert(0, other)


class Refuse(importlib.abc.MetaPathFinder):
    """Lets nobody import what the folders must do without."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("d2v_plugin", "fairseq2"):
            raise ImportError(f"{name} must not be imported")


sys.meta_path.insert(0, Refuse())

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
)

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
TRUST: dict[str, Any] = {"trust_remote_code": True}


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(((found.double() - expected.double()).abs() / expected.double().abs().clamp_min(1.0)).amax())


def compare(model: Any, case: dict[str, Any]) -> float:
    """The largest difference of all hidden states and of the head, at valid positions."""
    with torch.no_grad():
        output = model(**case["inputs"], output_hidden_states=True)
    valid, found = case["valid"], 0.0
    assert len(output.hidden_states) == len(case["blocks"]) + 1
    for ours, theirs in zip(case["blocks"], output.hidden_states[1:], strict=True):
        found = max(found, difference(ours[valid], theirs[valid]))
    if case["head"] is not None and hasattr(output, "logits"):
        head, logits = case["head"], output.logits
        if model.config.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
        if head.dim() == 3:
            frames = valid[:, valid.size(1) - head.size(1) :]
            head, logits = head[frames], logits[frames]
        found = max(found, difference(head, logits))

    return found


def gradients(model: Any, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients in training mode, of the loss of the head or of the encoder's output."""
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    if case["labels"] is None:
        model(**case["inputs"]).last_hidden_state.square().mean().backward()
    else:
        model(**case["inputs"], labels=case["labels"]).loss.backward()
    model.eval()

    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_model(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    auto = getattr(transformers, case["auto"])
    model, info = auto.from_pretrained(folder, output_loading_info=True, **TRUST)
    found: dict[str, Any] = {"class": type(model).__name__, "difference": compare(model, case)}
    found["keys"] = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
    found["encoder"] = compare(AutoModel.from_pretrained(folder, **TRUST), {**case, "head": None})
    found["eager"] = compare(auto.from_pretrained(folder, attn_implementation="eager", **TRUST), case)

    output = model(**case["inputs"], output_attentions=True)
    found["attentions"] = [len(output.attentions), difference(torch.ones(()), output.attentions[-1].sum(-1).mean())]
    assert isinstance(model(**case["inputs"], return_dict=False), tuple)

    found["trainable"] = sum(p.requires_grad for p in model.parameters())
    plain = gradients(model, case)
    model.gradient_checkpointing_enable()
    recomputed = gradients(model, case)
    model.gradient_checkpointing_disable()
    found["gradients"] = len(plain)
    found["checkpointing"] = max(difference(plain[name], recomputed[name]) for name in plain | recomputed)

    again = folder.with_name(folder.name + "_again")
    model.save_pretrained(again)
    found["code"] = sorted(path.name for path in again.glob("*.py"))
    found["again"] = compare(auto.from_pretrained(again, **TRUST), case)
    found["again_encoder"] = compare(AutoModel.from_pretrained(again, **TRUST), {**case, "head": None})
    shutil.rmtree(again)

    half = auto.from_pretrained(folder, dtype=torch.bfloat16, **TRUST)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    found["bf16"] = compare(half, case)

    return found


def check_inputs(folder: Path, subfolder: str, case: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    place: dict[str, Any] = {**TRUST, **({"subfolder": subfolder} if subfolder else {})}
    if "waveforms" in case:
        reader = AutoFeatureExtractor.from_pretrained(folder, **place)
        read = reader([w.numpy() for w in case["waveforms"]], sampling_rate=16_000, padding=True, return_tensors="pt")
        found["waveforms"] = difference(case["normalized"], read["input_values"])
        found["mask"] = read["attention_mask"].sum(1).tolist()
    if "symbols" in case:
        tokenizer = AutoTokenizer.from_pretrained(folder, **TRUST)
        found["symbols"] = [tokenizer.decode(row) for row in case["symbols"]]
        found["spelled"] = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        processor = AutoProcessor.from_pretrained(folder, **TRUST)
        read = processor([w.numpy() for w in case["waveforms"]], sampling_rate=16_000, padding=True, return_tensors="pt")
        found["processor"] = [type(processor).__name__, difference(case["normalized"], read["input_values"])]
    if "lines" in case:
        tokenizer = AutoTokenizer.from_pretrained(folder, **place)
        found["lines"] = tokenizer(case["lines"])["input_ids"]
        found["pairs"] = tokenizer(case["lines"], case["lines"][::-1])["input_ids"]
        found["special"] = [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
        found["padded"] = sorted(tokenizer(case["lines"], padding=True, return_tensors="pt"))
    if "pictures" in case:
        from PIL import Image

        reader = AutoImageProcessor.from_pretrained(folder, **place)
        pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in case["pictures"]]
        pixels = reader(pictures, return_tensors="pt")["pixel_values"]
        found["pictures"] = float((pixels - case["pixels"]).abs().amax()) if pixels.shape == case["pixels"].shape else 1e9

    return found


def main() -> None:
    report: dict[str, Any] = {"version": transformers.__version__, "found": {}}
    for folder in map(Path, sys.argv[2:]):
        content = torch.load(folder.with_suffix(".pt"), weights_only=False)
        found = {name: check_model(folder, case) for name, case in content["models"].items()}
        inputs = {name: check_inputs(folder, name, case) for name, case in content["inputs"].items()}
        report["found"][folder.name] = {"models": found, "inputs": inputs}
    try:
        exec(Path(sys.argv[1]).read_text(), {})
    except Exception:
        report["shown"] = traceback.format_exc()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
