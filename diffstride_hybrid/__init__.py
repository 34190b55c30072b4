"""Learned downsampling in the Fourier domain for Keras."""

import sys

from diffstride_hybrid.common import startup

if sys.argv[:1] == ["-m"]:  # So Python names a module that it runs, `python -m diffstride_hybrid.train`, at this time.
    startup.start_tensorflow()
else:
    startup.check_backend()

from diffstride_hybrid.audit.auditing import audit
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.normalization import FusedBatchNormalization
from diffstride_hybrid.layers.pooling_1d import DiffStride1D, SpectralPooling1D
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.layers.spectral_pooling import FixedSpectralPooling, SpectralPooling
from diffstride_hybrid.layers.spectral_resizing import SpectralResizing, SpectralResizing1D
from diffstride_hybrid.layers.stride_constraint import StrideConstraint
from diffstride_hybrid.model_tools import crop_refresh as callbacks
from diffstride_hybrid.model_tools.calibration import recalibrate_normalization
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, refresh_crops
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.model_tools.macs_budget import MacsBudget
from diffstride_hybrid.model_tools.stride_penalty import regularize_strides
from diffstride_hybrid.model_tools.surgery import replace_downsampling
from diffstride_hybrid.models.residual import ResidualLayer, ResnetBlock
from diffstride_hybrid.models.resnet import Resnet, resnet18, resnet34, resnet56

__all__ = [
    "CropRefresh",
    "DiffStride",
    "DiffStride1D",
    "FixedSpectralPooling",
    "FusedBatchNormalization",
    "MacsBudget",
    "ResidualLayer",
    "Resnet",
    "ResnetBlock",
    "SpatialPooling",
    "SpectralPooling",
    "SpectralPooling1D",
    "SpectralResizing",
    "SpectralResizing1D",
    "StrideConstraint",
    "audit",
    "macs",
    "recalibrate_normalization",
    "refresh_crops",
    "regularize_strides",
    "replace_downsampling",
    "resnet18",
    "resnet34",
    "resnet56",
]

# The former home of CropRefresh, from which users' scripts import it.
sys.modules[f"{__name__}.callbacks"] = callbacks
