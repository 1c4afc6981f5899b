"""Which weights matter to a model's outputs: gradients, taken back through its operations one after the other."""

from riq_cli.statistics.autodiff.backward import Backward
from riq_cli.statistics.autodiff.recurrent import gate_gradients
from riq_cli.statistics.autodiff.rule import Array, Floats, Gradients

__all__ = ["Array", "Backward", "Floats", "Gradients", "gate_gradients"]
