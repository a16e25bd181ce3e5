"""An upstream of s3prl, so that SUPERB runs on our checkpoints; it needs nothing of s3prl to be installed.

s3prl looks upstreams up by name in its hub::

    import s3prl.hub
    from d2v_plugin.s3prl import UpstreamExpert

    s3prl.hub.d2v_plugin = UpstreamExpert
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.core.batch import Modality
from d2v_plugin.layers.packing import find_packing
from d2v_plugin.models.spectrograms import sees_spectrograms
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.sources import Weights


class UpstreamExpert(nn.Module):
    """Hidden states of a speech model: what enters the Transformer, then the output of every block, the prenet's included."""

    def __init__(self, ckpt: str, model_config: str | None = None, *, weights: Weights = "student", **options: Any) -> None:
        """
        :param ckpt: whatever :func:`d2v_plugin.load` reads: a run, or a converted directory.
        :param model_config: not needed; s3prl passes it to every upstream, as it does further ``options``.
        :raises ValueError: the checkpoint is no model of speech.
        """
        super().__init__()
        model = load(ckpt, weights=weights)
        blocks = model.blocks_of(Modality.AUDIO)
        if sees_spectrograms(model.config):
            raise ValueError(f"{ckpt} sees spectrograms: its tokens are patches, and s3prl wants one for each moment.")

        # s3prl freezes upstreams itself, unless it is told to fine-tune them.
        self.model = model.requires_grad_(True)
        self._downsample_rate: int = model.config.frontends[Modality.AUDIO].samples_per_frame
        self._min_samples = model.shortest_input(Modality.AUDIO)
        self._states: list[Tensor] = []
        for block in blocks:
            block.register_forward_hook(self._keep_state)

    def get_downsample_rates(self, key: str) -> int:
        """Samples of sound per position of a hidden state."""
        return self._downsample_rate

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """
        :param wavs: N × (T_n,) waveforms at 16 kHz, not normalised; those of less than one frame are lengthened by silence.
        :returns: ``hidden_states``, each (N, S, D), zero at padding, and ``last_hidden_state``.
        """
        wavs = [F.layer_norm(wav, wav.shape) for wav in wavs]
        wavs = [F.pad(wav, (0, max(0, self._min_samples - len(wav)))) for wav in wavs]
        lengths = torch.tensor([len(wav) for wav in wavs])
        inputs = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        padding_mask = torch.arange(inputs.size(1), device=inputs.device) >= lengths.to(inputs.device)[:, None]

        self._states = []
        features = self.model.extract_features(inputs, padding_mask, modality=Modality.AUDIO, lengths=lengths)
        assert features.padding_mask is not None
        states, self._states = self._states, []
        if len(states[0]) != len(wavs):
            # One row of the valid tokens of all, each recording's after its extra ones.
            num_frames = self.model.count_tokens(lengths, Modality.AUDIO)
            assert num_frames is not None
            num_extra = (states[0].size(1) - sum(num_frames)) // len(wavs)
            packing = find_packing(features.padding_mask, num_frames, num_extra)
            assert packing is not None
            states = [packing.unpack(state) for state in states]
        # Extra tokens come first.
        states = [state[:, -features.x.size(1) :] for state in states]
        states[-1] = features.layers[-1]  # with the final norm, where there is one
        hidden_states = [state.masked_fill(features.padding_mask.unsqueeze(-1), 0.0) for state in states]

        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def _keep_state(self, block: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        if not self._states:
            self._states.append(args[0])
        self._states.append(output[0])
