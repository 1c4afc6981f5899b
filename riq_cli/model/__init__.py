"""Models: the only part of riq that knows onnx."""

from riq_cli.model.layer import Layer
from riq_cli.model.model import Model, ModelInput, Source
from riq_cli.model.session_form import SessionForm
from riq_cli.model.tensors import read_tensor_file

__all__ = ["Layer", "Model", "ModelInput", "SessionForm", "Source", "read_tensor_file"]
