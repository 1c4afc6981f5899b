"""The composite action: its file says what it takes and gives, and its scripts run in bash as GitHub would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ACTION = ROOT / ".github" / "actions" / "riq" / "action.yml"
SAMPLES = ROOT / "sample_models"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def parse(text: str) -> Any:
    """The little YAML that an action is made of: mappings, lists of mappings, plain scalars and literal blocks."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    position = 0

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    def mapping(depth: int) -> dict[str, Any]:
        nonlocal position
        found: dict[str, Any] = {}
        while (
            position < len(lines) and indent(lines[position]) == depth and not lines[position][depth:].startswith("- ")
        ):
            match = re.fullmatch(r"([\w-]+):(?: (.*))?", lines[position][depth:])
            assert match, f"not the YAML expected here: {lines[position]!r}"
            key, value = match[1], match[2]
            assert key not in found
            position += 1
            if value == "|":
                block = []
                while position < len(lines) and (not lines[position].strip() or indent(lines[position]) > depth):
                    block.append(lines[position])
                    position += 1
                found[key] = textwrap.dedent("\n".join(block)) + "\n"
            elif value is not None:
                assert ": " not in value and " #" not in value, f"a plain scalar cannot hold this: {value!r}"
                found[key] = value.strip('"')
            elif lines[position].lstrip().startswith("- "):
                found[key] = items(indent(lines[position]))
            else:
                found[key] = mapping(indent(lines[position]))
        return found

    def items(depth: int) -> list[Any]:
        found = []
        while position < len(lines) and lines[position][depth:].startswith("- "):
            lines[position] = " " * (depth + 2) + lines[position][depth + 2 :]
            found.append(mapping(depth + 2))
        return found

    result = mapping(0)
    assert position == len(lines), lines[position]
    return result


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    found: dict[str, Any] = parse(ACTION.read_text())
    return found


class Job:
    """A job that uses the action: a folder with a model, and files where GitHub's would be."""

    def __init__(self, action: dict[str, Any], folder: Path) -> None:
        self._action, self.folder = action, folder
        self._output, self._summary = folder / "output", folder / "summary.md"
        for file in (self._output, self._summary):
            file.touch()
        (folder / "temp").mkdir()
        program = folder / "bin" / "riq"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m riq_cli "$@"\n')
        program.chmod(0o755)
        shutil.copy(SAMPLES / "cnn.onnx", folder / "cnn.onnx")
        shutil.copy(SAMPLES / "calibration.npz", folder / "calibration.npz")

    def run(self, *steps: int, **given: str) -> tuple[int, str]:
        """Run steps until one fails, all but the first, which installs; its exit code and what went to stderr."""
        inputs = {name: about.get("default", "") for name, about in self._action["inputs"].items()}
        inputs |= {name.replace("_", "-"): value for name, value in given.items()}
        for step in (self._action["runs"]["steps"][number] for number in steps or (1, 2)):
            outputs = self.outputs

            def value(match: re.Match[str], outputs: dict[str, str] = outputs) -> str:
                where, name = match[1].rpartition(".")[::2]
                if where == "github":
                    return str(ACTION.parent)
                return inputs[name] if where == "inputs" else outputs[name]

            environment = os.environ | {
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "RUNNER_TEMP": str(self.folder / "temp"),
                "GITHUB_OUTPUT": str(self._output),
                "GITHUB_STEP_SUMMARY": str(self._summary),
                "GITHUB_PATH": str(self.folder / "path"),
                "PIP_NO_INDEX": "1",  # no test goes to the network
            }
            for name, text in step["env"].items():
                environment[name] = re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, text)
            script = self.folder / "temp" / "step.sh"
            script.write_text(step["run"])
            done = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", script], cwd=self.folder,
                                  capture_output=True, text=True, env=environment, timeout=600)  # fmt: skip
            if done.returncode:
                return done.returncode, done.stderr
        return 0, done.stderr

    @property
    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._output.read_text().splitlines())

    @property
    def summary(self) -> str:
        return self._summary.read_text()


@pytest.fixture
def job(action: dict[str, Any], tmp_path: Path) -> Job:
    return Job(action, tmp_path)


def test_the_action_says_what_it_takes_and_gives(action: dict[str, Any]) -> None:
    assert action["runs"]["using"] == "composite"
    assert action["inputs"]["model"]["required"] == "true"
    assert set(action["inputs"]) >= {"model", "calibration", "deviation", "size", "preset", "source"}
    assert list(action["outputs"]) == ["archive", "ratio", "deviation", "size"]
    assert all(
        about["description"].endswith(".") for about in (*action["inputs"].values(), *action["outputs"].values())
    )
    # The keys of GitHub's metadata syntax: one that is misspelt is an action that does not start.
    assert set(action) == {"name", "description", "inputs", "outputs", "runs"}
    assert all(set(about) <= {"description", "required", "default"} for about in action["inputs"].values())
    assert all(set(about) == {"description", "value"} for about in action["outputs"].values())
    assert set(action["runs"]) == {"using", "steps"}
    steps = action["runs"]["steps"]
    assert all(set(step) <= {"name", "id", "shell", "env", "run"} for step in steps)
    assert [step["name"] for step in steps] == ["Install riq", "Compress", "Report"]
    assert all(step["shell"] == "bash" for step in steps)
    used = {name for step in steps for text in step["env"].values() for name in re.findall(r"inputs\.([\w-]+)", text)}
    assert used == set(action["inputs"])
    assert all("${{" not in step["run"] for step in steps)  # inputs in a script could be commands


def test_the_file_means_the_same_to_a_real_parser(action: dict[str, Any]) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    document = yaml.safe_load(ACTION.read_text())
    document["inputs"]["model"]["required"] = "true"
    assert document == action


def wheel(folder: Path) -> Path:
    """A wheel by hand that needs no other: its program says where it runs."""
    path = folder / "riq-9-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: riq\nVersion: 9\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[console_scripts]\nriq = riq_by_hand:main\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("riq_by_hand.py", "import sys\ndef main():\n    print(sys.prefix)\n")
        for name, text in about.items():
            file.writestr(f"riq-9.dist-info/{name}", text)
    return path


def test_the_first_step_installs_into_an_environment_of_its_own_and_puts_riq_on_the_path(job: Job) -> None:
    code, said = job.run(0, source=str(wheel(job.folder)))
    assert code == 0, said
    (folder,) = (job.folder / "path").read_text().splitlines()
    assert [program.name for program in Path(folder).iterdir()] == ["riq"]  # no python or pip of its own comes first
    ran = subprocess.run([f"{folder}/riq"], capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()) == job.folder / "temp" / "riq"


def test_by_default_the_riq_beside_the_action_is_installed(action: dict[str, Any]) -> None:
    step = action["runs"]["steps"][0]
    assert step["env"]["HERE"] == "${{ github.action_path }}/../../.."
    assert ACTION.parent.joinpath("../../..").resolve() == ROOT and (ROOT / "pyproject.toml").exists()
    code = step["run"].split("install --quiet ")[1].splitlines()[0]
    assert code == '"${SOURCE:-$HERE}"'


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_shellcheck_has_no_word_on_the_scripts(action: dict[str, Any]) -> None:
    for step in action["runs"]["steps"]:
        done = subprocess.run(["shellcheck", "--shell=bash", "-"], input="set -eo pipefail\n" + step["run"],
                              capture_output=True, text=True)  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "")


GIVEN = {"model": "cnn.onnx", "calibration": "calibration.npz", "preset": "fast"}


def test_a_model_is_compressed_and_reported(job: Job) -> None:
    assert job.run(**GIVEN, deviation="0.02") == (0, "")
    size = (job.folder / "cnn.riqz").stat().st_size
    outputs = job.outputs
    assert outputs["archive"] == "cnn.riqz"
    assert outputs["size"] == str(size)
    assert float(outputs["ratio"]) == (job.folder / "cnn.onnx").stat().st_size / size
    assert 0.01 < float(outputs["deviation"]) <= 0.02
    assert job.summary.startswith("### `cnn.riqz`\n\n| size | source | ratio |")
    assert "| `dense.weight` | `Gemm` | 64×576 | student |" in job.summary
    assert "\n".join(job.summary.splitlines()[2:4]) in (ROOT / "riq_cli" / "docs" / "ci.md").read_text()


@pytest.mark.parametrize(
    ("given", "code", "message", "summary"),
    [
        ({"max_size": "10kB", "min_ratio": "2"}, 3,
         r"riq: error: cnn\.riqz: [\d,]+ bytes \([\d.]+ kB\) are above --max-size 10,000\n", "### `cnn.riqz`"),
        ({"size": "10kB", "deviation": "0.001"}, 3, r".* above the bound of 0\.001; give one of them more room\n", ""),
        ({"archive": "a\nsize=1.riqz"}, 1,
         r"riq: error: 'a\\nsize=1\.riqz': a name with a line break cannot be an output of a step\n", ""),
    ],
    ids=["bound", "target", "name"],
)  # fmt: skip
def test_what_fails_fails_the_job(given: dict[str, str], code: int, message: str, summary: str, job: Job) -> None:
    ended, said = job.run(**GIVEN, **given)
    assert ended == code
    assert re.fullmatch(message, said)
    assert job.summary.startswith(summary) and bool(job.summary) is bool(summary)


def test_a_baseline_is_compared_even_where_it_is_replaced(job: Job) -> None:
    given = GIVEN | {"baseline": "out/m.riqz"}
    (job.folder / "out").mkdir()
    assert job.run(**given, archive="out/m.riqz", deviation="0.02") == (0, "")
    assert job.summary.startswith("### `m.riqz`")  # nothing to compare with yet
    assert job.run(**given, archive="out/m.riqz", arguments="--deviation 0.005 --threads 1") == (0, "")
    assert "### `baseline.riqz` → `m.riqz`: " in job.summary
    assert "- setting `deviation`: `0.02` → `0.005`" in job.summary


def test_names_are_not_commands(job: Job) -> None:
    hostile = "a $(touch pwned) `touch pwned`.onnx"
    shutil.copy(job.folder / "cnn.onnx", job.folder / hostile)
    assert job.run(**GIVEN | {"model": hostile}) == (0, "")
    assert job.outputs["archive"] == hostile.replace(".onnx", ".riqz")
    assert not (job.folder / "pwned").exists()
