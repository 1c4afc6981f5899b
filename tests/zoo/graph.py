"""A small pen for writing ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Pen:
    """Collects nodes and initializers; each node has one output, named after its operator and number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, array: np.ndarray) -> str:
        """An initializer; gives its name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def ints(self, *values: int) -> str:
        """An i64 vector; equal ones are kept once."""
        return self.weight("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """An f32 scalar; equal ones are kept once."""
        return self.weight(f"scalar_{value:g}", np.array(value, np.float32))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; gives the name of its output."""
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def model(
        self, inputs: Mapping[str, tuple[int, list[Any]]], output: str, renamed: str, shape: list[Any]
    ) -> onnx.ModelProto:
        """The checked model; inputs: name -> (type, shape); `output` is given out as f32 under a new name."""
        self.nodes.append(helper.make_node("Identity", [output], [renamed]))
        graph = helper.make_graph(
            self.nodes,
            renamed,
            [helper.make_tensor_value_info(name, *typed) for name, typed in inputs.items()],
            [helper.make_tensor_value_info(renamed, FLOAT, shape)],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="zoo")
        onnx.checker.check_model(model, full_check=True)
        return model
