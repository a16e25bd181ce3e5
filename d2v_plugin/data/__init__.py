"""From files to batches: manifests, the order of samples, reading, decoding and augmentation."""

from __future__ import annotations

from fairseq2.composition import register_dataset_family
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.data.dataset import (
    AudioManifest,
    ImageManifest,
    ManifestConfig,
    MultimodalConfig,
    MultimodalManifests,
    TextManifest,
)
from d2v_plugin.data.sentences import Sentences, SentencesConfig


def register_datasets(container: DependencyContainer) -> None:
    """Register the dataset families."""
    register_dataset_family(container, "image_manifest", ImageManifest, ManifestConfig, opener=ImageManifest.open)
    register_dataset_family(container, "audio_manifest", AudioManifest, ManifestConfig, opener=AudioManifest.open)
    register_dataset_family(container, "text_manifest", TextManifest, ManifestConfig, opener=TextManifest.open)
    register_dataset_family(container, "sentences", Sentences, SentencesConfig, opener=Sentences.open)
    register_dataset_family(
        container, "multimodal_manifest", MultimodalManifests, MultimodalConfig, opener=MultimodalManifests.open
    )
