"""Model FLOPs of one update of data2vec 2.0, from shapes alone: what the method needs, not what a kernel happens to compute.

Two for each multiplication with an addition. Forward passes through which gradients flow count three times (output, gradient of
the input, gradient of the weights), the teacher's once; a local encoder has no gradient of its input. Element-wise work, norms,
softmax, masks and the optimizer do not count, nor does what is computed again to save memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from d2v_plugin.criteria.data2vec2.teacher import TeacherScope
from d2v_plugin.models.data2vec2.config import AudioFrontendConfig, Data2VecConfig, DecoderConfig, ImageFrontendConfig


@dataclass(frozen=True)
class Shape:
    """The sizes of one update."""

    num_samples: int
    """N"""

    num_views: int
    """M"""

    num_tokens: int
    """S"""

    num_masked: int
    """Masked tokens of each view."""

    input_length: int
    """Samples of sound, pixels on a side, or tokens."""


def count_update(config: Data2VecConfig, shape: Shape, scope: TeacherScope) -> dict[str, float]:
    """FLOPs of each component of one update of a model with one frontend."""
    (frontend,) = config.frontends.values()
    dim, hidden_dim = config.dim, int(config.dim * config.mlp_ratio)
    num_blocks = frontend.prenet_depth + config.depth
    rows = shape.num_samples * shape.num_views
    whole = frontend.num_extra_tokens + shape.num_tokens
    kept = whole - shape.num_masked

    def linear(num_tokens: float) -> float:
        return 2 * num_tokens * num_blocks * (4 * dim**2 + 2 * dim * hidden_dim)

    def attend(num_rows: int, length: int) -> float:
        return 4 * num_rows * length**2 * dim * num_blocks

    flops = {
        "student linear": 3 * linear(rows * kept),
        "student attention": 3 * attend(rows, kept),
        "teacher": linear(shape.num_samples * whole) + attend(shape.num_samples, whole),
    }
    passes = 3 if scope == "all" else 2  # forward and gradient of the weights, and the teacher's own
    if isinstance(frontend, ImageFrontendConfig):
        embed_dim = dim if frontend.embed_dim is None else frontend.embed_dim
        patches = shape.num_samples * shape.num_tokens
        flops["local encoder"] = passes * 2 * patches * frontend.num_channels * frontend.patch_size**2 * embed_dim
        if embed_dim != dim:
            flops["local encoder"] += (passes + 1) * 2 * patches * embed_dim * dim
    if isinstance(frontend, AudioFrontendConfig):
        flops |= _count_audio(frontend, dim, shape, passes)
    for decoder in (frontend.decoder, config.shared_decoder):
        if decoder is not None:
            spatial_dims = 2 if isinstance(frontend, ImageFrontendConfig) and decoder is frontend.decoder else 1
            count = 3 * _count_decoder(decoder, dim, spatial_dims, rows, shape)
            flops["decoder"] = flops.get("decoder", 0) + count

    return flops


def _count_audio(frontend: AudioFrontendConfig, dim: int, shape: Shape, passes: int) -> dict[str, float]:
    encoder, in_channels, length = 0.0, 1, shape.input_length
    for i, (channels, kernel_size, stride) in enumerate(frontend.conv_layers):
        length = (length - kernel_size) // stride + 1
        forward = 2 * shape.num_samples * length * kernel_size * in_channels * channels
        encoder += (passes if i == 0 else passes + 1) * forward
        in_channels = channels
    tokens = shape.num_samples * shape.num_tokens
    kernel_size = max(3, frontend.position_width // frontend.position_depth)
    positions = 2 * tokens * frontend.position_depth * kernel_size * dim**2 / frontend.position_groups

    return {
        "local encoder": encoder + (passes + 1) * 2 * tokens * in_channels * dim,
        # Every view has positions of its own, of the whole sequence; so has the teacher.
        "positional convolutions": (3 * shape.num_views + 1) * positions,
    }


def _count_decoder(decoder: DecoderConfig, dim: int, spatial_dims: int, rows: int, shape: Shape) -> float:
    """One forward pass: convolutions over all tokens, the projection of the masked ones."""
    flops, in_dim = 0.0, dim
    for _ in range(decoder.num_layers):
        kernel = decoder.kernel_size**spatial_dims
        flops += 2 * rows * shape.num_tokens * kernel * in_dim * decoder.dim / decoder.num_groups
        in_dim = decoder.dim
    hidden_dim = int(decoder.dim * decoder.projection_ratio)
    for _ in range(decoder.projection_layers - 1):
        flops += 2 * rows * shape.num_masked * in_dim * hidden_dim
        in_dim = hidden_dim

    return flops + 2 * rows * shape.num_masked * in_dim * dim
