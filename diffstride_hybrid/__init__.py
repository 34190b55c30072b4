"""Learned downsampling in the Fourier domain for Keras."""

from diffstride_hybrid.complexity import macs
from diffstride_hybrid.normalization import FusedBatchNormalization
from diffstride_hybrid.pooling import (
    DiffStride,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    StrideConstraint,
)
from diffstride_hybrid.pooling_1d import DiffStride1D, SpectralPooling1D
from diffstride_hybrid.resnet import ResidualLayer, Resnet, ResnetBlock, resnet18, resnet34, resnet56
from diffstride_hybrid.surgery import replace_downsampling

__all__ = [
    "DiffStride",
    "DiffStride1D",
    "FixedSpectralPooling",
    "FusedBatchNormalization",
    "ResidualLayer",
    "Resnet",
    "ResnetBlock",
    "SpatialPooling",
    "SpectralPooling",
    "SpectralPooling1D",
    "StrideConstraint",
    "macs",
    "replace_downsampling",
    "resnet18",
    "resnet34",
    "resnet56",
]
