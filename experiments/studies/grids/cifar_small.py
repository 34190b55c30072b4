"""The papers' comparison on CIFAR-10 in a size for two CPU cores: all training images, width 8, twelve epochs."""

from experiments.studies.rates import with_rates
from experiments.studies.study import PAPER_METHODS, Study

EPOCHS = 12

STEPS_PER_EPOCH = 351  # 45,000 images in batches of 128.

STRIDES = ((2, 2, 2), (3, 2, 3))
"""The good and the poor choice of the papers."""

METHODS = tuple(method for method in PAPER_METHODS if method.name != "strided_matched_maps")


def recipe(epochs: int, width: int = 8) -> tuple[str, ...]:
    """Returns the bindings of a short run: the papers' optimizer and augmentation, without mixup and smoothed labels.

    Args:
        epochs: of the run, over which the learning rate decays to 0.
        width: channels of the network's first convolution.

    Returns:
        Gin bindings.
    """
    return (
        "data.load_datasets.mixup_alpha = 0.0",
        "tf.keras.losses.CategoricalCrossentropy.label_smoothing = 0.0",
        f"train.train.num_epochs = {epochs}",
        "tf.keras.optimizers.SGD.learning_rate = @tf.keras.optimizers.schedules.CosineDecay()",
        f"tf.keras.optimizers.schedules.CosineDecay.decay_steps = {epochs * STEPS_PER_EPOCH}",
        f"resnet.resnet18.width = {width}",
    )


# The best validation accuracies of the study cifar_small_rates.
LEARNING_RATES = {
    "strided": 0.3,
    "spectral": 0.1,
    "diffstride": 0.1,
    "hybrid": 0.1,
    "hybrid_before_activation": 0.1,
    "strided_matched_macs": 0.3,
}

STUDY = Study(
    name="cifar_small",
    purpose="Does DiffStride hold its accuracy from poor strides on CIFAR-10, does the hybrid differ, at what cost?",
    methods=with_rates(METHODS, LEARNING_RATES),
    data=("cifar10",),
    strides=STRIDES,
    seeds=(1, 2, 3),
    bindings=recipe(EPOCHS),
    baseline="diffstride",
)
