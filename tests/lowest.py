"""Constraints for pip, on stdout: the lowest release of each dependency that pyproject.toml allows."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def constraints() -> list[str]:
    """One line for each dependency, those of the tests included."""
    lowest = re.findall(r'"([\w-]+)>=([\d.]+)[^"]*"', PROJECT.read_text())
    return sorted({f"{name}=={release}" for name, release in lowest if name != "setuptools"})


if __name__ == "__main__":
    print("\n".join(constraints()))
