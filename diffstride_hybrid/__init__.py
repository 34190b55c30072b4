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
from diffstride_hybrid.resnet import ResidualLayer, Resnet, ResnetBlock, resnet18, resnet34, resnet56

__all__ = [
    "DiffStride",
    "FixedSpectralPooling",
    "FusedBatchNormalization",
    "ResidualLayer",
    "Resnet",
    "ResnetBlock",
    "SpatialPooling",
    "SpectralPooling",
    "StrideConstraint",
    "macs",
    "resnet18",
    "resnet34",
    "resnet56",
]
