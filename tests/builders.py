"""Tiny seeded ONNX models: one for every place where weights live, and for every end that saturates.

Every builder takes a `seed` that changes its float weights and nothing else: two seeds give two models with the same
skeleton. `FORMS` and `SATURATED` list them by name; `feeds` makes inputs for any of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
TYPES = {"FLOAT": FLOAT, "FLOAT16": TensorProto.FLOAT16, "INT64": INT64}
OPSET, IR_VERSION = 17, 8
FREE_SIZE = 3  # what `feeds` gives to a free dimension

Builder = Callable[..., onnx.ModelProto]
FORMS: dict[str, Builder] = {}


# ---- the pen --------------------------------------------------------------------------------------------------------


def form(builder: Builder) -> Builder:
    FORMS[builder.__name__] = builder
    return builder


class Random:
    """Seeded weights, one array after the other."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def __call__(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        return np.asarray(self._generator.standard_normal(shape) * 0.5).astype(dtype)


def tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)


def constant(name: str, values: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=tensor("", values))


def info(name: str, *shape: int | str | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def unknown(name: str, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    """A value without a declared shape."""
    return helper.make_tensor_value_info(name, dtype, None)


def matrix(name: str, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    """A value with two free axes."""
    return info(name, None, None, dtype=dtype)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, `_` leaves an optional input out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def nodes(text: str) -> list[onnx.NodeProto]:
    """Nodes written as `Op inputs > outputs attribute=value`, with `;` between them; `_` leaves an input out."""
    found = []
    for line in text.split(";"):
        left, right = line.split(">")
        op, inputs = left.split(maxsplit=1) if " " in left.strip() else (left.strip(), "")
        attributes: dict[str, Any] = {}
        for name, _, value in (word.partition("=") for word in right.split() if "=" in word):
            if name.endswith("_branch"):
                inner = nodes(BRANCHES[value])
                attributes[name] = graph(inner, [], [unknown(inner[-1].output[0])], name="branch")
            elif name == "value_tensor":
                attributes["value"] = tensor("", CONSTANTS[value])
            else:
                attributes[name] = TYPES.get(value) or ast.literal_eval(value)
        found.append(node(op, inputs, " ".join(word for word in right.split() if "=" not in word), **attributes))
    return found


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    name: str = "graph",
) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs), list(initializers))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[tuple[str, int]] = (),
    ir_version: int = IR_VERSION,
    opset: int = OPSET,
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)]
    return helper.make_model(
        graph(nodes, inputs, outputs, initializers),
        opset_imports=opsets,
        ir_version=ir_version,
        functions=list(functions),
        producer_name="builders",
    )


def feeds(proto: onnx.ModelProto, count: int = 2, seed: int = 7) -> list[dict[str, np.ndarray]]:
    """Inputs for a model: Gaussian floats, small integers, and bools that are true, false, true, …"""
    generator = np.random.default_rng(seed)
    constants = {initializer.name for initializer in proto.graph.initializer}
    result = []
    for number in range(count):
        feed = {}
        for value in proto.graph.input:
            if value.name in constants:
                continue
            kind = value.type.tensor_type
            shape = [dim.dim_value if dim.HasField("dim_value") else FREE_SIZE for dim in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if kind.elem_type == BOOL:
                feed[value.name] = np.full(shape, number % 2 == 0)
            elif np.issubdtype(dtype, np.integer):
                feed[value.name] = np.asarray(generator.integers(0, 4, shape)).astype(dtype)
            else:
                feed[value.name] = np.asarray(generator.standard_normal(shape)).astype(dtype)
        result.append(feed)
    return result


def save(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def save_external(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx", threshold: int = 0) -> Path:
    """Save with the tensors' data in one file, `weights.bin`, beside the model; those of Constant nodes too."""
    path = folder / name
    onnx.save_model(
        onnx.ModelProto.FromString(proto.SerializeToString()),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=threshold,
        convert_attribute=True,
    )
    return path


# ---- initializers of the main graph ---------------------------------------------------------------------------------


@form
def conv(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    return model(
        nodes(
            "Conv x conv.weight conv.bias > c kernel_shape=[3,3] pads=[1,1,1,1]; Relu c > a; "
            "GlobalAveragePool a > p; Flatten p > f; Gemm f head.weight head.bias > y transB=1"
        ),
        [info("x", "batch", 3, 6, 6)],
        [info("y", "batch", 5)],
        [
            tensor("conv.weight", r(8, 3, 3, 3)),
            tensor("conv.bias", r(8)),
            tensor("head.weight", r(5, 8)),
            tensor("head.bias", r(5)),
        ],
    )


@form
def dense(seed: int = 0) -> onnx.ModelProto:
    """Two layers of 512 and 320 weights: enough for compress to code them."""
    r = Random(seed)
    return model(
        nodes("Gemm x first.weight first.bias > h transB=1; Tanh h > a; Gemm a second.weight second.bias > y transB=1"),
        [info("x", "batch", 16)],
        [info("y", "batch", 10)],
        [
            tensor("first.weight", r(32, 16)),
            tensor("first.bias", r(32)),
            tensor("second.weight", r(10, 32)),
            tensor("second.bias", r(10)),
        ],
    )


@form
def matmul(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    return model(
        [node("MatMul", "x w", "m"), node("Add", "m b", "y")],
        [info("x", "batch", 4, 6)],
        [info("y", "batch", 4, 5)],
        [tensor("w", r(6, 5)), tensor("b", r(5))],
    )


@form
def lstm(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    return model(
        [node("LSTM", "x W R B _ h c", "y state_h state_c", hidden_size=4)],
        [info("x", "time", "batch", 3), info("h", 1, "batch", 4), info("c", 1, "batch", 4)],
        [info("y", "time", 1, "batch", 4), info("state_h", 1, "batch", 4), info("state_c", 1, "batch", 4)],
        [tensor("W", r(1, 16, 3)), tensor("R", r(1, 16, 4)), tensor("B", r(1, 32))],
    )


@form
def embedding(seed: int = 0) -> onnx.ModelProto:
    """Token ids, a mask and a scalar rate, as text models take them."""
    r = Random(seed)
    return model(
        nodes(
            "Gather table ids > e; Cast mask > m to=FLOAT; Unsqueeze m last > u; Mul e u > em; "
            "Cast rate > f to=FLOAT; Mul em f > s; MatMul s w > y"
        ),
        [
            info("ids", "batch", "length", dtype=INT64),
            info("mask", "batch", "length", dtype=INT64),
            info("rate", dtype=INT64),
        ],
        [info("y", "batch", "length", 4)],
        [tensor("table", r(11, 6)), tensor("w", r(6, 4)), tensor("last", np.array([-1]))],
    )


@form
def folded_transpose(seed: int = 0) -> onnx.ModelProto:
    """A weight that onnxruntime transposes once, when the session starts."""
    r = Random(seed)
    return model(
        nodes("Transpose w > wt perm=[1,0]; MatMul x wt > m; Reshape b shape > br; Add m br > y"),
        [info("x", "batch", 6)],
        [info("y", "batch", 5)],
        [tensor("w", r(5, 6)), tensor("b", r(5, 1)), tensor("shape", np.array([1, 5]))],
    )


@form
def initializers_as_inputs(seed: int = 0) -> onnx.ModelProto:
    """IR version 3: every initializer is listed among the graph's inputs."""
    r = Random(seed)
    return model(
        [node("Gemm", "x w b", "m"), node("Reshape", "m shape", "y")],
        [info("x", 3, 6), info("w", 6, 4), info("b", 4), info("shape", 2, dtype=INT64)],
        [info("y", 4, 3)],
        [tensor("w", r(6, 4)), tensor("b", r(4)), tensor("shape", np.array([4, 3]))],
        ir_version=3,
        opset=11,
    )


@form
def shared(seed: int = 0) -> onnx.ModelProto:
    """One weight, several nodes."""
    r = Random(seed)
    return model(
        [node("MatMul", "x w", "a"), node("Gemm", "a w", "g", transB=1), node("MatMul", "g w", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 6)],
        [tensor("w", r(6, 6))],
    )


@form
def through_identity(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    return model(
        [node("Identity", "w", "alias"), node("MatMul", "x w", "a"), node("Gemm", "a alias", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 6)],
        [tensor("w", r(6, 6))],
    )


@form
def tied(seed: int = 0) -> onnx.ModelProto:
    """Equal tensors under two names, and one more of the same shape and first values that differs at its end."""
    r = Random(seed)
    w = r(40, 40)
    other = w.copy()
    other[-1, -1] += 1
    return model(
        [node("MatMul", "x encoder", "a"), node("MatMul", "a other", "b"), node("Gemm", "b decoder", "y", transB=1)],
        [info("x", "batch", 40)],
        [info("y", "batch", 40)],
        [tensor("encoder", w), tensor("other", other), tensor("decoder", w)],
    )


@form
def float_data(seed: int = 0) -> onnx.ModelProto:
    """Tensors that store their values in the typed fields instead of raw_data."""
    r = Random(seed)
    half = r(5, 5).astype(np.float16)
    return model(
        nodes(
            "MatMul x w > a; Cast half > halff to=FLOAT; MatMul a halff > h; Cast double > doublef to=FLOAT; "
            "Mul h doublef > y"
        ),
        [info("x", "batch", 6)],
        [info("y", "batch", 5)],
        [
            helper.make_tensor("w", FLOAT, [6, 5], r(6, 5).ravel().tolist()),
            helper.make_tensor("half", TensorProto.FLOAT16, [5, 5], half.ravel().astype(float).tolist()),
            helper.make_tensor("double", TensorProto.DOUBLE, [5], r(5).astype(float).tolist()),
        ],
    )


# ---- Constant nodes, subgraphs, functions ---------------------------------------------------------------------------


@form
def constants(seed: int = 0) -> onnx.ModelProto:
    """Everything in Constant nodes; integers and plain attributes are not layers."""
    r = Random(seed)
    return model(
        [
            constant("w", r(6, 5)),
            node("MatMul", "x w", "a"),
            constant("shape", np.array([-1, 5])),
            node("Reshape", "a shape", "s"),
            constant("b", r(5)),
            node("Add", "s b", "t"),
            node("Constant", "", "two", value_float=2.0),
            node("Mul", "t two", "u"),
            node("Constant", "", "fives", value_floats=[5.0, 4.0, 3.0, 2.0, 1.0]),
            node("Add", "u fives", "y"),
        ],
        [info("x", "batch", 6)],
        [info("y", "batch", 5)],
    )


@form
def if_branches(seed: int = 0) -> onnx.ModelProto:
    """Initializers in one branch, Constants in the other, the same names in both."""
    r = Random(seed)
    then = graph([node("MatMul", "x w", "m"), node("Add", "m b", "o")], [], [info("o", None, 5)], name="then")
    then.initializer.extend([tensor("w", r(6, 5)), tensor("b", r(5))])
    other = graph(
        [constant("w", r(6, 5)), constant("b", r(5)), node("MatMul", "x w", "m"), node("Sub", "m b", "o")],
        [],
        [info("o", None, 5)],
        name="else",
    )
    return model(
        [node("If", "flag", "y", then_branch=then, else_branch=other)],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 5)],
    )


@form
def if_nested(seed: int = 0) -> onnx.ModelProto:
    """An If in an If, a weight at every depth, one of them also in the main graph."""
    r = Random(seed)
    common = r(6, 6)
    inner_then = graph(
        [constant("deep", r(6, 6)), node("MatMul", "h deep", "o")], [], [info("o", None, 6)], name="inner_then"
    )
    inner_else = graph(
        [node("MatMul", "h again", "p")], [], [info("p", None, 6)], [tensor("again", common)], name="inner_else"
    )
    then = graph(
        [
            constant("middle", r(6, 6)),
            node("MatMul", "top middle", "h"),
            node("If", "inner", "q", then_branch=inner_then, else_branch=inner_else),
        ],
        [],
        [info("q", None, 6)],
        name="then",
    )
    other = graph([node("MatMul", "top low", "q")], [], [info("q", None, 6)], [tensor("low", r(6, 6))], name="else")
    return model(
        [
            constant("w", common),
            node("MatMul", "x w", "top"),
            node("Not", "flag", "inner"),
            node("If", "outer", "y", then_branch=then, else_branch=other),
        ],
        [info("x", "batch", 6), info("flag", dtype=BOOL), info("outer", dtype=BOOL)],
        [info("y", "batch", 6)],
    )


@form
def if_constant_output(seed: int = 0) -> onnx.ModelProto:
    """Branches whose output is the weight itself: an initializer, and a Constant."""
    r = Random(seed)
    then = graph([], [], [info("o", 6, 5)], [tensor("o", r(6, 5))], name="then")
    other = graph([constant("o", r(6, 5))], [], [info("o", 6, 5)], name="else")
    return model(
        [node("If", "flag", "w", then_branch=then, else_branch=other), node("MatMul", "x w", "y")],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 5)],
    )


@form
def if_outer_scope(seed: int = 0) -> onnx.ModelProto:
    """Weights of the main graph that only the branches use: an initializer and a Constant."""
    r = Random(seed)
    then = graph([node("MatMul", "x w", "o")], [], [info("o", None, 5)], name="then")
    other = graph([node("MatMul", "x v", "o")], [], [info("o", None, 5)], name="else")
    return model(
        [constant("v", r(6, 5)), node("If", "flag", "y", then_branch=then, else_branch=other)],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 5)],
        [tensor("w", r(6, 5))],
    )


@form
def loop(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    body = graph(
        [
            constant("c", r(6, 6)),
            node("MatMul", "state c", "m"),
            node("Add", "m w", "next"),
            node("Identity", "keep_on", "more"),
        ],
        [info("i", dtype=INT64), info("keep_on", dtype=BOOL), info("state", None, 6)],
        [info("more", dtype=BOOL), info("next", None, 6)],
        [tensor("w", r(1, 6))],
        name="body",
    )
    return model(
        [node("Loop", "trips yes x", "y", body=body)],
        [info("x", "batch", 6)],
        [info("y", "batch", 6)],
        [tensor("trips", np.array(3)), tensor("yes", np.array(True))],
    )


@form
def scan(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    body = graph(
        [node("MatMul", "state w", "m"), node("Add", "m item", "next"), node("Identity", "next", "out")],
        [info("state", 1, 6), info("item", 1, 6)],
        [info("next", 1, 6), info("out", 1, 6)],
        [tensor("w", r(6, 6))],
        name="body",
    )
    return model(
        [node("Scan", "start x", "last y", body=body, num_scan_inputs=1)],
        [info("x", "time", 1, 6)],
        [info("last", 1, 6), info("y", "time", 1, 6)],
        [tensor("start", r(1, 6))],
    )


def _function(
    name: str, inputs: str, outputs: str, nodes: Sequence[onnx.NodeProto], calls: bool = False
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid("local", 1)] if calls else [])
    return helper.make_function("local", name, inputs.split(), outputs.split(), list(nodes), opsets)


@form
def function(seed: int = 0) -> onnx.ModelProto:
    """A local function with weights as Constants, called twice."""
    r = Random(seed)
    dense = _function(
        "Dense",
        "a",
        "b",
        [constant("w", r(6, 6)), constant("bias", r(6)), node("MatMul", "a w", "m"), node("Add", "m bias", "b")],
    )
    return model(
        [node("Dense", "x", "h", domain="local"), node("Tanh", "h", "t"), node("Dense", "t", "y", domain="local")],
        [info("x", "batch", 6)],
        [info("y", "batch", 6)],
        functions=[dense],
        domains=[("local", 1)],
    )


@form
def function_of_functions(seed: int = 0) -> onnx.ModelProto:
    """Functions that call functions, through an If as well."""
    r = Random(seed)
    inner = _function("Inner", "a", "b", [constant("w", r(6, 6)), node("MatMul", "a w", "b")])
    then = graph([node("Inner", "h", "o", domain="local")], [], [unknown("o")], name="then")
    other = graph(
        [constant("v", r(6, 6)), node("MatMul", "h v", "m"), node("Add", "m c", "o")],
        [],
        [unknown("o")],
        [tensor("c", r(6))],
        name="else",
    )
    outer = _function(
        "Outer",
        "a flag",
        "b",
        [
            constant("w", r(6, 6)),
            node("MatMul", "a w", "h"),
            node("If", "flag", "b", then_branch=then, else_branch=other),
        ],
        calls=True,
    )
    return model(
        [node("Outer", "x flag", "h1", domain="local"), node("Inner", "h1", "y", domain="local")],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 6)],
        functions=[inner, outer],
        domains=[("local", 1)],
    )


@form
def function_with_optional_input(seed: int = 0) -> onnx.ModelProto:
    """A function whose last input is optional, left out by one call and given by another, the former inside an If."""
    r = Random(seed)
    clipped = _function(
        "Clipped",
        "a low high",
        "b",
        [constant("w", r(6, 6)), node("MatMul", "a w", "m"), node("Clip", "m low high", "b")],
    )
    then = graph([node("Clipped", "x low", "o", domain="local")], [], [unknown("o")], name="then")
    other = graph([node("Clipped", "x _ high", "o", domain="local")], [], [unknown("o")], name="else")
    return model(
        [
            node("If", "flag", "i", then_branch=then, else_branch=other),
            node("Clipped", "x low high", "j", domain="local"),
            node("Add", "i j", "y"),
        ],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 6)],
        [tensor("low", np.array(-0.5, np.float32)), tensor("high", np.array(0.5, np.float32))],
        functions=[clipped],
        domains=[("local", 1)],
    )


@form
def weights_as_outputs(seed: int = 0) -> onnx.ModelProto:
    """An initializer and a Constant that are outputs of the model."""
    r = Random(seed)
    return model(
        [constant("anchors", r(4, 2)), node("MatMul", "x w", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 5), info("anchors", 4, 2), info("grid", 3, 2)],
        [tensor("w", r(6, 5)), tensor("grid", r(3, 2))],
    )


@form
def unused_initializer(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    result = matmul(seed)
    result.graph.initializer.append(tensor("orphan", r(20, 30)))
    return result


@form
def unused_initializer_as_input(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    result = initializers_as_inputs(seed)
    result.graph.initializer.append(tensor("orphan", r(20, 30)))
    result.graph.input.append(info("orphan", 20, 30))
    return result


@form
def unused_constant(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    result = matmul(seed)
    result.graph.node.insert(0, constant("orphan", r(20, 30)))
    return result


@form
def uncalled_function(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed + 100)
    result = function(seed)
    result.functions.append(_function("Never", "a", "b", [constant("w", r(6, 6)), node("MatMul", "a w", "b")]))
    return result


# ---- types and odd values -------------------------------------------------------------------------------------------


@form
def float16(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    kind = TensorProto.FLOAT16
    return model(
        [node("MatMul", "x w", "m"), constant("b", r(5, dtype=np.float16)), node("Add", "m b", "y")],
        [info("x", "batch", 6, dtype=kind)],
        [info("y", "batch", 5, dtype=kind)],
        [tensor("w", r(6, 5, dtype=np.float16))],
    )


@form
def bfloat16(seed: int = 0) -> onnx.ModelProto:
    """bfloat16 weights, one in an If; the CPU computes in float32 behind a Cast."""
    r = Random(seed)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    then = graph(
        [constant("v", r(5, 5, dtype=kind)), node("Cast", "v", "vf", to=FLOAT), node("MatMul", "m vf", "o")],
        [],
        [info("o", None, 5)],
        name="then",
    )
    other = graph([node("Identity", "m", "o")], [], [info("o", None, 5)], name="else")
    typed = TensorProto(name="typed", data_type=TensorProto.BFLOAT16, dims=[5])
    typed.int32_data.extend(r(5, dtype=kind).view(np.uint16).tolist())
    return model(
        [
            node("Cast", "w", "wf", to=FLOAT),
            node("MatMul", "x wf", "n"),
            node("Cast", "typed", "tf", to=FLOAT),
            node("Add", "n tf", "m"),
            node("If", "flag", "y", then_branch=then, else_branch=other),
        ],
        [info("x", "batch", 6), info("flag", dtype=BOOL)],
        [info("y", "batch", 5)],
        [tensor("w", r(6, 5, dtype=kind)), typed],
    )


@form
def float64(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    kind = TensorProto.DOUBLE
    return model(
        [node("MatMul", "x w", "m"), constant("b", r(5, dtype=np.float64)), node("Add", "m b", "y")],
        [info("x", "batch", 6, dtype=kind)],
        [info("y", "batch", 5, dtype=kind)],
        [tensor("w", r(6, 5, dtype=np.float64))],
    )


@form
def zeros_and_single_weights(seed: int = 0) -> onnx.ModelProto:
    """A layer of zeros, a scalar, a layer of shape [1, 1], and a float tensor without elements."""
    r = Random(seed)
    return model(
        nodes(
            "MatMul x zeros > z; MatMul x w > m; Add z m > a; Mul a scalar > s; Add s one > t; "
            "Concat t empty > y axis=0"
        ),
        [info("x", "batch", 6)],
        [info("y", None, 5)],
        [
            tensor("empty", np.zeros((0, 5), np.float32)),
            tensor("zeros", np.zeros((6, 5), np.float32)),
            tensor("w", r(6, 5)),
            tensor("scalar", r()),
            tensor("one", r(1, 1)),
        ],
    )


@form
def not_finite(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    w, v = r(6, 5), r(6, 5)
    w[2, 3], v[1, 1] = np.inf, np.nan
    return model(
        [node("MatMul", "x w", "a"), node("MatMul", "x v", "b"), node("MatMul", "x u", "c"), node("Sum", "a b c", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 5)],
        [tensor("w", w), tensor("v", v), tensor("u", r(6, 5))],
    )


@form
def int8_qdq(seed: int = 0) -> onnx.ModelProto:
    """Quantized already: the weight is int8, floats are scales; no matter what the seed is."""
    fixed = np.random.default_rng(11)
    return model(
        nodes(
            "QuantizeLinear x x_scale x_zero > xq; DequantizeLinear xq x_scale x_zero > xd; "
            "DequantizeLinear wq w_scale w_zero > wd axis=1; MatMul xd wd > y"
        ),
        [info("x", "batch", 24)],
        [info("y", "batch", 16)],
        [
            tensor("wq", fixed.integers(-127, 128, (24, 16)).astype(np.int8)),
            tensor("w_scale", np.linspace(0.01, 0.02, 16, dtype=np.float32)),
            tensor("w_zero", np.zeros(16, np.int8)),
            tensor("x_scale", np.array(0.03, np.float32)),
            tensor("x_zero", np.array(3, np.int8)),
        ],
    )


@form
def trained_for_int8(seed: int = 0) -> onnx.ModelProto:
    """Float weights that are rounded to a grid of int8 at each run, as quantization-aware training exports them."""
    r = Random(seed)
    return model(
        nodes(
            "QuantizeLinear x step zero > xq; DequantizeLinear xq step zero > xd; "
            "QuantizeLinear w w_steps w_zeros > wq axis=0; DequantizeLinear wq w_steps w_zeros > wd axis=0; "
            "Gemm xd wd b > h transB=1; QuantizeLinear v step zero > vq; DequantizeLinear vq step zero > vd; "
            "Transpose vd > vt perm=[1,0]; MatMul h vt > y"
        ),
        [info("x", "batch", 24)],
        [info("y", "batch", 8)],
        [
            tensor("w", r(16, 24)),
            tensor("w_steps", np.linspace(0.02, 0.03, 16, dtype=np.float32)),
            tensor("w_zeros", np.zeros(16, np.int8)),
            tensor("b", r(16)),
            tensor("v", r(8, 16)),
            tensor("step", np.array(0.03, np.float32)),
            tensor("zero", np.array(3, np.int8)),
        ],
    )


@form
def sparse(seed: int = 0) -> onnx.ModelProto:
    """A sparse initializer beside a dense one; its values are the same for every seed."""
    r = Random(seed)
    result = model(
        [node("MatMul", "x thin", "a"), node("MatMul", "a w", "y")],
        [info("x", "batch", 6)],
        [info("y", "batch", 5)],
        [tensor("w", r(4, 5))],
    )
    values = tensor("thin", np.array([1.5, -2.0, 0.25], np.float32))
    result.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, tensor("thin_indices", np.array([1, 9, 20])), [6, 4])
    )
    return result


@form
def integers_and_strings(seed: int = 0) -> onnx.ModelProto:
    """int64, int32, bool and string tensors, as initializers and Constants; one float weight."""
    r = Random(seed)
    return model(
        [
            node("Gather", "words index", "word"),
            constant("more_words", np.array(["ä", "", "z"], dtype=object)),
            node("Concat", "word more_words", "text", axis=0),
            node("Reshape", "x shape", "s"),
            node("MatMul", "s w", "m"),
            node("Where", "choice m zero", "y"),
        ],
        [info("x", "batch", 6)],
        [info("y", None, 5), info("text", None, dtype=TensorProto.STRING)],
        [
            tensor("words", np.array(["alpha", "beta", "gamma"], dtype=object)),
            tensor("index", np.array([2, 0], np.int32)),
            tensor("shape", np.array([-1, 6])),
            tensor("choice", np.array([True, False, True, True, False])),
            tensor("w", r(6, 5)),
            tensor("zero", r()),
        ],
    )


@form
def trees(seed: int = 0) -> onnx.ModelProto:
    """An ai.onnx.ml operator with tensors in its attributes: none of riq's business. Behind it, a weight."""
    r = Random(seed)
    double = {
        "nodes_values_as_tensor": tensor("", np.array([0.1, 0.0, 0.0])),
        "target_weights_as_tensor": tensor("", np.array([-1.25, 3.5])),
        "base_values_as_tensor": tensor("", np.array([0.5])),
    }
    return model(
        [
            node(
                "TreeEnsembleRegressor",
                "x",
                "t",
                domain="ai.onnx.ml",
                n_targets=1,
                nodes_treeids=[0, 0, 0],
                nodes_nodeids=[0, 1, 2],
                nodes_featureids=[1, 0, 0],
                nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
                nodes_truenodeids=[1, 0, 0],
                nodes_falsenodeids=[2, 0, 0],
                target_treeids=[0, 0],
                target_nodeids=[1, 2],
                target_ids=[0, 0],
                **double,
            ),
            node("MatMul", "t w", "y"),
        ],
        [info("x", "batch", 4, dtype=TensorProto.DOUBLE)],
        [info("y", "batch", 5)],
        [tensor("w", r(1, 5))],
        domains=[("ai.onnx.ml", 3)],
    )


@form
def documented(seed: int = 0) -> onnx.ModelProto:
    """Metadata, descriptions, versions, shapes of inner values and an unused opset import."""
    result = matmul(seed)
    result.doc_string = "a model\nwith a description"
    result.producer_version = "1.2.3"
    result.domain = "org.example"
    result.model_version = 42
    helper.set_model_props(result, {"zebra": "stripes", "author": "nobody", "": "ä€"})
    result.opset_import.append(helper.make_opsetid("org.example.custom", 3))
    result.graph.doc_string = "a graph"
    result.graph.name = "named"
    result.graph.value_info.append(info("m", "batch", 4, 5))
    result.graph.node[0].name = "projection"
    result.graph.node[0].doc_string = "a node"
    result.graph.initializer[0].doc_string = "a weight"
    result.graph.input[0].doc_string = "an input"
    result.graph.metadata_props.add(key="k", value="v")
    result.graph.node[0].metadata_props.add(key="n", value="m")
    result.graph.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(key="SCALE", value="b")
    return result


@form
def resize(seed: int = 0) -> onnx.ModelProto:
    """A float constant that decides a shape: Resize's scales, the same for every seed."""
    r = Random(seed)
    return model(
        [node("Resize", "x _ scales", "u", mode="nearest"), node("Conv", "u w", "y", kernel_shape=[1, 1])],
        [info("x", "batch", 3, 4, 4)],
        [info("y", "batch", 2, 8, 8)],
        [tensor("scales", np.array([1, 1, 2, 2], np.float32)), tensor("w", r(2, 3, 1, 1))],
    )


@form
def batch_norm(seed: int = 0) -> onnx.ModelProto:
    r = Random(seed)
    return model(
        nodes(
            "Conv x conv.weight > c kernel_shape=[1,1]; "
            "BatchNormalization c norm.scale norm.shift norm.mean norm.variance > y"
        ),
        [info("x", "batch", 3, 4, 4)],
        [info("y", "batch", 4, 4, 4)],
        [
            tensor("conv.weight", r(4, 3, 1, 1)),
            tensor("norm.scale", r(4)),
            tensor("norm.shift", r(4)),
            tensor("norm.mean", r(4)),
            tensor("norm.variance", np.abs(r(4)) + np.float32(0.5)),
        ],
    )


@form
def arguments(seed: int = 0) -> onnx.ModelProto:
    """Floats that tell operators what to do, directly and behind a Cast; the same for every seed."""
    r = Random(seed)
    return model(
        [
            node("MatMul", "x w", "m"),
            node("Abs", "m", "a"),
            constant("low", np.array(0.125, np.float32)),
            node("Clip", "a low", "c"),
            node("Pow", "c exponents", "p"),
            node("Cast", "size", "s", to=INT64),
            node("Reshape", "p s", "t"),
            node("Cast", "factors", "f", to=FLOAT),
            node("Resize", "t _ f", "y", mode="nearest"),
        ],
        [info("x", "batch", 6)],
        [matrix("y")],
        [
            tensor("w", r(6, 5)),
            tensor("exponents", np.array([1, 2, 0.5, 1, 3], np.float32)),
            tensor("size", np.array([5, -1], np.float32)),
            tensor("factors", np.array([2, 1], np.float64)),
        ],
    )


# ---- ends that saturate ---------------------------------------------------------------------------------------------

ONE = np.array(1, np.float32)
CONSTANTS = {
    "axis": np.array([1]), "one": ONE, "outer": ONE, "two": np.array([2]), "five": np.array([2, 3]),
    "shape": np.array([-1, 1, 5]), "back": np.array([-1, 5]), "ones": np.array([1], np.float32),
}  # fmt: skip
BRANCHES: dict[str, str] = {  # graphs by their names, each of one output, the last of its nodes
    "negative": "Neg z > o",
    "same": "Identity z > o",
    "softmax": "Softmax z > o",
    "log_softmax": "LogSoftmax z > o",
    "sigmoid": "Sigmoid z > o",
    "softmax_of_negative": "Neg z > n; Softmax n > o",
    "logistic": "Constant > own value_tensor=one; Neg z > n; Exp n > e; Add e outer > d; Div own d > o",
    "softmax_h": "Softmax h > o",
    "sigmoid_h": "Sigmoid h > o",
    "nested": "Neg z > h; If flag > p then_branch=softmax_h else_branch=sigmoid_h",
}
SHIFTED = "ReduceMax z > top axes=[1]; Sub z top > d; Exp d > e; ReduceSum e axis > s"
# z is x times a weight. What comes behind it, the outputs, and the tensors that are measured.
ENDS: dict[str, tuple[str, str, str]] = {
    "plain": ("Relu z > y", "y", "y"),
    "softmax": ("Softmax z > y", "y", "y z"),
    "log_softmax": ("LogSoftmax z > y", "y", "y z"),
    "sigmoid": ("Sigmoid z > y", "y", "y z"),
    "argmax": ("ArgMax z > y axis=1", "y:int", "z"),
    "topk": ("TopK z two > y i", "y i:int", "y z"),
    "topk_of_softmax": ("Softmax z > p; TopK p two > y i", "y i:int", "y z"),
    "argmax_of_softmax_in_pieces": (
        "Exp z > e; ReduceSum e axis > s; Div e s > p; ArgMax p > y axis=1", "y:int", "z",
    ),
    "softmax_in_pieces": ("Exp z > e; ReduceSum e axis > s; Div e s > y", "y", "y z"),
    "softmax_in_pieces_shifted": (f"{SHIFTED}; Div e s > y", "y", "y z"),
    "logistic_by_div": ("Neg z > n; Exp n > e; Add e one > d; Div one d > y", "y", "y z"),
    "logistic_by_reciprocal": ("Neg z > n; Exp n > e; Add one e > d; Reciprocal d > y", "y", "y z"),
    "log_of_softmax": ("Softmax z > p; Log p > y", "y", "y z"),
    "log_of_softmax_in_pieces": ("Exp z > e; ReduceSum e axis > s; Div e s > p; Log p > y", "y", "y z"),
    "log_softmax_in_pieces": ("Exp z > e; ReduceSum e axis > s; Log s > l; Sub z l > y", "y", "y z"),
    "log_softmax_in_pieces_shifted": (f"{SHIFTED}; Log s > l; Sub d l > y", "y", "y z"),
    "log_softmax_by_logsumexp": ("ReduceLogSumExp z > l axes=[1]; Sub z l > y", "y", "y z"),
    "softmax_through_shapes": (
        "Reshape z shape > r; Transpose r > t perm=[0,2,1]; Softmax t > p; Transpose p > q perm=[0,2,1]; "
        "Reshape q back > v; Identity v > y", "y", "y t",
    ),
    # Two saturated outputs of one tensor: it is measured once.
    "sigmoid_of_argmax_and_softmax": (
        "Softmax z > y; Sigmoid z > s; ArgMax z > i axis=1", "y s i:int", "y s z",
    ),
    # Boxes and scores of a detector, which large numbers of boxes hide.
    "sigmoid_joined": ("Abs z > b; Sigmoid z > s; Concat b s > y axis=1", "y", "y z"),
    "sigmoid_of_a_part": (
        "Neg z > n; Softmax n > p; Split p five > f g axis=1; Sigmoid z > s; Concat s f g > y axis=1", "y", "y z n",
    ),
    "sigmoid_joined_with_its_softmax": ("Sigmoid z > s; Softmax s > p; Concat s p > y axis=1", "y", "y z"),
    "softmax_joined_with_its_sigmoid": ("Sigmoid z > s; Softmax s > p; Concat p s > y axis=1", "y", "y z"),
    "many_numbers_joined": (
        "Split z > a b c d e axis=1; Split z > f g h i j axis=1; "
        + "; ".join(f"Sigmoid {part} > {part}s" for part in "abcdefghi")
        + "; Concat as bs cs ds es fs gs hs is > y axis=1", "y", "y",
    ),
    "softmax_of_joined": ("Sigmoid z > s; Concat z s > c axis=1; Softmax c > y", "y", "y c"),
    "joined_without_saturation": ("Abs z > b; Concat b z > y axis=1", "y", "y"),
    "logits_are_an_output_too": ("Softmax z > y", "y z", "y z"),
    # A gate z · sigmoid(z) saturates nothing at the end.
    "sigmoid_in_the_middle": ("Sigmoid z > g; Mul z g > y", "y", "y"),
    # exp(z) divided by the sum of something else.
    "division_that_is_no_softmax": (
        "Exp z > e; Abs z > a; Add a one > b; ReduceSum b axis > s; Div e s > y", "y", "y",
    ),
    # z / (1 + exp(−z)) is about z where it is large: nothing saturates.
    "silu_by_div": ("Neg z > n; Exp n > e; Add e one > d; Div z d > y", "y", "y"),
    # 1 / (z² + exp(−z)): what is added to the exponential is not a number.
    "division_that_is_no_logistic": (
        "Neg z > n; Exp n > e; Mul z z > zz; Add zz e > d; Div one d > y", "y", "y",
    ),
    "logistic_by_plain_constants": (
        "Constant > first value_float=1.0; Constant > second value_tensor=ones; Neg z > n; Exp n > e; "
        "Add second e > d; Div first d > y", "y", "y z",
    ),
    "if_softmax_in_both_branches": (
        "If flag > y then_branch=softmax else_branch=softmax_of_negative", "y", "y y/pre_activation",
    ),
    # The numbers are a Constant of the branch, and one of the graph around it.
    "if_logistic_by_div": ("If flag > y then_branch=logistic else_branch=negative", "y", "y y/pre_activation"),
    # The other branch's output stands for itself; the If's output goes through an Identity.
    "if_sigmoid_in_one_branch": (
        "If flag > y then_branch=sigmoid else_branch=negative; Identity y > out", "out", "out y/pre_activation",
    ),
    "if_nested_softmax": ("If which > y then_branch=nested else_branch=log_softmax", "y", "y y/pre_activation"),
    # The Softmax is in the main graph: what enters it is the If's own output.
    "softmax_of_if": ("If flag > u then_branch=negative else_branch=same; Softmax u > y", "y", "y u"),
    "if_without_saturation": ("If flag > y then_branch=negative else_branch=same", "y", "y"),
}  # fmt: skip


def _words(text: str) -> set[str]:
    """What a text and the branches that it names are made of."""
    words = text.replace(";", " ").split()
    return set(words).union(*(_words(BRANCHES[word.partition("=")[2]]) for word in words if "_branch=" in word))


def _end(name: str, seed: int = 0) -> onnx.ModelProto:
    """`x` [batch, 6] → `z` [batch, 5], and what comes behind it."""
    text, outputs, _ = ENDS[name]
    used = _words(text)
    return model(
        [node("MatMul", "x w", "z"), *nodes(text)],
        [info("x", "batch", 6), *(info(flag, dtype=BOOL) for flag in ("flag", "which") if flag in used)],
        [matrix(output.removesuffix(":int"), INT64 if ":" in output else FLOAT) for output in outputs.split()],
        [tensor("w", Random(seed)(6, 5)), *(tensor(name, CONSTANTS[name]) for name in CONSTANTS if name in used)],
    )


SATURATED: dict[str, tuple[Builder, list[str]]] = {  # builder, tensors that are measured
    name: (partial(_end, name), measured.split()) for name, (_, _, measured) in ENDS.items()
}


def perceptron(seed: int) -> onnx.ModelProto:
    """Two dense layers of 64·64 weights, with ReLU between."""
    r = Random(seed)
    return model(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v", "y")],
        [info("x", "batch", 64)],
        [info("y", "batch", 64)],
        [tensor("w", r(64, 64)), tensor("v", r(64, 64))],
    )
