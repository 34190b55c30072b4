"""The hybrid and strided convolution on CIFAR-10, nearer to full size: width 16, thirty epochs, in bfloat16."""

import dataclasses

from experiments.studies.grids import cifar_small

_METHODS = ("strided", "hybrid")

STUDY = dataclasses.replace(
    cifar_small.STUDY,
    name="cifar_wide",
    purpose="How do the hybrid and strided convolution compare on CIFAR-10 at width 16 after thirty epochs?",
    methods=tuple(method for method in cifar_small.STUDY.methods if method.name in _METHODS),
    strides=cifar_small.STRIDES[:1],
    seeds=(1,),
    bindings=(*cifar_small.recipe(epochs=30, width=16), "train.train.dtype_policy = 'mixed_bfloat16'"),
    baseline="hybrid",
    timed=True,
)
