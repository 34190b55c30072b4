"""Installs diffstride_hybrid."""

import pathlib

import setuptools

# The oldest versions that work: .ci/oldest.txt pins them, and .ci/oldest checks them.
_CORE = ["keras>=3.10.0", "numpy>=1.26.0"]

_TENSORFLOW = ["tensorflow>=2.20.0"]

# What the commands need beside TensorFlow.
_COMMANDS = [
    "absl-py>=1.0.0",
    "gin-config>=0.5.0",
    "tensorflow-datasets>=4.9.2",
    "importlib_resources>=5.2.0",  # TensorFlow Datasets imports it and does not ask for it.
    "tensorboard>=2.20.0",
    "scikit-learn>=1.0.2",
    "matplotlib>=3.7.0",
    "pillow>=8.3.2",
    "tqdm>=4.56.2",
]

# What writes and runs the exports beside SavedModels.
_EXPORT = ["ai-edge-litert", "tf2onnx", "onnxruntime"]

# PyTorch's version is one that CI has without CUDA.
_OTHER_BACKENDS = ["jax", "torch==2.13.0"]

setuptools.setup(
    name="diffstride_hybrid",
    version="0.1.0",
    description="Learned downsampling in the Fourier domain for Keras: DiffStride, spectral pooling and their hybrid.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    keywords=["keras", "downsampling", "pooling", "strides", "Fourier", "DiffStride", "TensorFlow", "JAX", "PyTorch"],
    packages=[*setuptools.find_packages(include=["diffstride_hybrid*"]), "diffstride_hybrid.gin_configs"],
    package_dir={"diffstride_hybrid.gin_configs": "gin_configs"},
    package_data={"diffstride_hybrid": ["py.typed"], "diffstride_hybrid.gin_configs": ["*.gin"]},
    install_requires=_CORE,
    extras_require={
        "tensorflow": _TENSORFLOW,
        "train": [*_TENSORFLOW, *_COMMANDS],
        "cuda": ["tensorflow[and-cuda]>=2.20.0", *_COMMANDS],
        # Not beside `tensorflow`, which would overwrite it.
        "tpu": ["tensorflow-tpu>=2.20.0", *_COMMANDS],
        "export": [*_TENSORFLOW, *_COMMANDS, *_EXPORT],
        "test": [
            *_TENSORFLOW,
            *_COMMANDS,
            *_EXPORT,
            *_OTHER_BACKENDS,
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "scipy",
        ],
        # The TPU's compiler, which experiments.tpu_compile reaches through private modules of this very version.
        "tpu-aot": [*_TENSORFLOW, *_COMMANDS, "jax[tpu]==0.10.1"],
    },
)
