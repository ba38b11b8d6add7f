"""What a stored graph may be made of: modules, functions and methods that only compute tensors.

None of them reads or writes files, imports, or runs code it is given; keep it so when adding to the lists.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

__all__ = ["ATTRIBUTES", "FUNCTIONS", "METHODS", "MODULES"]


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


def _functions(prefix: str, owner: Any, *lines: str) -> dict[str, Callable[..., Any]]:
    """By name; those that this version of PyTorch lacks are left out."""
    return {f"{prefix}.{name}": getattr(owner, name) for name in sorted(_words(*lines)) if hasattr(owner, name)}


MODULES = _words(
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Linear Identity Flatten Unflatten",
    "BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d GroupNorm LayerNorm",
    "LocalResponseNorm MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool2d",
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d",
    "ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh",
    "Softplus Softsign LogSigmoid Threshold Softmax Softmax2d LogSoftmax GLU",
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout",
    "Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle ChannelShuffle",
    "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d",
    "ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d",
)
"""Names in ``torch.nn``."""

METHODS = _words(
    "abs add add_ amax amin bmm chunk clamp clone contiguous detach dim div div_ exp expand expand_as flatten float",
    "half log log_softmax matmul max mean min mul mul_ narrow neg numel permute pow relu relu_ repeat reshape",
    "reshape_as rsqrt sigmoid sigmoid_ size softmax split sqrt square squeeze std sub sub_ sum swapaxes t tanh tanh_",
    "transpose type_as unbind unflatten unsqueeze var view view_as",
)
"""Of tensors."""

ATTRIBUTES = frozenset(("shape", "ndim", "T", "mT"))
"""Of tensors; ``getattr`` reads no others."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    **_functions(
        "operator",
        operator,
        "add sub mul truediv floordiv mod pow neg matmul getitem iadd isub imul itruediv eq ne lt le gt ge",
    ),
    **_functions(
        "functional",
        functional,
        "relu relu_ relu6 leaky_relu leaky_relu_ prelu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh",
        "sigmoid tanh softplus softsign logsigmoid threshold softmax log_softmax glu normalize",
        "dropout dropout1d dropout2d dropout3d alpha_dropout pad interpolate unfold",
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d",
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d pixel_shuffle pixel_unshuffle channel_shuffle",
        "batch_norm instance_norm group_norm layer_norm local_response_norm linear conv1d conv2d conv3d",
        "conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention",
    ),
    **_functions(
        "torch",
        torch,
        "abs add addcmul amax amin baddbmm bmm cat chunk clamp clone concat div einsum exp flatten log log_softmax",
        "matmul max maximum mean min minimum mul narrow neg permute pow prod relu relu_ reshape roll rsqrt select",
        "selu sigmoid softmax split sqrt square squeeze stack std sub sum swapaxes tanh transpose unbind unflatten",
        "unsqueeze var where zeros_like ones_like max_pool1d max_pool2d max_pool3d avg_pool1d adaptive_avg_pool1d",
        "conv1d conv2d conv3d batch_norm instance_norm group_norm layer_norm prelu celu dropout pixel_shuffle",
        "pixel_unshuffle channel_shuffle",
    ),
}
"""By the name a stored graph calls them."""
