"""The former home of two names, kept so that scripts that import them from here still run."""

from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, refresh_crops

__all__ = ["CropRefresh", "refresh_crops"]
