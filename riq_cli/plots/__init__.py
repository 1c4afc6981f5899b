"""Pictures of what sweeps and archives hold. The one door of matplotlib, which is asked for when a picture is."""

from riq_cli.plots.canvas import require
from riq_cli.plots.curves import coder, curve, over_k, prediction
from riq_cli.plots.rates import layer_rates

__all__ = ["coder", "curve", "layer_rates", "over_k", "prediction", "require"]
