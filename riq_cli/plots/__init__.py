"""Pictures of what sweeps and archives hold. The one door of matplotlib, which is asked for when a picture is."""

from riq_cli.plots.curves import Kind, picture
from riq_cli.plots.drawing import require
from riq_cli.plots.rates import layer_rates

__all__ = ["Kind", "layer_rates", "picture", "require"]
