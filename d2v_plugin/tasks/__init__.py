"""Tasks: which manifest is read and how it becomes batches."""

from __future__ import annotations

from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.core.registry import register
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.image_classification import ImageClassificationConfig, ImageClassificationTask
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig, create_multimodal_task
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask


def register_tasks(container: DependencyContainer) -> None:
    """Register the tasks."""
    register(container, Task, "audio_pretraining", AudioPretrainingTask, AudioPretrainingConfig)
    register(container, Task, "audio_classification", AudioClassificationTask, AudioClassificationConfig)
    register(container, Task, "speech_recognition", SpeechRecognitionTask, SpeechRecognitionConfig)
    register(container, Task, "image_classification", ImageClassificationTask, ImageClassificationConfig)
    register(container, Task, "image_pretraining", ImagePretrainingTask, ImagePretrainingConfig)
    register(container, Task, "text_pretraining", TextPretrainingTask, TextPretrainingConfig)
    register(container, Task, "text_classification", TextClassificationTask, TextClassificationConfig)
    register_component(container, Task, "multimodal_pretraining", MultimodalPretrainingConfig, create_multimodal_task)
