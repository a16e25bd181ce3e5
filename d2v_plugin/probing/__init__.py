"""Probes: how well simple classifiers do on frozen features.

During pre-training :class:`ProbeUnit` runs as fairseq2's validation, and in ``evaluate`` on any checkpoint;
:func:`collect_features` and :func:`probe_scores` serve any features, for instance those of a randomly initialised encoder or
raw pixels. Probes leave the global random state alone: a repeated measurement gives the same number.
"""

from __future__ import annotations

from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.probing.attentive import AttentiveProbe, AttentiveProbeConfig
from d2v_plugin.probing.base import (
    Probe,
    ProbeData,
    ProbeSection,
    VectorProbe,
    create_probes,
    metric_name,
    overall_metrics,
    probe_scores,
    register_probe,
)
from d2v_plugin.probing.collection import FeatureCollection
from d2v_plugin.probing.knn import KnnProbe, KnnProbeConfig
from d2v_plugin.probing.linear import LinearProbe, LinearProbeConfig
from d2v_plugin.probing.table import format_accuracies
from d2v_plugin.probing.unit import ProbeBatch, ProbeReader, ProbeUnit

__all__ = [
    "AttentiveProbe",
    "AttentiveProbeConfig",
    "FeatureCollection",
    "KnnProbe",
    "KnnProbeConfig",
    "LinearProbe",
    "LinearProbeConfig",
    "Probe",
    "ProbeBatch",
    "ProbeData",
    "ProbeReader",
    "ProbeSection",
    "ProbeUnit",
    "VectorProbe",
    "create_probes",
    "format_accuracies",
    "metric_name",
    "overall_metrics",
    "probe_scores",
    "register_probe",
    "register_probes",
]


def register_probes(container: DependencyContainer) -> None:
    """Register the probes of this package."""
    register_probe(container, "knn", "Probe k-NN Accuracy", KnnProbe, KnnProbeConfig)
    register_probe(container, "linear", "Probe Linear Accuracy", LinearProbe, LinearProbeConfig)
    register_probe(container, "attentive", "Probe Attentive Accuracy", AttentiveProbe, AttentiveProbeConfig)
