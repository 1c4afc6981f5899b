"""Checks a gradient rule against differences of what onnxruntime computes for a model of one node."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from riq_cli.model import Operation

PROBES = 3
RANDOM = np.random.default_rng(7)


def normal(*shape):
    return np.asarray(RANDOM.normal(size=shape), np.float32)


def runner(kind, inputs, attributes, opset):
    """The function that onnxruntime computes; inputs that are None are left out."""
    domain, _, name = kind.rpartition(":")
    names = [f"x{number}" if value is not None else "" for number, value in enumerate(inputs)]
    node = onnx.helper.make_node(name, names, ["y"], domain=domain, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, inputs, strict=True)
            if name
        ],
        [onnx.helper.make_empty_tensor_value_info("y")],
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda values: session.run(None, {name: value for name, value in zip(names, values, strict=True) if name})[
        0
    ].astype(np.float64)


def operation(kind, inputs, attributes, opset):
    names = tuple(f"x{number}" if value is not None else "" for number, value in enumerate(inputs))
    return Operation(kind, names, ("y",), attributes, opset)


def check(rules, kind, inputs, attributes=None, wanted=(0,), opset=17, step=1.0, tolerance=1e-4):
    """Compares <gradient, d> with <g, f(x + d) - f(x - d)> / 2 for each wanted input, moved alone."""
    attributes = attributes or {}
    run = runner(kind, inputs, attributes, opset)
    gradients = RANDOM.normal(size=(PROBES, *run(inputs).shape)).astype(np.float32)
    kept = [None if value is None else value.copy() for value in (*inputs, gradients)]
    node = operation(kind, inputs, attributes, opset)
    flags = [number in wanted for number in range(len(inputs))]
    found = rules[kind](node, inputs, [gradients], flags)
    assert len(found) == len(inputs)
    for number, value in enumerate(inputs):
        if not flags[number]:
            assert found[number] is None
            continue
        assert found[number].dtype == np.float32
        assert found[number].shape == (PROBES, *value.shape)
        for _ in range(2):
            move = np.asarray(step * RANDOM.normal(size=value.shape).clip(-2, 2), value.dtype)
            ahead, behind = (
                [*inputs[:number], np.asarray(value + sign * move, value.dtype), *inputs[number + 1 :]]
                for sign in (1, -1)
            )
            change = (run(ahead) - run(behind)) / 2
            expected = (gradients * change).reshape(PROBES, -1).sum(axis=1)
            scale = np.abs(gradients * change).sum() / np.sqrt(change.size) + 1e-6
            got = (found[number].astype(np.float64) * move).reshape(PROBES, -1).sum(axis=1)
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale)
    for value, before in zip((*inputs, gradients), kept, strict=True):
        assert value is None or np.array_equal(value, before), "an array that came in was changed"
    single = [
        rules[kind](node, inputs, [gradients], [n == number for n in range(len(inputs))])[number] for number in wanted
    ]
    for number, alone in zip(wanted, single, strict=True):
        np.testing.assert_array_equal(alone, found[number])
    assert all(value is None for value in rules[kind](node, inputs, [None], flags))
