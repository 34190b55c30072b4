"""Models whose downsampling is replaced."""

import keras
import numpy as np

layers = keras.layers


def disturbed(model: keras.Model) -> keras.Model:
    """With weights unlike those that a new layer has."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(
                weight.numpy() * random.uniform(0.5, 1.5, weight.shape) + random.uniform(0, 0.1, weight.shape)
            )
    return model


def images(size: int = 32, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")


def max_pooling(size: int, downsamples: bool, keep_max: bool, name: str) -> layers.Layer:
    """Max pooling with strides, and what of it stays in a network that does not downsample."""
    if downsamples:
        return layers.MaxPooling2D(size, strides=2, name=name)
    return layers.MaxPooling2D(size, strides=1, padding="same", name=name) if keep_max else layers.Identity(name=name)


def convolution(
    kind: type[layers.Layer], width: int, downsamples: bool, keep_macs: bool, name: str
) -> list[layers.Layer]:
    """A convolution with strides of an even map, and where it lies on that map in a network that does not downsample.

    Its first window begins with the first sample. On a smaller map its windows are centered.
    """
    if downsamples or keep_macs:
        return [kind(width, 3, strides=2 if downsamples else 1, padding="same", name=name)]
    return [layers.ZeroPadding2D(((0, 2), (0, 2))), kind(width, 3, name=name)]


def chain(downsamples: bool = True, keep_max: bool = True, keep_macs: bool = False) -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *convolution(layers.Conv2D, 6, downsamples, keep_macs, "stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            max_pooling(2, downsamples, keep_max, "max"),
            *convolution(layers.SeparableConv2D, 8, downsamples, keep_macs, "separable"),
            layers.AveragePooling2D(2, name="average") if downsamples else layers.Identity(name="average"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="classifier"),
        ],
        name="chain",
    )


def branches(downsamples: bool = True, keep_max: bool = True, keep_macs: bool = False) -> keras.Model:
    """Branches that meet again: padded explicitly, by 'same', and pooled; two of them with a shared layer."""
    stride = 2 if downsamples else 1
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    padded = layers.ZeroPadding2D(1)(x) if downsamples else x
    main = layers.DepthwiseConv2D(
        3, strides=stride, padding="valid" if downsamples else "same", use_bias=False, name="depthwise"
    )(padded)
    shared = layers.Conv2D(6, 1, name="shared")
    shortcut = layers.Conv2D(6, 1, strides=stride, name="shortcut")(x)
    x = layers.Add(name="add")([shared(main), shared(shortcut)])
    pooled = x
    if downsamples:
        pooled = keras.ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=float("-inf"))
    pooled = max_pooling(3, downsamples, keep_max, "pooled")(pooled)
    strided = x
    for layer in convolution(layers.Conv2D, 6, downsamples, keep_macs, "strided"):
        strided = layer(strided)
    x = layers.Concatenate()([pooled, strided])
    x = layers.GlobalAveragePooling2D()(keras.ops.relu(x))
    return keras.Model(inputs, layers.Dense(4)(x), name="branches")


def nested(downsamples: bool = True, keep_max: bool = True, keep_macs: bool = False) -> keras.Model:
    inner = branches(downsamples, keep_max, keep_macs)
    backbone = keras.Model(inner.input, inner.get_layer("add").output, name="backbone")
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(3, 3, padding="same")(inputs)
    x = layers.AveragePooling2D(2, name="average")(backbone(inputs=x)) if downsamples else backbone(x)
    after = keras.Input(x.shape[1:])
    x = keras.Model(after, layers.Conv2D(6, 3, padding="same")(after), name="of_fixed_size")(x)
    head = keras.Sequential([layers.Dense(4)], name="head")
    return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x)), name="nested")


def padded(downsamples: bool = True, keep_max: bool = True, keep_macs: bool = False) -> keras.Sequential:
    del keep_max, keep_macs
    stride, padding = (2, "valid") if downsamples else (1, "same")
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *([layers.ZeroPadding2D(1)] if downsamples else []),
            layers.Conv2D(6, 3, strides=stride, padding=padding),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ],
        name="padded",
    )
