"""Networks that shrink maps and enlarge them again, in the styles that people publish."""

from collections.abc import Sequence

import keras

layers = keras.layers

Shape = Sequence[int | None]


def convolved(x: keras.KerasTensor, width: int, kernel: int = 3, **options: int) -> keras.KerasTensor:
    x = layers.Conv2D(width, kernel, padding="same", use_bias=False, **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def pooled_and_upsampled(shape: Shape = (64, 64, 3), factor: int = 2) -> keras.Model:
    """Max pooling on the way down; `UpSampling2D`, a convolution and a concatenation on the way up."""
    x = inputs = keras.Input(shape)
    skips = []
    for level, width in enumerate((8, 12)):
        x = convolved(x, width)
        skips.append(x)
        x = layers.MaxPooling2D(factor, name=f"down_{level}")(x) if factor > 1 else x
    x = layers.Dropout(0.1)(convolved(x, 16))
    for level, width in ((1, 12), (0, 8)):
        x = layers.UpSampling2D(factor, interpolation="bilinear", name=f"up_{level}")(x)
        x = layers.Conv2D(width, 2, padding="same", activation="relu")(x)
        x = convolved(layers.Concatenate()([skips[level], x]), width)
    return keras.Model(inputs, layers.Conv2D(3, 1)(x), name="pooled")


def strided_and_transposed(shape: Shape = (64, 64, 3), kernel: int = 4) -> keras.Model:
    """Strided convolutions and transposed ones, as for the translation of images. The head has no map to join."""
    x = inputs = keras.Input(shape)
    skips = []
    for level, width in enumerate((8, 12, 16)):
        x = layers.Conv2D(width, kernel, strides=2, padding="same", use_bias=False, name=f"down_{level}")(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
        skips.append(x)
    for level, width in ((1, 12), (0, 8)):
        x = layers.Conv2DTranspose(width, kernel, strides=2, padding="same", name=f"up_{level}")(x)
        x = layers.Concatenate()([layers.ReLU()(layers.BatchNormalization()(x)), skips[level]])
    x = layers.Conv2DTranspose(3, kernel, strides=2, padding="same", activation="softmax", name="head")(x)
    return keras.Model(inputs, x, name="strided")


def separable_with_residuals(shape: Shape = (64, 64, 3)) -> keras.Model:
    """Separable convolutions with projected residuals. No map of the way down is joined with one of the way up."""
    inputs = keras.Input(shape)
    x = before = convolved(inputs, 8, strides=2)
    for width in (12, 16):
        x = layers.SeparableConv2D(width, 3, padding="same")(layers.Activation("relu")(x))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(layers.BatchNormalization()(x))
        x = before = layers.Add()([x, layers.Conv2D(width, 1, strides=2, padding="same")(before)])
    for width in (16, 12, 8):
        x = layers.Conv2DTranspose(width, 3, padding="same")(layers.Activation("relu")(x))
        x = layers.UpSampling2D(2)(layers.BatchNormalization()(x))
        residual = layers.Conv2D(width, 1, padding="same")(layers.UpSampling2D(2)(before))
        x = before = layers.Add()([x, residual])
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same", activation="softmax")(x), name="separable")


def encoder_in_a_model(shape: Shape = (64, 64, 3)) -> keras.Model:
    """An encoder with several outputs, and steps up that are models of their own, as in tutorials."""
    encoder_inputs = keras.Input(shape)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(encoder_inputs))
    half = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    quarter = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(half)
    encoder = keras.Model(encoder_inputs, [x, half, quarter], name="encoder")
    inputs = keras.Input(shape)
    full, half, x = encoder(inputs, training=False)
    for level, (width, skip) in enumerate(((12, half), (8, full))):
        transposed = layers.Conv2DTranspose(width, 3, strides=2, padding="same", use_bias=False)
        step = keras.Sequential([transposed, layers.BatchNormalization(), layers.ReLU()], name=f"step_{level}")
        x = layers.Concatenate()([step(x), skip])
    return keras.Model(inputs, layers.Conv2D(3, 1)(x), name="translation")


def trimmed(shape: Shape = (45, 45, 3)) -> keras.Model:
    """At odd sizes: what is enlarged is padded, and cropped, to the size of the map that it is joined with."""
    inputs = keras.Input(shape)
    full = convolved(inputs, 8)
    half = convolved(layers.MaxPooling2D(2)(full), 8)
    quarter = convolved(layers.AveragePooling2D(2)(half), 8)
    eighth = convolved(layers.AveragePooling2D(2, padding="same")(quarter), 8)
    x = layers.Conv2DTranspose(8, 2, strides=2, name="up_2")(eighth)
    x = layers.Concatenate()([layers.Cropping2D(((1, 0), (0, 1)))(x), quarter])
    x = layers.Conv2DTranspose(8, 2, strides=2, name="up_1")(x)
    x = layers.Concatenate()([x, half])
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(layers.UpSampling2D(2, name="up_0")(x))
    return keras.Model(inputs, layers.Conv2D(3, 1)(layers.Concatenate()([x, full])), name="trimmed")


def cropped_skips(shape: Shape = (60, 60, 1)) -> keras.Model:
    """Convolutions without padding and skips that are cropped, as the first U-Net has them."""
    inputs = keras.Input(shape)
    full = layers.Conv2D(4, 3, activation="relu")(layers.Conv2D(4, 3, activation="relu")(inputs))
    x = layers.Conv2D(8, 3, activation="relu")(layers.MaxPooling2D(2)(full))
    x = layers.Conv2D(8, 3, activation="relu")(x)
    x = layers.Conv2D(4, 2, padding="same")(layers.UpSampling2D(2, name="up")(x))
    x = layers.Concatenate()([layers.Cropping2D(4)(full), x])
    return keras.Model(inputs, layers.Conv2D(2, 3)(x), name="cropped")


def sampled_pyramid(shape: Shape = (64, 64, 3)) -> keras.Model:
    """Contexts of several sizes beside each other, one of them global, and one enlargement by 4 at the end."""
    inputs = keras.Input(shape)
    low = convolved(convolved(inputs, 8, strides=2), 8)
    x = convolved(convolved(low, 16, strides=2), 16, strides=2)
    context = layers.GlobalAveragePooling2D(keepdims=True)(x)
    context = layers.UpSampling2D(x.shape[1], interpolation="bilinear", name="context")(layers.Conv2D(8, 1)(context))
    x = layers.Concatenate()([context, convolved(x, 8, dilation_rate=2), convolved(x, 8, 1)])
    x = layers.UpSampling2D(4, interpolation="bilinear", name="up")(convolved(x, 8, 1))
    x = convolved(layers.Concatenate()([x, convolved(low, 4, 1)]), 8)
    x = layers.Resizing(*shape[:2], name="head")(layers.Conv2D(3, 1)(x))
    return keras.Model(inputs, x, name="pyramid")


def autoencoder(shape: Shape = (32, 32, 1)) -> keras.Sequential:
    """A chain through a code of fixed length."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(12, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(10, name="code"),
            layers.Dense(8 * 8 * 4, activation="relu"),
            layers.Reshape((8, 8, 4)),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu", name="up_1"),
            layers.Conv2DTranspose(1, 3, strides=2, padding="same", name="up_0"),
        ],
        name="autoencoder",
    )


UNETS = {
    "pooled": pooled_and_upsampled,
    "strided": strided_and_transposed,
    "separable": separable_with_residuals,
    "nested": encoder_in_a_model,
    "trimmed": trimmed,
    "cropped": cropped_skips,
    "pyramid": sampled_pyramid,
}
