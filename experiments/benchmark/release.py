"""The benchmark process of the released code: answers the requests of `processes.Worker`.

TF_USE_LEGACY_KERAS=1 PYTHONPATH=PATH python -m experiments.benchmark.release

PATH is a checkout of google-research/diffstride. The released code needs Keras 2, from the package tf-keras.
"""

from __future__ import annotations

import functools

import tf_keras
from diffstride import pooling, resnet

from experiments.benchmark.cases import Case
from experiments.benchmark.worker import Built, forward_and_backward, keep_freed_memory, training_step, work


def build(case: Case) -> Built:
    """Makes a case of the released code ready to run.

    Args:
        case: as `cases.release_case` returns it, in float32.

    Returns:
        The case without its MACs.
    """
    if case.part == "step":
        keep_freed_memory()
        model = resnet.resnet18(
            num_output_classes=10,
            output_activation="softmax",
            weight_decay=5e-4,
            channels_first=False,
            pooling_cls=functools.partial(pooling.DiffStride),
        )
        model.build((None, case.height, case.height, 3))
        optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
        optimizer.build(model.trainable_variables)
        return Built(training_step(model, optimizer, tf_keras.losses.CategoricalCrossentropy(), case))
    layer = pooling.DiffStride(strides=case.stride, data_format="channels_last")
    layer.build((case.batch, case.height, case.height, case.channels))
    return Built(forward_and_backward(layer, case, layer.trainable_variables))


if __name__ == "__main__":
    work(build)
