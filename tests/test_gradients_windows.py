import numpy as np
import pytest

from riq_cli.statistics.autodiff import convolution, pooling
from riq_cli.statistics.autodiff.rule import NoRuleError
from riq_cli.statistics.autodiff.windows import AxisMap
from tests.gradients import newer_kernels
from tests.gradients_windows import RANDOM, check, normal, operation

# input, kernel, attributes
CONVOLUTIONS = [
    ((2, 3, 7, 8), (4, 3, 3, 3), {}),
    ((2, 3, 7, 8), (4, 3, 1, 1), {}),
    ((2, 3, 7, 8), (4, 3, 1, 1), {"strides": [2, 2]}),
    ((2, 3, 7, 8), (4, 3, 1, 1), {"pads": [1, 0, 0, 2]}),
    ((2, 3, 7, 8), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 3, 7, 8), (4, 3, 3, 2), {"pads": [2, 0, 1, 3], "strides": [2, 1]}),
    ((2, 3, 9, 8), (4, 3, 3, 2), {"pads": [2, 0, 1, 3], "strides": [2, 3], "dilations": [2, 3]}),
    ((1, 3, 9, 8), (4, 3, 3, 3), {"strides": [4, 4]}),
    ((1, 4, 9, 8), (4, 1, 3, 3), {"strides": [2, 2], "group": 4, "pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 8), (4, 1, 5, 3), {"dilations": [2, 1], "group": 4, "pads": [4, 1, 4, 1]}),
    ((2, 4, 9, 8), (4, 1, 1, 1), {"group": 4}),
    ((2, 4, 9, 8), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"group": 2, "strides": [1, 2]}),
    ((2, 4, 9, 8), (6, 2, 1, 1), {"group": 2}),
    ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "SAME_UPPER"}),
    ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER"}),
    ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((2, 3, 7, 8), (4, 3, 2, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ((2, 3, 7, 8), (4, 3, 4, 3), {"auto_pad": "VALID", "strides": [2, 3]}),
    ((2, 3, 2, 2), (4, 3, 7, 7), {"pads": [3, 3, 3, 3]}),
    ((2, 3, 9), (4, 3, 3), {"pads": [1, 1]}),
    ((2, 3, 9), (4, 3, 3), {"pads": [1, 0], "strides": [2]}),
    ((2, 2, 5, 6, 7), (4, 2, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1], "strides": [1, 2, 2]}),
    ((2, 2, 5, 6, 7), (2, 1, 3, 2, 3), {"group": 2}),
]

TRANSPOSED = [
    ((2, 3, 5, 6), (3, 4, 3, 3), {}),
    ((2, 3, 5, 6), (3, 4, 1, 1), {}),
    ((2, 3, 5, 6), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((2, 3, 5, 6), (3, 4, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [3, 2], "dilations": [2, 3]}),
    ((2, 4, 5, 6), (4, 1, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 4}),
    ((2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "group": 2}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    ((2, 3, 5, 6), (3, 4, 4, 3), {"strides": [2, 2], "output_shape": [11, 12], "output_padding": [1, 0]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER", "output_shape": [10, 12]}),
    ((2, 3, 5, 6), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ((2, 3, 5), (3, 4, 3), {"strides": [2], "pads": [1, 1]}),
    ((2, 2, 3, 4, 5), (2, 3, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 1, 1]}),
]


@pytest.mark.parametrize("source,kernel,attributes", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_convolution(source, kernel, attributes, bias):
    inputs = [normal(*source), normal(*kernel)] + [normal(kernel[0])] * bias
    check(convolution.RULES, "Conv", inputs, attributes, range(len(inputs)))


@pytest.mark.parametrize("source,kernel,attributes", TRANSPOSED)
@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolution(source, kernel, attributes, bias):
    inputs = [normal(*source), normal(*kernel)] + [normal(kernel[1] * attributes.get("group", 1))] * bias
    check(convolution.RULES, "ConvTranspose", inputs, attributes, range(len(inputs)))


@pytest.mark.parametrize("groups,outputs", [(1, 6), (96, 96), (96, 192)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_in_parts(monkeypatch, groups, outputs, stride):
    monkeypatch.setattr(convolution, "_BUFFER", 2000)
    inputs = [normal(3, 96, 9, 10), normal(outputs, 96 // groups, 3, 3)]
    check(convolution.RULES, "Conv", inputs, {"group": groups, "strides": [stride] * 2, "pads": [1, 1, 1, 1]})


POOLS = [
    ((2, 3, 8, 9), {"kernel_shape": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    ((2, 3, 8, 9), {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [8, 9]}),
    ((2, 3, 8, 9), {"kernel_shape": [1, 1], "strides": [2, 2]}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 8, 9), {"kernel_shape": [3, 2], "strides": [3, 2], "auto_pad": "VALID"}),
    ((2, 3, 15), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((2, 3, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [1, 0, 1, 0, 1, 1]}),
]


@newer_kernels
@pytest.mark.parametrize(
    "shape,attributes",
    [
        *POOLS,
        ((2, 3, 12, 13), {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3]}),
        ((2, 3, 12, 13), {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [2, 3], "pads": [2, 1, 2, 1]}),
        ((2, 1, 40, 40), {"kernel_shape": [17, 17]}),
    ],
)
def test_max_pool(shape, attributes):
    source = RANDOM.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32) - 100
    # Sums of large numbers that hardly move are not exact.
    check(pooling.RULES, "MaxPool", [source], attributes, step=0.2, tolerance=2e-3)


def test_max_pool_ties():
    source = np.zeros((1, 1, 4, 4), np.float32)
    node = operation("MaxPool", [source], {"kernel_shape": [2, 2], "strides": [2, 2]}, 17)
    (found,) = pooling.RULES["MaxPool"](node, [source], [np.ones((1, 1, 1, 2, 2), np.float32)], [True])
    assert found[0, 0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


@newer_kernels
@pytest.mark.parametrize("shape,attributes", POOLS)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("opset", [11, 19])
def test_average_pool(shape, attributes, padding, opset):
    check(pooling.RULES, "AveragePool", [normal(*shape)], {**attributes, "count_include_pad": padding}, opset=opset)


@newer_kernels
@pytest.mark.parametrize("padding", [0, 1])
def test_average_pool_dilated(padding):
    attributes = {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [2, 1, 2, 1], "count_include_pad": padding}
    check(pooling.RULES, "AveragePool", [normal(2, 3, 12, 13)], attributes, opset=19)


def test_average_pool_of_a_long_axis():
    attributes = {"kernel_shape": [5], "strides": [2], "pads": [2, 2]}
    check(pooling.RULES, "AveragePool", [normal(1, 2, 3001)], attributes)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("opset", [9, 15])
def test_batch_normalization(shape, opset):
    inputs = [normal(*shape), normal(3), normal(3), normal(3), np.array([0.5, 1, 2], np.float32)]
    check(pooling.RULES, "BatchNormalization", inputs, {"epsilon": 1e-3}, (0, 1, 2, 3), opset)
    check(pooling.RULES, "BatchNormalization", inputs, {}, (4,), opset, step=0.01, tolerance=2e-3)


def test_batch_normalization_in_training():
    inputs = [normal(2, 3, 4), normal(3), normal(3), normal(3), np.ones(3, np.float32)]
    node = operation("BatchNormalization", inputs, {"training_mode": 1}, 15)
    with pytest.raises(NoRuleError):
        pooling.RULES["BatchNormalization"](node, inputs, [normal(2, 2, 3, 4)], [True] + [False] * 4)


COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
SIZES = [(2, 3, 10, 14), (2, 3, 7, 10), (2, 3, 3, 1), (2, 3, 5, 7), (2, 3, 11, 4)]


@newer_kernels
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "floor", "ceil", "round_prefer_ceil"])
@pytest.mark.parametrize("sizes", SIZES)
def test_resize_nearest(coordinates, nearest, sizes):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    inputs = [normal(2, 3, 5, 7), None, None, np.array(sizes, np.int64)]
    check(pooling.RULES, "Resize", inputs, attributes)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("sizes", SIZES)
def test_resize_smooth(mode, coordinates, sizes):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(pooling.RULES, "Resize", [normal(2, 3, 5, 7), None, None, np.array(sizes, np.int64)], attributes)


@newer_kernels
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "floor", "ceil", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
@pytest.mark.parametrize("size,length", [(7, 4), (7, 38), (14, 19), (20, 6), (513, 1026), (65, 513), (640, 427)])
def test_resize_rounds_halves(coordinates, nearest, size, length):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    check(pooling.RULES, "Resize", [normal(1, 1, 1, size), None, None, np.array([1, 1, 1, length])], attributes)


@pytest.mark.parametrize("attributes", [{"exclude_outside": 1}, {"cubic_coeff_a": -0.5}])
def test_resize_cubic(attributes):
    inputs = [normal(2, 3, 5, 7), None, np.array([1, 1, 1.7, 0.6], np.float32)]
    check(pooling.RULES, "Resize", inputs, {"mode": "cubic", **attributes})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("coordinates", [*COORDINATES, "half_pixel_symmetric"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.3, 2.6), (1, 1, 0.6, 0.5), (1, 1, 3, 1)])
def test_resize_by_scales(mode, coordinates, scales):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    inputs = [normal(2, 3, 5, 7), None, np.array(scales, np.float32)]
    check(pooling.RULES, "Resize", inputs, attributes, opset=19)


@pytest.mark.parametrize(
    "shape,mode,scales",
    [
        ((2, 3, 4, 5, 6), "linear", (1, 1, 2, 1.5, 2)),
        ((2, 3, 4, 5, 6), "nearest", (1, 1, 2, 1.5, 2)),
        ((4, 5), "linear", (2, 1.5)),
        ((2, 3, 8), "nearest", (1, 1, 2)),
        ((2, 3, 8), "linear", (1, 1, 2)),
        ((2, 3), "nearest", (2, 2)),
        ((1, 1, 200, 170), "linear", (1, 1, 2, 1.7)),
        ((1, 1, 200, 170), "nearest", (1, 1, 2, 0.9)),
    ],
)
def test_resize_of_other_shapes(shape, mode, scales):
    inputs = [normal(*shape), None, np.array(scales, np.float32)]
    check(pooling.RULES, "Resize", inputs, {"mode": mode, "coordinate_transformation_mode": "half_pixel"})


@newer_kernels
def test_resize_of_named_axes():
    inputs = [normal(2, 3, 5, 7), None, None, np.array([8, 9], np.int64)]
    check(pooling.RULES, "Resize", inputs, {"mode": "linear", "axes": [2, -1]}, opset=18)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.5, 3), (1, 1, 0.7, 0.4)])
@pytest.mark.parametrize("kind,opset", [("Resize", 10), ("Upsample", 9), ("Upsample", 7)])
def test_upsample(mode, scales, kind, opset):
    if kind == "Upsample" and min(scales) < 1:
        pytest.skip("Upsample does not make smaller")
    inputs, attributes = [normal(2, 3, 4, 6)], {"mode": mode}
    if opset == 7:
        attributes["scales"] = [float(scale) for scale in scales]
    else:
        inputs.append(np.array(scales, np.float32))
    check(pooling.RULES, kind, inputs, attributes, opset=opset)


@pytest.mark.parametrize(
    "attributes",
    [
        {"antialias": 1},
        {"keep_aspect_ratio_policy": "not_larger"},
        {"mode": "other"},
        {"nearest_mode": "other"},
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
    ],
)
def test_resize_unknown(attributes):
    inputs = [normal(1, 1, 4, 4), None, None, np.array([1, 1, 8, 8], np.int64)]
    with pytest.raises(NoRuleError):
        pooling.RULES["Resize"](
            operation("Resize", inputs, attributes, 18), inputs, [normal(2, 1, 1, 8, 8)], [True] + [False] * 3
        )


def test_axis_map_that_changes_nothing():
    gradient = normal(2, 3, 5)
    same = AxisMap(np.array([np.arange(5), np.arange(5)]), np.array([[1] * 5, [0] * 5], np.float32), 5)
    assert same.transposed(gradient, 2) is gradient


@pytest.mark.parametrize(
    "rules,kind,inputs,attributes,out",
    [
        (convolution.RULES, "Conv", [(2, 4, 6, 6), (8, 4, 3, 3), (8,)], {}, (2, 8, 4, 4)),
        (convolution.RULES, "Conv", [(2, 4, 6, 6), (4, 1, 3, 3), (4,)], {"group": 4}, (2, 4, 4, 4)),
        (convolution.RULES, "ConvTranspose", [(2, 4, 6, 6), (4, 8, 3, 3), (8,)], {}, (2, 8, 8, 8)),
        (pooling.RULES, "MaxPool", [(2, 4, 6, 6)], {"kernel_shape": [3, 3]}, (2, 4, 4, 4)),
        (pooling.RULES, "AveragePool", [(2, 4, 6, 6)], {"kernel_shape": [3, 3]}, (2, 4, 4, 4)),
        (pooling.RULES, "BatchNormalization", [(2, 4, 6, 6), (4,), (4,), (4,), (4,)], {}, (2, 4, 6, 6)),
    ],
)
@pytest.mark.parametrize("kind_of_number", [np.float16, np.float64])
def test_other_precision(rules, kind, inputs, attributes, out, kind_of_number):
    """Gradients are of float32 whatever the inputs are; the gradient is one that is repeated, not writable."""
    given = [np.abs(normal(*shape)).astype(kind_of_number) for shape in inputs]
    gradient = np.broadcast_to(normal(*out[1:]), (2, *out))
    wanted = [True] * len(given)
    found = rules[kind](operation(kind, given, attributes, 17), given, [gradient], wanted)
    plain = [value.astype(np.float32) for value in given]
    same = rules[kind](operation(kind, plain, attributes, 17), plain, [gradient.copy()], wanted)
    for value, other in zip(found, same, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)
