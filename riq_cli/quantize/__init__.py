"""Weights → symbols: to the nearest, with error feedback (GPTQ), along a trellis (TCQ); and the plan of a layer."""
