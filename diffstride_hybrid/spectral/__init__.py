"""Pooling in the Fourier domain, on tensors alone: no layers, no variables, no gin.

A feature map is transformed by the unnormalized forward DFT. A `Window` for each axis says which low frequencies are
kept and with what weight. The cropped spectrum is transformed back at its own, smaller size. The poolings differ only
in their windows. Two engines compute the same result: `method='fft'` runs the transforms, `method='matmul'` multiplies
by the small matrices of the linear map. Windows and matrices serve every backend of Keras; the engines for TensorFlow
are in `tensorflow/`, that for JAX and PyTorch is `plain.py`. This module hands on the names that the layers use.
"""

from diffstride_hybrid.spectral.engine import matmul_macs
from diffstride_hybrid.spectral.functional import (
    diffstride,
    diffstride_1d,
    fixed_spectral_pooling,
    spectral_pooling,
    spectral_resizing,
    spectral_resizing_1d,
)
from diffstride_hybrid.spectral.hard_windows import fixed_windows, resampling_window
from diffstride_hybrid.spectral.layout import resized, signal_length, spatial_axes, spatial_lengths
from diffstride_hybrid.spectral.matrices import apply_matrices, pooling_matrices
from diffstride_hybrid.spectral.options import (
    DATA_FORMATS,
    MASKS,
    METHODS,
    NORMS,
    Bound,
    DataFormat,
    Length,
    Limits,
    Mask,
    Method,
    Norm,
    Tensor,
)
from diffstride_hybrid.spectral.sizes import (
    fixed_output_lengths,
    limits_of_axes,
    minimum_stride,
    spectral_output_length,
    spectral_output_lengths,
)
from diffstride_hybrid.spectral.windows import (
    Window,
    asked_bins,
    diffstride_window_1d,
    diffstride_windows,
    kept_bins,
    unequal_frequencies,
)

__all__ = [
    "DATA_FORMATS",
    "MASKS",
    "METHODS",
    "NORMS",
    "Bound",
    "DataFormat",
    "Length",
    "Limits",
    "Mask",
    "Method",
    "Norm",
    "Tensor",
    "Window",
    "apply_matrices",
    "asked_bins",
    "diffstride",
    "diffstride_1d",
    "diffstride_window_1d",
    "diffstride_windows",
    "fixed_output_lengths",
    "fixed_spectral_pooling",
    "fixed_windows",
    "kept_bins",
    "limits_of_axes",
    "matmul_macs",
    "minimum_stride",
    "pooling_matrices",
    "resampling_window",
    "resized",
    "signal_length",
    "spatial_axes",
    "spatial_lengths",
    "spectral_output_length",
    "spectral_output_lengths",
    "spectral_pooling",
    "spectral_resizing",
    "spectral_resizing_1d",
    "unequal_frequencies",
]
