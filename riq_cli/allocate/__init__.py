"""Bin widths of layers: by norm (the paper's), uniform, or measured (reverse water-filling)."""
