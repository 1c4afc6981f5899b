"""Measures and prints, asserts nothing: `python -m tests.bench` with `speed`, `models`, `presets` or `loss`."""
