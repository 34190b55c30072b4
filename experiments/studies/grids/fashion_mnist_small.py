"""The papers' comparison in a size for two CPU cores: 10,000 images of Fashion-MNIST, width 4, five epochs."""

from experiments.studies.rates import with_rates
from experiments.studies.study import PAPER_METHODS, Study

DATA = ("fashion_mnist",)

EPOCHS = 5

STEPS_PER_EPOCH = 140  # 9,000 images in batches of 64.

RECIPE = (
    "data.load_datasets.training_images = 10_000",
    "data.load_datasets.batch_size = 64",
    "data.load_datasets.augment_fn = None",  # In so short a run it costs more than it gains.
    f"train.train.num_epochs = {EPOCHS}",
    f"tf.keras.optimizers.schedules.CosineDecay.decay_steps = {EPOCHS * STEPS_PER_EPOCH}",
    "resnet.resnet18.width = 4",
)


# The best validation accuracies of the study learning_rate.
LEARNING_RATES = {
    "strided": 0.02,
    "spectral": 0.005,
    "diffstride": 0.005,
    "hybrid": 0.005,
    "hybrid_before_activation": 0.005,
    "strided_matched_maps": 0.01,
    "strided_matched_macs": 0.005,
}

STUDY = Study(
    name="fashion_mnist_small",
    purpose="Do learned strides hold their accuracy where strided convolutions lose it, and at what cost?",
    methods=with_rates(PAPER_METHODS, LEARNING_RATES),
    data=DATA,
    strides=((2, 2, 2), (1, 3, 1), (3, 2, 3)),
    seeds=(1, 2, 3, 4),
    bindings=RECIPE,
    baseline="diffstride",
)
