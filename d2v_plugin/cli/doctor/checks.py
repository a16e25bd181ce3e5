"""What `fairseq2 doctor` tries, each in a few lines; ``python -m d2v_plugin.cli.doctor.checks NAME …`` runs them.

They run in a process of their own: a library of a wrong version may end the process that imports it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final


def check_torch() -> str:
    import torch

    x = torch.ones(8, 8)
    assert (x @ x).sum().item() == 512

    return f"{torch.__version__}, {torch.get_num_threads()} threads, {describe_devices(torch)}"


def describe_devices(torch: Any) -> str:
    """The devices that can be trained on."""
    if not torch.cuda.is_available():
        return f"no GPU, built {f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'}"
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]

    return ", ".join(f"{found.name} ({found.total_memory / 2**30:.0f} GiB)" for found in properties)


def check_torchvision() -> str:
    import torch
    import torchvision
    from torchvision.io import decode_png, encode_png

    picture = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
    assert torch.equal(decode_png(encode_png(picture)), picture)

    return f"{torchvision.__version__}, reads pictures"


def check_soundfile() -> str:
    import numpy as np
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, dtype=np.float32), 16_000, format="FLAC")
    file.seek(0)
    assert len(soundfile.read(file)[0]) == 1600

    return f"{soundfile.__version__} with libsndfile {soundfile.__libsndfile_version__}, reads sound"


def check_fairseq2() -> str:
    import fairseq2
    import fairseq2n
    import torch

    built, cuda = fairseq2n.torch_version(), fairseq2n.supports_cuda()
    assert torch.__version__.partition("+")[0] == built.partition("+")[0], f"fairseq2n was built for torch {built}"

    return f"{fairseq2.__version__}, fairseq2n for torch {built} ({fairseq2n.torch_variant()}{'' if cuda else ', CPU only'})"


def check_models() -> str:
    import fairseq2.recipe  # noqa: F401  # first: other modules of it cannot be imported before
    import torch

    from d2v_plugin.models.families import FAMILIES, create_model

    model = create_model(FAMILIES["data2vec"].archs["image_tiny"]())
    features = model.eval().extract_features(torch.zeros(1, 3, *model.config.image.image_shape)).x  # type: ignore[union-attr]

    return f"a tiny model computes features {tuple(features.shape)}"


def check_safetensors() -> str:
    import safetensors
    import torch
    from safetensors.torch import load, save

    assert load(save({"x": torch.ones(2)}))["x"].sum().item() == 2

    return f"{safetensors.__version__}"


def check_sentencepiece() -> str:
    import sentencepiece

    sentencepiece.SentencePieceProcessor()

    return f"{sentencepiece.__version__}"


def check_soxr() -> str:
    import numpy as np
    import soxr

    assert len(soxr.resample(np.zeros(800, dtype=np.float32), 8000, 16_000)) == 1600

    return f"{soxr.__version__}, resamples"


def check_scipy() -> str:
    import numpy as np
    import scipy
    from scipy.optimize import minimize

    assert abs(minimize(lambda x: float(np.square(x - 1).sum()), np.zeros(1)).x[0] - 1) < 1e-3

    return f"{scipy.__version__}"


def check_tensorboard() -> str:
    import tempfile

    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_scalar("x", 1.0, 1)

    return f"{version('tensorboard')}, writes events"


def check_flashlight() -> str:
    from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoderOptions

    LexiconFreeDecoderOptions(
        beam_size=1,
        beam_size_token=1,
        beam_threshold=1,
        lm_weight=0,
        sil_score=0,
        log_add=False,
        criterion_type=CriterionType.CTC,
    )

    return "beam search with a language model"


def check_matplotlib() -> str:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, 1])
    figure.savefig(io.BytesIO())

    return f"{matplotlib.__version__}, draws"


def check_transformers() -> str:
    import transformers
    from transformers import Data2VecAudioConfig

    Data2VecAudioConfig()  # type: ignore[no-untyped-call]

    return f"{transformers.__version__}, converts models of Hugging Face"


def check_pyarrow() -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"x": [1, 2]}), file := io.BytesIO())
    assert parquet.read_table(file)["x"].to_pylist() == [1, 2]

    return f"{pyarrow.__version__}, imports Parquet files and datasets of Hugging Face"


def check_av() -> str:
    import av

    with av.open(file := io.BytesIO(), "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=1600)
        frame.sample_rate = 16_000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(io.BytesIO(file.getvalue())) as sound:
        assert sum(frame.samples for frame in sound.decode(audio=0)) == 1600

    return f"{av.__version__}, reads sound through ffmpeg"


def check_wandb() -> str:
    import wandb

    run = wandb.init(mode="disabled")
    run.log({"x": 1.0})
    run.finish()

    return f"{wandb.__version__}"


def check_mlflow() -> str:
    importlib.import_module("mlflow")

    return version("mlflow")


NEEDED: Final[dict[str, Callable[[], str]]] = {
    "torch": check_torch,
    "torchvision": check_torchvision,
    "soundfile": check_soundfile,
    "fairseq2": check_fairseq2,
    "safetensors": check_safetensors,
    "sentencepiece": check_sentencepiece,
    "soxr": check_soxr,
    "scipy": check_scipy,
    "models": check_models,
}

OPTIONAL: Final[dict[str, tuple[str, Callable[[], str]]]] = {
    "tensorboard": ("tensorboard", check_tensorboard),
    "transformers": ("transformers", check_transformers),
    "matplotlib": ("matplotlib", check_matplotlib),
    "pyarrow": ("pyarrow", check_pyarrow),
    "av": ("av", check_av),
    "flashlight-text": ("flashlight", check_flashlight),
    "wandb": ("wandb", check_wandb),
    "mlflow": ("mlflow", check_mlflow),
}
"""Module and check of what not everyone needs."""

MISSING: Final = "not installed"


def run_checks(names: list[str]) -> None:
    """Print a line of JSON for each check: its name, whether it works, and what there is to say."""
    for name in names:
        try:
            if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name][0]) is None:
                works, text = False, MISSING
            else:
                works, text = True, (OPTIONAL[name][1] if name in OPTIONAL else NEEDED[name])()
        except Exception as ex:
            works, text = False, f"{type(ex).__name__}: {' '.join(str(ex).split())}"
        print(json.dumps([name, works, text]), flush=True)


if __name__ == "__main__":
    run_checks(sys.argv[1:])
