"""Which weights matter to a model's outputs: gradients, taken back through its operations one after the other."""

from riq_cli.gradients.backward import Backward
from riq_cli.gradients.effects import Effects, effects
from riq_cli.gradients.recurrent import gate_gradients
from riq_cli.gradients.rule import Array, Floats, Gradients

__all__ = ["Array", "Backward", "Effects", "Floats", "Gradients", "effects", "gate_gradients"]
