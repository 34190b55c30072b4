"""Backbones of KerasHub, which is not among the packages of the test extra: `pip install keras-hub` for these."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.swapped_models import disturbed

from diffstride_hybrid import replace_downsampling
from diffstride_hybrid.model_tools.inspection import diffstride_layers

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.slow

layers, hub = keras.layers, keras_hub.models
SHAPE = (64, 64, 3)
POOLINGS = (layers.MaxPooling2D, layers.AveragePooling2D)
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)


def resnet(block_type: str = "basic_block", stages: int = 2, **options: Any) -> keras.Model:
    is_vd = block_type.endswith("vd")
    return hub.ResNetBackbone(
        input_conv_filters=[8, 8, 64] if is_vd else [64],
        input_conv_kernel_sizes=[3, 3, 3] if is_vd else [7],
        stackwise_num_filters=[64] * stages,
        stackwise_num_blocks=[1] * stages,
        stackwise_num_strides=[1] + [2] * (stages - 1),
        block_type=block_type,
        **{"image_shape": SHAPE} | options,
    )


def classifier() -> keras.Model:
    return hub.ResNetImageClassifier(backbone=resnet(), num_classes=3)


def densenet() -> keras.Model:
    return hub.DenseNetBackbone([1, 1], growth_rate=8, image_shape=SHAPE)


def vgg() -> keras.Model:
    return hub.VGGBackbone([1, 1], [8, 16], image_shape=SHAPE)


def xception() -> keras.Model:
    return hub.XceptionBackbone([[8, 8], [16, 16], [16]], [False, True, False], image_shape=SHAPE)


def mobilenet() -> keras.Model:
    return hub.MobileNetBackbone(
        stackwise_expansion=[[16]],
        stackwise_num_blocks=[1],
        stackwise_num_filters=[[8]],
        stackwise_kernel_size=[[3]],
        stackwise_num_strides=[[2]],
        stackwise_se_ratio=[[0.25]],
        stackwise_activation=[["relu"]],
        stackwise_padding=[[1]],
        output_num_filters=8,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=8,
        input_num_filters=8,
        image_shape=SHAPE,
    )


def efficientnet(block_type: str) -> keras.Model:
    return hub.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=[block_type] * 2,
        stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_features=16,
        input_shape=SHAPE,
    )


def cspnet(**options: Any) -> keras.Model:
    return hub.CSPNetBackbone(
        stem_filters=[8, 8],
        stem_kernel_size=3,
        stackwise_depth=[1, 1],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[8, 16],
        bottle_ratio=(0.5, 1.0),
        block_ratio=(1.0, 0.5),
        expand_ratio=(2.0, 1.0),
        image_shape=SHAPE,
        **{"stem_strides": 2, "stage_type": "csp", "block_type": "dark_block"} | options,
    )


def deeplab(low_level: str | None = None) -> keras.Model:
    return hub.DeepLabV3Backbone(
        resnet(image_shape=(None, None, 3)),
        spatial_pyramid_pooling_key="P3",
        upsampling_size=2 if low_level else 4,
        dilation_rates=[2],
        low_level_feature_key=low_level,
        image_shape=(32, 32, 3),  # Without strides it takes the memory of maps 64 times as large as with them.
    )


def retinanet() -> keras.Model:
    return hub.RetinaNetBackbone(resnet(stages=4), min_level=3, max_level=6, use_p5=False, image_shape=SHAPE)


def hgnet() -> keras.Model:
    return hub.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[(8, 8, 16, 1, 1, 3), (16, 8, 16, 1, 1, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=SHAPE,
    )


def mit() -> keras.Model:
    return hub.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 1],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
        image_shape=SHAPE,
    )


def vit() -> keras.Model:
    return hub.ViTBackbone(SHAPE, patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)


Make = Callable[[], keras.Model]

# How many layers downsample, outside of what other layers call in code of their own.
BACKBONES: dict[str, tuple[Make, int]] = {
    "ResNet": (resnet, 4),
    "ResNet with bottlenecks": (lambda: resnet("bottleneck_block"), 4),
    "ResNetV2": (lambda: resnet(use_pre_activation=True), 4),
    "ResNet-vd": (lambda: resnet("bottleneck_block_vd"), 4),
    "ResNet, channels first": (lambda: resnet(image_shape=(3, 64, 64), data_format="channels_first"), 4),
    "ResNet classifier": (classifier, 4),
    "DenseNet": (densenet, 3),
    "VGG": (vgg, 2),
    "Xception": (xception, 3),
    "MobileNet": (mobilenet, 1),
    "EfficientNet": (lambda: efficientnet("v1"), 2),
    "EfficientNetV2": (lambda: efficientnet("fused"), 1),
    "CSPNet": (cspnet, 3),
    "CSPNet with pooling": (lambda: cspnet(stem_strides=4, stem_pooling="max", avg_down=True), 4),
    "CSPNet of stages cs3": (lambda: cspnet(stage_type="cs3", block_type="edge_block"), 3),
    "DeepLabV3": (deeplab, 4),
    "DeepLabV3+": (lambda: deeplab("P2"), 4),
}
every_backbone = pytest.mark.parametrize(("make", "downsampling"), BACKBONES.values(), ids=BACKBONES.keys())


def images_for(model: keras.Model) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")


@every_backbone
def test_backbones_are_swapped_and_train(make: Make, downsampling: int):
    reports: list[str] = []
    swapped = replace_downsampling(make(), smoothness_factor=2.0, report=reports.append)
    assert reports[0].count("_downsampling\n") == downsampling
    learned = diffstride_layers(swapped)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(swapped(images_for(swapped), training=True) ** 2)
    for layer, gradient in zip(learned, tape.gradient(loss, [layer.strides.value for layer in learned])):
        assert np.all(np.isfinite(gradient)) and np.all(gradient.numpy() != 0), layer.name


@every_backbone
def test_swapped_backbones_save_and_load(make: Make, downsampling: int, tmp_path: Path):
    if "deep_lab" in make().name:
        pytest.skip("KerasHub's SpatialPyramidPooling cannot be built from its config.")
    swapped = replace_downsampling(make(), smoothness_factor=2.0)
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images_for(swapped)), swapped(images_for(swapped)))


def operations(model: keras.Model) -> Iterator[keras.Operation]:
    for operation in model.operations:
        yield operation
        if isinstance(operation, keras.Model):
            yield from operations(operation)


def passing_on(inputs: tf.Tensor, **kwargs: Any) -> tf.Tensor:
    return inputs


def padded_call(layer: keras.layers.Layer, added: int) -> Callable[..., tf.Tensor]:
    """The call of a convolution at stride 1 whose windows begin where those of the strided one began.

    `added` counts the zeros that a layer before it had put before rows and columns. All maps here are square.
    """
    (window, *_), (stride, *_), length = layer.kernel_size, layer.strides, layer.input.shape[2]
    if layer.padding == "same":
        added += max((-(-length // stride) - 1) * stride + window - length, 0) // 2
    zeros = [[added, window - 1 - added]] * 2
    widths = [[0, 0], *zeros, [0, 0]] if layer.data_format == "channels_last" else [[0, 0], [0, 0], *zeros]
    call = type(layer).call
    return lambda inputs, **kwargs: call(layer, tf.pad(inputs, widths), **kwargs)


def zeros_before(padding: keras.Operation) -> int:
    return padding.padding[0][0] if isinstance(padding, layers.ZeroPadding2D) else padding.pad_width[2][0]


def without_strides(model: keras.Model) -> keras.Model:
    """The model itself, changed in place: a check that shares nothing with how models are swapped."""
    downsampling = [
        operation
        for operation in operations(model)
        if isinstance(operation, (*POOLINGS, *CONVOLUTIONS)) and max(operation.strides) > 1
    ]
    padded = {id(operation.input) for operation in downsampling}
    added = {}
    for operation in operations(model):
        is_padding = isinstance(operation, layers.ZeroPadding2D) or type(operation).__name__ == "Pad"
        if is_padding and id(operation.output) in padded:
            added[id(operation.output)] = zeros_before(operation)
        is_left_out = isinstance(operation, (*POOLINGS, layers.UpSampling2D))
        if is_left_out or (is_padding and id(operation.output) in padded):
            object.__setattr__(operation, "call", passing_on)
    for operation in downsampling:
        if not isinstance(operation, POOLINGS):
            object.__setattr__(operation, "call", padded_call(operation, added.get(id(operation.input), 0)))
            operation.strides, operation.padding = (1, 1), "valid"
    return model


@every_backbone
def test_where_nothing_is_cropped_a_backbone_equals_the_one_without_downsampling(make: Make, downsampling: int):
    model = disturbed(make())
    swapped = replace_downsampling(model, keep_max=False, strides=1.0, smoothness_factor=128.0)
    x = images_for(model)
    expected = without_strides(model)(x)
    np.testing.assert_allclose(swapped(x), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (retinanet, "The maps of retina_net.* do not fit together any more at layer fpn"),
        (hgnet, "hg_net_v2.* has no layer to replace: .*embedder_stem1_conv"),
        (mit, "mi_t.* has no layer to replace: .*patch_and_embed_0"),
        (vit, "vi_t.* has no layer to replace: .*patch_embedding"),
    ],
    ids=["RetinaNet", "HGNetV2", "MiT", "ViT"],
)
def test_backbones_that_cannot_be_swapped_are_refused_with_the_reason(make: Make, message: str):
    with pytest.raises(ValueError, match=message) as error:
        replace_downsampling(make(), smoothness_factor=2.0)
    assert "\n" not in str(error.value)
