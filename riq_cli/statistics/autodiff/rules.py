"""All rules by the kind of operation, and the kinds that nothing comes back through."""

from __future__ import annotations

from riq_cli.statistics.autodiff import convolution, elementwise, pooling, products, recurrent, reductions, shapes
from riq_cli.statistics.autodiff.rule import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **products.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **recurrent.RULES,
}

# A small change of what these read changes nothing that they write.
STOPS = frozenset(
    {
        "And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater",
        "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "Not",
        "OneHot", "Or", "Range", "Round", "Shape", "Sign", "Size", "Xor",
    }
)  # fmt: skip
