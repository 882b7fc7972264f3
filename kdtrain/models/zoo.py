"""flowvision's classifiers, adapted to the size of the images and the number of classes."""

from __future__ import annotations

import importlib
import warnings

from kdtrain.errors import UsageError, size_text, unknown_name_message
from kdtrain.models.networks import ImageShape
from kdtrain.runtime import flow

PREFIX = "flowvision:"
CLASSIFIERS = (
    "alexnet",
    *("convnext_tiny_224", "convnext_small_224"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4"),
    *("genet_small", "genet_normal", "genet_large"),
    "ghostnet",
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    "poolformer_s12",
    *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf"),
    *("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf"),
    "res2net50_26w_4s",
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "wide_resnet50_2"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("squeezenet1_0", "squeezenet1_1"),
    *("van_tiny", "van_small"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
)
"""The classifiers for images of any size from 28x28 on. A name in a checkpoint builds no others.

Left out are networks for one image size (inception, vit, swin and others), without a parameter for
the number of classes (rexnet, senet), with more results than logits (googlenet), that flowvision
0.2.1 fails to build (resnest), or with far too many parameters for small images.
"""
LARGE = {
    "alexnet": 56_989_378,
    "convnext_small_224": 49_452_482,
    "resnet101": 42_600_874,
    "resnet152": 58_290_653,
    "wide_resnet50_2": 66_897_783,
    "vgg11": 128_773_378,
    "vgg11_bn": 128_784_394,
    "vgg13": 128_957_890,
    "vgg13_bn": 128_969_676,
    "vgg16": 134_267_586,
    "vgg16_bn": 134_284_495,
    "vgg19": 139_577_282,
    "vgg19_bn": 139_599_314,
}
"""The number of values in the weights of the largest, for the smallest grey images in two classes.

All others have less than 30 million.
"""
_SMALL = 64  # pixels; below, a stem that divides height and width by four leaves too few
_SMALLEST = 28  # pixels


def check_classifier(arch: str) -> None:
    """Raises UsageError if ``flowvision:NAME`` is none of the classifiers."""
    name = arch.removeprefix(PREFIX)
    if name not in CLASSIFIERS:
        raise UsageError(unknown_name_message("flowvision classifier", name, CLASSIFIERS))


def build_classifier(arch: str, image_shape: ImageShape, num_classes: int) -> flow.nn.Module:
    """Returns a flowvision classifier with a new stem and head, and freshly drawn weights.

    The last layer has one unit per class, and the first convolution as many input channels as the
    images. For images with a side below 64 pixels the stem keeps their size, as is usual for CIFAR: the
    first convolution has stride 1 and a kernel of at most 3x3, and there is no first max pooling. This
    costs more computation.

    Args:
        arch: ``flowvision:NAME``, with a name in CLASSIFIERS.
        image_shape: channels, height, width.
        num_classes: the number of logits.

    Raises:
        UsageError: there is no such classifier, or the images are too small for it.
    """
    check_classifier(arch)
    if min(image_shape[1:]) < _SMALLEST:
        raise UsageError(
            f"{arch} needs images of at least {_SMALLEST}x{_SMALLEST} pixels, these are "
            f"{size_text(image_shape[1:])}: choose another, such as resnet8."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about in-place operations that OneFlow lacks
        models = importlib.import_module("flowvision.models")
        make = models.ModelCreator.create_model
        model = make(arch.removeprefix(PREFIX), pretrained=False, num_classes=num_classes)
    _fit_stem(model, image_shape[0], keep_size=min(image_shape[1:]) < _SMALL)
    return model


def _fit_stem(model: flow.nn.Module, channels: int, keep_size: bool) -> None:
    layers = list(model.named_modules())
    name, first = next((name, layer) for name, layer in layers if isinstance(layer, flow.nn.Conv2d))
    kernel, stride, padding = first.kernel_size, first.stride, first.padding
    if keep_size and max(stride) > 1:
        stride = 1
        if max(kernel) > 3:
            kernel, padding = 3, 1
    bias = first.bias is not None
    _replace(model, name, flow.nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=bias))
    pools = [name for name, layer in layers if isinstance(layer, flow.nn.MaxPool2d)]
    if keep_size and pools:
        _replace(model, pools[0], flow.nn.Identity())


def _replace(model: flow.nn.Module, name: str, layer: flow.nn.Module) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        model = getattr(model, parent)
    setattr(model, last, layer)
