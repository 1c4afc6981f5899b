"""`riq web`: the folder that it writes. What the page does in a browser, tests/test_browser.py tests."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from riq_cli.runtime import sample_deviations
from tests import builders
from tests.command import fails, riq
from tests.node import MODULE, needs_node, run
from tests.test_evaluator import DISTANCES

SHIPPED = {"index.html", "page.js", "worker.js", "samples.js", "riqz.js"}
RUNTIME = {"ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"}
X = np.random.default_rng(0).standard_normal((12, 16)).astype(np.float32)
FULL = "web model.riqz -o site --runtime ort --calibration samples.npz --against model.onnx"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, its archive, a damaged one, samples, and what looks like onnxruntime-web."""
    folder = tmp_path_factory.mktemp("ready")
    builders.save(builders.dense(), folder)
    builders.save(builders.dense(seed=1), folder, "other.onnx")
    np.savez(folder / "samples.npz", x=X)
    assert (
        riq("compress", "model.onnx", "--preset", "fast", "--calibration", "samples.npz", folder=folder).returncode == 0
    )
    archive = bytearray((folder / "model.riqz").read_bytes())
    archive[-3] ^= 1
    (folder / "damaged.riqz").write_bytes(archive)
    (folder / "ort" / "dist").mkdir(parents=True)
    for name in (*RUNTIME, "ort.all.min.js"):
        (folder / "ort" / "dist" / name).write_text(name)
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """A copy of `ready` to write into."""
    return Path(shutil.copytree(ready, tmp_path / "work"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "page.json").read_text("utf-8"))
    return found


def test_a_page_holds_the_archive_and_what_decodes_it(folder: Path) -> None:
    done = riq("web", "model.riqz", "-o", "site", folder=folder)
    assert (done.returncode, done.stdout) == (0, b"")
    assert re.fullmatch(r"site: 7 files, [\d.]+ kB\n", done.stderr.decode())
    assert names(folder / "site") == SHIPPED | {"page.json", "model.riqz"}
    archive = (folder / "model.riqz").read_bytes()
    assert (folder / "site" / "model.riqz").read_bytes() == archive
    manifest = json.loads(riq("report", "model.riqz", "--json", folder=folder).stdout)
    assert content(folder / "site") == {
        "title": "model",
        "archive": "model.riqz",
        "bytes": len(archive),
        "source": (folder / "model.onnx").stat().st_size,
        "weights": sum(int(np.prod(layer["shape"])) for layer in manifest["layers"]),
        "deviations": {tensor["name"]: tensor["mean"] for tensor in manifest["result"]["measured"]},
        "runtime": None,
        "samples": None,
        "rows": [],
        "images": {
            "mean": [0.0], "std": [1.0], "scale": 1 / 255, "image_layout": "nchw", "channel_order": "rgb"
        },
    }  # fmt: skip


def test_samples_and_the_outputs_of_the_original_lie_beside_it(folder: Path) -> None:
    done = riq(*shlex.split(FULL), "--mean", "0.5,0.4,0.3", "--channel-order", "bgr", folder=folder)
    assert done.returncode == 0, done.stderr
    assert names(folder / "site") == SHIPPED | RUNTIME | {"page.json", "model.riqz", "samples.npz"}
    written = content(folder / "site")
    assert (written["runtime"], written["samples"]) == ("./", "samples.npz")
    assert (written["images"]["mean"], written["images"]["channel_order"]) == ([0.5, 0.4, 0.3], "bgr")
    with np.load(folder / "site" / "samples.npz") as loaded:
        arrays = dict(loaded)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    [output] = session.get_outputs()
    assert set(arrays) == {f"{number}/{name}" for number in range(8) for name in ("inputs/x", f"outputs/{output.name}")}
    for number in range(8):
        row = X[number : number + 1]
        np.testing.assert_array_equal(arrays[f"{number}/inputs/x"], row)
        [expected] = session.run(None, {"x": row})
        np.testing.assert_allclose(arrays[f"{number}/outputs/{output.name}"], expected, rtol=1e-6)


def test_outputs_of_half_precision_are_stored_in_float32(folder: Path) -> None:
    model = builders.dense()
    [output] = [info.name for info in model.graph.output]
    model.graph.node.append(builders.node("Cast", output, "half", to=onnx.TensorProto.FLOAT16))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT16, None))
    builders.save(model, folder, "half.onnx")
    done = riq(*shlex.split(FULL.replace("model.onnx", "half.onnx")), folder=folder)
    assert done.returncode == 0, done.stderr
    assert b"half.onnx: is not the file that model.riqz was made from" in done.stderr
    with np.load(folder / "site" / "samples.npz") as loaded:
        assert loaded["0/outputs/half"].dtype == np.float32


def test_a_runtime_at_a_url_is_only_referred_to(folder: Path) -> None:
    done = riq("web", "model.riqz", "-o", "site", "--runtime", "https://example.com/dist", "-q", folder=folder)
    assert (done.returncode, done.stderr) == (0, b"")
    assert content(folder / "site")["runtime"] == "https://example.com/dist/"
    assert names(folder / "site") == SHIPPED | {"page.json", "model.riqz"}


def test_the_page_loads_nothing_but_its_own_files(folder: Path) -> None:
    assert riq(*shlex.split(FULL), folder=folder).returncode == 0
    text = {name: (folder / "site" / name).read_text("utf-8") for name in SHIPPED}
    assert not [name for name, code in text.items() if re.search("https?://", code)]
    named = {match for code in text.values() for match in re.findall(r'"(?:\./)?([\w.-]+\.(?:m?js|json|npz))"', code)}
    assert named <= names(folder / "site")


def test_quiet_says_nothing_of_another_model(folder: Path) -> None:
    done = riq(*shlex.split(FULL.replace("model.onnx", "other.onnx")), "-q", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_model_without_inputs_needs_no_samples_beside_it(folder: Path) -> None:
    random = np.random.default_rng(0)
    weights = [builders.tensor(name, random.standard_normal((32, 32)).astype(np.float32)) for name in ("a", "b")]
    model = builders.model(builders.nodes("MatMul a b > y"), [], [builders.info("y", 32, 32)], weights)
    builders.save(model, folder, "constant.onnx")
    (folder / "data.py").write_text("def samples():\n    yield {}\n")
    calibration = ("--calibration", "data:samples")
    done = riq("compress", "constant.onnx", "--preset", "fast", *calibration, folder=folder)
    assert done.returncode == 0, done.stderr
    done = riq("web", "constant.riqz", "-o", "site", "--runtime", "ort", *calibration, folder=folder)
    assert done.returncode == 0, done.stderr
    assert names(folder / "site") == SHIPPED | RUNTIME | {"page.json", "model.riqz"}
    assert done.stderr.startswith(b"site: 10 files, ")


def test_a_page_from_stdin_and_into_a_folder_with_other_files(folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "mine.txt").write_text("mine")
    data = (folder / "model.riqz").read_bytes()
    assert riq("web", "-", "-o", "site", folder=folder, data=data).returncode == 0
    assert names(folder / "site") == SHIPPED | {"page.json", "model.riqz", "mine.txt"}
    fails(1, "site/index.html: exists already; use --force", "web", "model.riqz", "-o", "site", folder=folder)
    (folder / "site" / "page.js").write_text("old")
    assert riq("web", "model.riqz", "-o", "site", "--force", folder=folder).returncode == 0
    assert (folder / "site" / "page.js").read_text() != "old"
    assert (folder / "site" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "message", "command"),
    [
        (2, "Missing option '-o'", "web model.riqz"),
        (2, "--against compares outputs on samples; give --calibration",
         "web model.riqz -o site --against model.onnx"),
        (2, "the page runs samples with onnxruntime-web; give --runtime",
         "web model.riqz -o site --calibration samples.npz"),
        (2, "--runtime .: holds no ort.wasm.min.mjs .*npm install onnxruntime-web",
         "web model.riqz -o site --runtime ."),
        (2, "only one of ARCHIVE and --against can come from stdin",
         "web - -o site --runtime ort --calibration samples.npz --against -"),
        (1, "damaged.riqz: layer .*; the archive is damaged", "web damaged.riqz -o site"),
        (1, "model.onnx: not a riq archive", "web model.onnx -o site"),
        (1, "samples.npz: is a file; name a folder", "web model.riqz -o samples.npz --force"),
        (1, "nowhere/site: cannot be written: No such file", "web model.riqz -o nowhere/site"),
        (1, "model.riqz: is read by this command and never overwritten", "web model.riqz -o . --force"),
        (1, "none.npz: no such file", FULL.replace("samples.npz", "none.npz")),
        (1, "the limit is 100; .* raise it with --max-size", "web model.riqz -o site --max-size 100B"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_and_leaves_no_page(code: int, message: str, command: str, folder: Path) -> None:
    before = names(folder)
    fails(code, message, *shlex.split(command), folder=folder)
    assert names(folder) == before


INPUTS = [
    {"name": "x", "type": "float32", "shape": ["any", 3, 2]},
    {"name": "ids", "type": "int64", "shape": ["any", "any"]},
    {"name": "rate", "type": "int64", "shape": []},
    {"name": "mask", "type": "bool", "shape": ["any"]},
]
IMAGES = {"mean": [0], "std": [1], "scale": 1, "channel_order": "rgb", "image_layout": "nchw"}


def feeds(path: Path, inputs: list[dict[str, Any]]) -> list[dict[str, Any]] | str:
    """The feeds that the page makes of a file, with all numbers as text; or what is wrong."""
    found: list[dict[str, Any]] | str = run(
        """
        const file = new File([readFileSync(given[0])], given[0]);
        const seen = ({ type, dims, data }) => [type, dims, Array.from(data, String)];
        const show = (feed) => Object.fromEntries(Object.entries(feed).map(([name, array]) => [name, seen(array)]));
        const [inputs, images] = given.slice(1).map(JSON.parse);
        return readFeeds(file, inputs, images).then((feeds) => feeds.map(show), ({ message }) => message);
        """,
        path,
        json.dumps(inputs),
        json.dumps(IMAGES),
        prelude=f"""
        import {{ readFileSync }} from "node:fs";
        import {{ readFeeds }} from {json.dumps((MODULE.parent / "samples.js").as_uri())};
        """,
    )
    return found


@needs_node
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_cut_into_samples_and_converted(save: Any, tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(24.0).reshape(4, 3, 2) / 8)  # float64
    ids = np.arange(20, dtype=np.int32).reshape(4, 1, 5) - 3  # a whole input in each row
    save(tmp_path / "data.npz", x=x, ids=ids, rate=np.int64(2**60 + 1), mask=np.array([True]))
    found = feeds(tmp_path / "data.npz", INPUTS)
    assert len(found) == 4
    for number, feed in enumerate(found):
        assert feed == {
            "x": ["float32", [1, 3, 2], [f"{value:g}" for value in x[number].ravel()]],
            "ids": ["int64", [1, 5], [str(value) for value in ids[number].ravel()]],
            "rate": ["int64", [], [str(2**60 + 1)]],
            "mask": ["bool", [1], ["1"]],
        }


@needs_node
@pytest.mark.parametrize(
    ("message", "arrays"),
    [
        ("an array of shape 4×2×2 does not fit x (float32, any×3×2)", {"x": np.zeros((4, 2, 2))}),
        ("the arrays hold different numbers of samples",
         {"x": np.zeros((2, 3, 2)), "ids": np.zeros((3, 1)), "rate": np.int64(1), "mask": np.zeros(1)}),
        ("the file holds y; the model takes x (float32, any×3×2)", {"y": np.zeros((2, 3, 2))}),
        ("arrays of the type >f4 cannot be read", {"x": np.zeros((2, 3, 2), ">f4")}),
        ("the array for x holds no samples", {"x": np.zeros((0, 3, 2))}),
        ("float16 was given for x (float32, any×3×2)", {"x": np.zeros((2, 3, 2), np.float16)}),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_told(message: str, arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    assert feeds(tmp_path / "data.npz", INPUTS[: len(arrays)]) == message


@needs_node
def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 2)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:-30])
    assert feeds(tmp_path / "cut.npz", INPUTS[:1]) == "the .npz file is cut off"


WORKER = f"""
import {{ readFileSync }} from "node:fs";
import {{ readNpz }} from {json.dumps((MODULE.parent / "samples.js").as_uri())};
globalThis.self = {{}};
const {{ cosineDistances, shownOutput }} = await import({json.dumps((MODULE.parent / "worker.js").as_uri())});
"""


@needs_node
def test_distances_are_those_that_riq_measures(tmp_path: Path) -> None:
    pairs = [(y, z, 1) for name, (y, z, _) in DISTANCES.items() if name != "another shape"]  # the page compares sizes
    y = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    y[2], y[3, 0, 0] = 0, np.nan
    pairs += [(y, z, 4) for z in (y, y[::-1], y[:, :3], np.full_like(y, np.nan), (1.5 * y + 0.1).astype(np.float16))]
    pairs += [(y, 1 - y, 3), (np.nan_to_num(y), 1 - y, 1)]  # without a row for each sample
    arrays: dict[str, np.ndarray] = {}
    for number, (y, z, rows) in enumerate(pairs):
        original = y.astype(np.float64 if y.dtype == np.float64 else np.float32)
        arrays |= {f"{number}y": original, f"{number}z": z, f"{number}rows": np.array(rows, np.uint8)}
    np.savez(tmp_path / "pairs.npz", **arrays)
    found = run(
        """
        const arrays = await readNpz(new Blob([readFileSync(given[0])]));
        const distances = (number) => {
          const [y, z, rows] = ["y", "z", "rows"].map((kind) => arrays.get(number + kind));
          return cosineDistances(y, z, rows.data[0]);
        };
        return Array.from({ length: arrays.size / 3 }, (_, number) => distances(number).map(String));
        """,
        tmp_path / "pairs.npz",
        prelude=WORKER,
    )
    assert len(found) == len(pairs)
    for (y, z, rows), shown in zip(pairs, found, strict=True):
        wanted = sample_deviations(y, z, rows)
        assert [float(text.replace("Infinity", "inf")) for text in shown] == pytest.approx(
            wanted, abs=1e-15, nan_ok=True
        )


@needs_node
def test_outputs_of_half_precision_are_shown_as_numbers(tmp_path: Path) -> None:
    values = np.array([[1.5, -65504, 6e-8, np.inf]], np.float16)
    np.savez(tmp_path / "values.npz", y=values)
    shown = run(
        """
        const [[name, tensor]] = await readNpz(new Blob([readFileSync(given[0])]));
        const { shape, pairs } = shownOutput(name, tensor);
        return [shape, ...pairs.map(([, value]) => String(value))];
        """,
        tmp_path / "values.npz",
        prelude=WORKER,
    )
    assert shown == ["1×4 float16", "1.5", "-65504", str(2**-24).replace("e-0", "e-"), "Infinity"]


def test_rows_of_a_batch_of_fixed_size_are_counted(folder: Path) -> None:
    model = builders.dense()
    model.graph.input[0].CopyFrom(builders.info("x", 4, 16))
    model.graph.output[0].CopyFrom(builders.info("y", 4, 10))
    builders.save(model, folder)
    arguments = ("--preset", "fast", "--calibration", "samples.npz", "--force")
    assert riq("compress", "model.onnx", *arguments, folder=folder).returncode == 0
    assert riq(*shlex.split(FULL), folder=folder).returncode == 0
    assert content(folder / "site")["rows"] == [4, 4, 4]
    with np.load(folder / "site" / "samples.npz") as loaded:
        assert loaded["0/outputs/y"].shape == (4, 10)
