"""What a gradient rule is: how a change of an operation's outputs goes back to its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riq_cli.model import Operation

Array = NDArray[Any]
Floats = NDArray[np.float32]
Gradients = list[Floats | None]

Rule = Callable[[Operation, Sequence[Array | None], Sequence[Floats | None], Sequence[bool]], Gradients]
"""(operation, inputs, gradients of outputs, which inputs' gradients are wanted) → gradients of inputs.

`inputs` are the values of one run, None for those left out. Gradients have one axis more than the tensors they belong
to, in front: several are taken back at a time, [probes, *shape]; None stands for zeros. What is not wanted may be None,
and so may what is zero everywhere.
"""


class NoRuleError(Exception):
    """The operation is of a kind that has a rule, but used in a way that the rule does not know."""
