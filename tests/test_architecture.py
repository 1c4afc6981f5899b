"""The house: floors, and the doors of outside packages (the table of the design)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "riq_cli"
FLOORS = {
    "errors": 0, "limits": 0, "files": 0, "version": 0, "text": 0, "memory": 0, "kinds": 0, "executors": 0,
    "cluster": 1, "remote": 1, "scratch": 1,
    "points": 1, "callables": 1, "archive": 1, "entropy": 1,
    "model": 2, "decode": 2,
    "calibration": 3, "runtime": 3,
    "constraint": 4, "statistics": 4, "session": 4,
    "quantize": 5, "allocate": 6,
    "pipeline": 7, "report": 7, "plots": 7,
    "cli": 8, "__main__": 9, "__init__": 9,
}  # fmt: skip
DOORS = {
    "onnx": {"model"}, "google": {"model"}, "onnxruntime": {"runtime"}, "constriction": {"entropy"},
    "click": {"cli"}, "PIL": {"calibration"},
    "matplotlib": {"plots"}, "dask": {"cluster"}, "distributed": {"cluster"}, "fsspec": {"remote"},
}  # fmt: skip
WITHOUT_NUMPY = {
    "archive",
    "report",
    "errors",
    "cli",
    "limits",
    "files",
    "kinds",
    "version",
    "text",
    "points",
    "callables",
    "executors",
    "cluster",
    "remote",
}
SAME_FLOOR = {("files", "errors"), ("executors", "errors")}  # they stand on nothing else


def modules() -> list[tuple[str, Path]]:
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py")]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "riq_cli" else {node.module}
            )
            found |= {name for name in names if name}
    return found


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_a_file_imports_lower_floors_only_and_outside_packages_by_their_door(name: str, path: Path) -> None:
    for imported in imports(path):
        package, *rest = imported.split(".")
        if package == "riq_cli":
            other = rest[0]
            allowed = other == name or FLOORS[other] < FLOORS[name] or (name, other) in SAME_FLOOR
            assert allowed, f"{path.name} (floor {FLOORS[name]}) imports {other} (floor {FLOORS[other]})"
        elif package in DOORS:
            assert name in DOORS[package], f"{package} enters through {DOORS[package]}, not through {name}"
        elif package == "numpy":
            assert name not in WITHOUT_NUMPY, f"{name} does without numpy"


def test_a_wheel_holds_every_package() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[(.*)\]$", project, re.MULTILINE)
    assert listed is not None
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")} | {PACKAGE / "docs", PACKAGE / "web"}
    assert set(re.findall(r'"([^"]*)"', listed[1])) == {
        ".".join(folder.relative_to(PACKAGE.parent).parts) for folder in folders
    }


def test_decoding_needs_neither_onnx_nor_onnxruntime() -> None:
    golden = PACKAGE.parent / "tests" / "goldens" / "v1-student.riqz"
    code = (
        "import sys\n"
        "from riq_cli.archive import Archive\n"
        "from riq_cli.decode import decode_layers\n"
        "assert list(decode_layers(Archive.open(sys.argv[1])))\n"
        "print(sorted({'onnx', 'google.protobuf', 'onnxruntime'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code, golden], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["report", "--help"], ["sweep", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['riq', *sys.argv[1:]]\n"
        "from riq_cli.cli import main\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'constriction', 'matplotlib', 'dask'}\n"
        "try: main()\n"
        "finally: print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
