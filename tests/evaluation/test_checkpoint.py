from __future__ import annotations

from pathlib import Path

import pytest
import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import attach_criterion, load_trained
from d2v_plugin.models.base import drop_criterion
from d2v_plugin.models.data2vec2.archs import image_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.sources import find_provenance

LABELS = LabelSet(["cat", "dog", "owl"])
PROVENANCE = Provenance(
    {
        "task": {"name": "image_classification", "config": {}},
        "dataset": {"family": "image_manifest", "config_overrides": {}},
        "criterion": {"name": "classification", "config": {}},
    },
    LABELS,
)


def test_a_directory_keeps_a_head_and_what_it_predicts(tmp_path: Path) -> None:
    model = create_model(image_tiny())
    criterion = ClassificationCriterion(ClassificationConfig())
    attach_criterion(model, criterion, LABELS)
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text("{}")
    content = ModelDirectory(
        config=model.config,
        student=drop_criterion(model.state_dict()),
        head=criterion.state_dict(),
        provenance=PROVENANCE,
        files=[vocabulary],
    )
    write_directory(tmp_path / "tuned", content)

    read = find_provenance(tmp_path / "tuned")
    assert read is not None and read.labels is not None
    assert read.sections == PROVENANCE.sections and list(read.labels.names) == list(LABELS.names)
    assert (tmp_path / "tuned" / "vocabulary.json").read_text() == "{}"
    loaded = ClassificationCriterion(ClassificationConfig())
    other = load_trained(tmp_path / "tuned", loaded, labels=read.labels, device=torch.device("cpu"))
    size = model.config.frontends[Modality.IMAGE].image_size
    batch = Batch(modality=Modality.IMAGE, ids=torch.arange(2), inputs=torch.randn(2, 3, size, size))
    expected = criterion.compute_logits(model.eval(), batch)
    torch.testing.assert_close(loaded.compute_logits(other, batch), expected, rtol=0.0, atol=0.0)


def test_an_encoder_alone_has_nothing_to_predict_with(tmp_path: Path) -> None:
    model = create_model(image_tiny())
    write_directory(tmp_path / "encoder", ModelDirectory(config=model.config, student=model.state_dict()))

    assert find_provenance(tmp_path / "encoder") is None
    criterion = ClassificationCriterion(ClassificationConfig())
    with pytest.raises(CheckpointError, match="no head and no teacher"):
        load_trained(tmp_path / "encoder", criterion, labels=LABELS, device=torch.device("cpu"))
