"""Models: the only part of riq that knows onnx."""

from riq_cli.model.activations import Activation, multiplied_activations, with_quantized_activations
from riq_cli.model.branches import conditions, inlined_form
from riq_cli.model.choices import class_axes
from riq_cli.model.data_files import files_beside
from riq_cli.model.formats import INTEGER_BITS, Stored, in_half_precision, is_contributed, trial, with_stored
from riq_cli.model.inputs import ModelInput
from riq_cli.model.layer import Layer
from riq_cli.model.linear import Linear, linear_layers
from riq_cli.model.linear_inputs import LinearInput
from riq_cli.model.linear_outputs import GateOutput, LinearOutput, LookupOutput, ProductOutput, WindowOutput
from riq_cli.model.matrix import Matrix
from riq_cli.model.model import Model, Source
from riq_cli.model.operations import Operation, operations
from riq_cli.model.probe_form import lean_form, offset_form, probe_form
from riq_cli.model.session_form import SessionForm, measurable, observed_form, own_form
from riq_cli.model.tensors import read_tensor_file

__all__ = [
    "INTEGER_BITS",
    "Activation",
    "GateOutput",
    "Layer",
    "Linear",
    "LinearInput",
    "LinearOutput",
    "LookupOutput",
    "Matrix",
    "Model",
    "ModelInput",
    "Operation",
    "ProductOutput",
    "SessionForm",
    "Source",
    "Stored",
    "WindowOutput",
    "class_axes",
    "conditions",
    "files_beside",
    "in_half_precision",
    "inlined_form",
    "is_contributed",
    "lean_form",
    "linear_layers",
    "measurable",
    "multiplied_activations",
    "observed_form",
    "offset_form",
    "operations",
    "own_form",
    "probe_form",
    "read_tensor_file",
    "trial",
    "with_quantized_activations",
    "with_stored",
]
