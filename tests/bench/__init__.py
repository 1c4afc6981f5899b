"""Measures and prints, asserts nothing: `python -m tests.bench` with `speed`, `models` or `presets`."""
