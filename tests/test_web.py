"""The decoder in JavaScript: it restores what Python restores, and refuses what Python refuses for the same reason."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from riq_cli.archive import Archive, Manifest, SkeletonEntry, deflate
from riq_cli.decode.dequantize import Quantized
from riq_cli.entropy.codes import Codes
from riq_cli.errors import ArchiveError
from riq_cli.limits import STORAGE
from riq_cli.model.places import find_tensor
from riq_cli.pipeline import decompress
from riq_cli.pipeline.layer_entry import encode_layer
from riq_cli.version import VERSION
from tests import test_codes
from tests.archives import (
    MANIFEST,
    SECTIONS,
    archive_of,
    edited,
    layer_of,
    levels_of,
    opened,
    packed,
    restored,
    written,
)
from tests.fuzz.mutation import changed_bytes
from tests.fuzz.targets import BOUND, TARGETS
from tests.memory import on_linux
from tests.node import MODULE, NODE, ROOT, answers, needs_node, run, sha256

GOLDENS = ROOT / "tests" / "goldens"
RECORD: dict[str, Any] = json.loads((GOLDENS / "goldens.json").read_text("utf-8"))
LARGE = "v1-two-streams.riqz"


@pytest.fixture(scope="module")
def goldens() -> dict[str, tuple[Any, Any]]:
    """By name: the layers that JavaScript decodes, and the hash of the model that it restores."""
    data = [(GOLDENS / name).read_bytes() for name in RECORD]
    layers = [answer.get("layers", answer) for answer in answers("decode", data)]
    models = [answer.get("model", answer) for answer in answers("restore", data)]
    return dict(zip(RECORD, zip(layers, models, strict=True), strict=True))


@needs_node
@pytest.mark.parametrize("name", RECORD)
def test_a_golden_is_restored_as_python_restores_it(name: str, goldens: dict[str, tuple[Any, Any]]) -> None:
    layers, model = goldens[name]
    assert layers == RECORD[name]["layers"]
    assert model == sha256(decompress(Archive.open(GOLDENS / name)).to_bytes())


def random_archive(seed: int) -> bytes:
    """A layer of any type and shape, with or without scales and a trellis, wide or narrow."""
    random = np.random.default_rng(seed)
    # JavaScript takes tensors as rows: most of these as one, those of the last line as 5, 2 and 20,000.
    shapes = [(), (1,), (700,), (6, 90), (5, 4, 30), (2, 3, 4, 40), (3, 5000), (40_000, 1)]
    shapes += [(5, 40, 200), (2, 40_000), (20_000, 1, 2, 1)]
    shape = shapes[int(random.integers(len(shapes)))]
    axes = tuple(axis for axis in range(len(shape)) if random.random() < 0.5)
    along = {tuple(axis for axis in range(len(shape)) if random.random() < 0.4) for _ in range(3)} - {()}
    scales = [
        Codes(one, random.integers(-6, 7, [shape[axis] for axis in one]).astype(np.int32)) for one in sorted(along)
    ]
    varying = [length if random.random() < 0.3 else 1 for length in shape]
    spread = random.choice([0.3, 2, 40, 3000]) * np.exp(random.normal(size=varying))
    symbols = np.rint(spread * random.standard_t(random.integers(2, 9), shape)).astype(np.int32).reshape(-1)
    levels = levels_of(symbols, shape, axes) if axes else symbols
    width = float(np.exp(random.normal(scale=8)))
    layer = layer_of(np.zeros(shape), str(random.choice(list(STORAGE))))
    return written(archive_of(layer, Quantized(levels, width, tuple(scales), axes or None)))


@needs_node
def test_layers_of_all_kinds_have_the_bytes_that_python_decodes() -> None:
    archives = [random_archive(seed) for seed in range(120)] + [written(archive_of(*test_codes.mixed()))]
    codings = set()
    for data, answer in zip(archives, answers("decode", archives), strict=True):
        [layer] = answer["layers"]
        [expected] = restored(data)[1]
        assert (layer["shape"], layer["dtype"]) == (list(expected.shape), expected.dtype)
        assert layer["sha256"] == sha256(expected.values.tobytes())
        codings.add(layer["coding"])
    assert codings == {"ans", "constant", "raw", "student"}


def outcome(data: bytes) -> dict[str, str]:
    """What Python does with an archive, in the words of `decode.mjs`."""
    try:
        return {"model": sha256(decompress(Archive.open(io.BytesIO(data), BOUND)).to_bytes())}
    except ArchiveError as error:
        return {"error": type(error).__name__, "message": str(error)}


def mutations() -> Iterator[bytes]:
    """Archives with other manifests, sections and skeletons; and goldens with other bytes, cut off or too long."""
    for number in range(150):
        for name in ("manifest", "archive"):
            yield TARGETS[name].make(np.random.default_rng([26, number]))
    small = [path for path in sorted(GOLDENS.glob("*.riqz")) if Archive.open(path).manifest.restored < BOUND]
    for path in small:
        data, random = path.read_bytes(), np.random.default_rng(26)
        yield from (changed_bytes(random, data) for _ in range(5))
        yield from (data[: int(random.integers(len(data)))] for _ in range(5))
        yield data + b"\0"


@needs_node
def test_both_decoders_do_the_same_with_mutations() -> None:
    archives = list(mutations())
    refused = 0
    for number, (data, answer) in enumerate(zip(archives, answers("restore", archives, maxSize=BOUND), strict=True)):
        expected = outcome(data)
        if "model" in answer and "the skeleton is not an ONNX model" in expected.get("message", ""):
            continue  # JavaScript reads what leads to tensors, and leaves the rest to onnxruntime
        kinds = [{key: value for key, value in said.items() if key != "message"} for said in (answer, expected)]
        assert kinds[0] == kinds[1], (number, answer, expected)
        refused += "error" in answer
    assert 0 < refused < len(archives)


LAYER = ("layers", 0)
REASONS = {
    "no archive": b"\x89PNG" + bytes(40),
    "only a header": packed(MANIFEST)[:23],
    "a newer version": packed(MANIFEST, version=2),
    "reserved": packed(MANIFEST, reserved=1),
    "a wrong checksum": packed(MANIFEST, checksum=1),
    "a long manifest": packed(MANIFEST, length=(1 << 24) + 1),
    "cut off": packed(MANIFEST)[:-1],
    "too long": packed(MANIFEST) + b"\0",
    "a new feature": packed(edited(MANIFEST, [(("requires",), ["haar"])])),
    "no dtype": packed(edited(MANIFEST, [((*LAYER, "dtype"), "delete")])),
    "an unknown dtype": packed(edited(MANIFEST, [((*LAYER, "dtype"), "float8")])),
    "a negative length": packed(edited(MANIFEST, [((*LAYER, "table"), -1)])),
    "a real number of symbols": packed(edited(MANIFEST, [((*LAYER, "symbols"), 1.0)])),
    "an endless shape": packed(edited(MANIFEST, [((*LAYER, "shape"), [1 << 41])])),
    "too large": packed(edited(MANIFEST, [((*LAYER, "shape"), [1 << 20])])),
    "beyond 53 bits": packed(edited(MANIFEST, [(("skeleton", "size"), (1 << 63) - 1)])),
    "beyond 63 bits": packed(edited(MANIFEST, [(("skeleton", "size"), 1 << 63)])),
    "other weights": packed(edited(MANIFEST, [((*LAYER, "crc32"), 1)])),
    "another skeleton": packed(edited(MANIFEST, [(("skeleton", "crc32"), 1)])),
    "a longer table": packed(edited(MANIFEST, [((*LAYER, "table"), 4)]), SECTIONS + b"\0"),
    "a place twice": packed(edited(MANIFEST, [((*LAYER, "tensors"), ["graph.initializer[0]"] * 2)])),
    "a limit that is text": (GOLDENS / "bad" / "manifest-limit-is-text").read_bytes(),
}


def comparable(message: str) -> str:
    """A message without what is Python's: commas and all digits of numbers, the option, and what else a file may be."""
    message = re.sub(r"\d{17,}", "many", re.sub(r"(?<=\d),(?=\d{3})", "", message))
    return message.replace("raise it with --max-size", "raise maxSize").split(":")[0].split(", or")[0]


@needs_node
def test_both_decoders_have_the_same_reasons() -> None:
    said = answers("decode", list(REASONS.values()), maxSize=BOUND)
    for (what, data), answer in zip(REASONS.items(), said, strict=True):
        with pytest.raises(ArchiveError) as caught:
            restored(data, BOUND)
        assert "error" in answer, (what, answer)
        ours = (answer["error"], comparable(answer["message"]))
        assert ours == (type(caught.value).__name__, comparable(str(caught.value))), what


@needs_node
def test_a_limit_on_the_restored_model_holds() -> None:
    needed = opened(packed(MANIFEST)).manifest.restored
    [fits] = answers("decode", [packed(MANIFEST)], maxSize=needed)
    [large] = answers("decode", [packed(MANIFEST)], maxSize=needed - 1)
    assert len(fits["layers"]) == 1
    assert large["error"] == "LimitExceeded"


@needs_node
def test_large_weights_go_beside_the_model(tmp_path: Path) -> None:
    paths = run(
        """
        const [archive, folder] = given;
        const { model, externalData } = await restore(readFileSync(archive), { externalData: true });
        writeFileSync(`${folder}/model.onnx`, model);
        for (const { path, data } of externalData) writeFileSync(`${folder}/${path}`, data);
        return externalData.map(({ path }) => path);
        """,
        GOLDENS / LARGE,
        tmp_path,
    )
    assert paths == ["layer-0.bin"]
    assert (tmp_path / "model.onnx").stat().st_size < 1000
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    model = onnx.load(tmp_path / "model.onnx")
    for layer in RECORD[LARGE]["layers"]:
        for place in layer["places"]:
            assert sha256(find_tensor(model, place).raw_data) == layer["sha256"]


@needs_node
def test_all_sources_give_the_same() -> None:
    shown = run(
        """
        const bytes = new Uint8Array(readFileSync(given[0]));
        const shifted = new Uint8Array(bytes.length + 3);
        shifted.set(bytes, 3);
        const sources = {
          bytes,
          view: new DataView(shifted.buffer, 3),
          buffer: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
          blob: new Blob([bytes]),
          response: new Response(bytes),
          stream: new Response(bytes).body,
          singles: chunks(bytes, 1),
          pieces: chunks(bytes, 1000),
          file: createReadStream(given[0], { highWaterMark: 100 }),
        };
        const result = {};
        for (const [name, source] of Object.entries(sources)) result[name] = sha256((await restore(source)).model);
        return [result, await failure(restore("text")), await failure(restore(chunks(["text"], 1)))];
        """,
        GOLDENS / "v1-student.riqz",
    )
    assert set(shown[0].values()) == {sha256(decompress(Archive.open(GOLDENS / "v1-student.riqz")).to_bytes())}
    assert len(shown[0]) == 9
    assert all(message.startswith("TypeError: ") for message in shown[1:])


@needs_node
def test_layers_come_while_bytes_arrive_and_the_source_is_let_go() -> None:
    shown = run(
        """
        const bytes = new Uint8Array(readFileSync(given[0]));
        let sent = 0;
        let closed = false;
        async function* source() {
          try {
            for await (const piece of chunks(bytes, 50)) {
              sent += piece.length;
              yield piece;
            }
          } finally {
            closed = true;
          }
        }
        for await (const layer of decode(source())) break;
        await new Promise((resolve) => setTimeout(resolve));
        return { early: sent < bytes.length - 100, closed };
        """,
        GOLDENS / "v1-student.riqz",
    )
    assert shown == {"early": True, "closed": True}


@needs_node
def test_progress_ends_at_all_bytes_and_weights() -> None:
    path = GOLDENS / "v1-student.riqz"
    steps = run(
        """
        const steps = [];
        await restore(createReadStream(given[0]), { onProgress: (step) => steps.push(step) });
        return steps;
        """,
        path,
    )
    weights = sum(layer.size for layer in Archive.open(path).manifest.layers)
    size = path.stat().st_size
    assert steps[-1] == {"received": size, "total": size, "decoded": weights, "weights": weights}
    assert {(step["total"], step["weights"]) for step in steps} == {(size, weights)}
    for key in ("received", "decoded"):
        assert [step[key] for step in steps] == sorted(step[key] for step in steps)


@needs_node
def test_decoding_is_cancelled_by_its_signal() -> None:
    shown = run(
        """
        const bytes = readFileSync(given[0]);
        const aborted = AbortSignal.abort(new Error("no more"));
        const controller = new AbortController();
        const onProgress = ({ decoded }) => decoded && controller.abort(new Error("enough"));
        const waiting = new AbortController();
        const endless = (async function* () {
          yield bytes.subarray(0, 100);
          await new Promise((resolve) => setTimeout(resolve, 600_000).unref());
        })();
        setTimeout(() => waiting.abort(new Error("too slow")), 20);
        return [
          await failure(restore(bytes, { signal: aborted })),
          await failure(restore(bytes, { signal: controller.signal, onProgress })),
          await failure(restore(endless, { signal: waiting.signal })),
        ];
        """,
        GOLDENS / "v1-student.riqz",
    )
    assert shown == ["Error: no more", "Error: enough", "Error: too slow"]


@needs_node
def test_other_tasks_run_while_the_codes_of_many_rows_are_counted(tmp_path: Path) -> None:
    rows = 2**17
    symbols = np.random.default_rng(0).integers(-2, 3, 2 * rows, dtype=np.int32)
    scales = Codes((0,), np.ones(rows, np.int32))
    data = written(archive_of(layer_of(np.zeros((rows, 2))), Quantized(symbols, 0.5, (scales,))))
    [layer] = opened(data).manifest.layers
    (tmp_path / "rows.riqz").write_bytes(data)
    shown = run(
        """
        const bytes = readFileSync(given[0]);
        let now = 0;
        performance.now = () => (now += 100);  // ms: each look at the clock is late enough for other tasks
        let [hasRun, seen] = [false, undefined];
        async function* source() {
          const [layer, stream] = given.slice(1);
          yield bytes.subarray(0, layer);
          setTimeout(() => (hasRun = true));
          yield bytes.subarray(layer, stream);
          seen = hasRun;  // the decoder has counted the codes, and asks for the stream
          yield bytes.subarray(stream);
        }
        for await (const layer of decode(source())) layer.values;
        return seen;
        """,
        tmp_path / "rows.riqz",
        len(data) - layer.stored,
        len(data) - sum(layer.streams),
    )
    assert shown is True


@needs_node
def test_an_error_of_the_source_or_its_early_end_is_told() -> None:
    shown = run(
        """
        const bytes = readFileSync(given[0]);
        async function* failing() {
          yield bytes.subarray(0, -9);
          throw new Error("the line is dead");
        }
        const results = [];
        for (const options of [{}, { workers: 1 }]) {
          results.push(await failure(restore(failing(), options)));
          results.push(await failure(restore(new Response(bytes.subarray(0, -9)), options)));
        }
        return results;
        """,
        GOLDENS / "v1-student.riqz",
    )
    assert shown == ["Error: the line is dead", "CorruptArchive: the archive is cut off"] * 2


@needs_node
def test_workers_give_the_same_layers_and_errors() -> None:
    shown = run(
        """
        const result = [];
        for (const options of [{}, { workers: 2 }]) {
          for (const path of given) {
            const { model } = await restore(createReadStream(path, { highWaterMark: 4000 }), options);
            result.push(sha256(model));
            const { externalData } = await restore(readFileSync(path), { externalData: true, ...options });
            result.push(externalData.map(({ data }) => sha256(data)));
            const damaged = new Uint8Array(readFileSync(path));
            damaged[damaged.length - 9] ^= 1;
            result.push(await failure(restore(damaged, options)));
          }
        }
        return result;
        """,
        GOLDENS / "v1-student.riqz",
        GOLDENS / LARGE,
    )
    here, there = shown[:6], shown[6:]
    assert here == there
    assert re.fullmatch("CorruptArchive: layer '.*': .*; the archive is damaged", here[2])


@needs_node
def test_a_worker_that_ends_before_the_first_layer_arrives_is_told(tmp_path: Path) -> None:
    shown = run(
        """
        const [archive, module, copy] = given;
        writeFileSync(copy, readFileSync(module));
        const { restore } = await import(copy);
        rmSync(copy);  // no worker can load it
        const ended = new Promise((resolve) => process.once("worker", (worker) => worker.once("exit", resolve)));
        const bytes = readFileSync(archive);
        const manifestEnd = 24 + bytes.readUInt32LE(16);
        async function* source() {
          yield bytes.subarray(0, manifestEnd);
          await ended;
          yield bytes.subarray(manifestEnd);
        }
        return await failure(restore(source(), { workers: 1 }));
        """,
        GOLDENS / "v1-student.riqz",
        MODULE,
        tmp_path / "riqz.mjs",
    )
    assert shown.startswith("Error: a worker ended: Cannot find module")


@needs_node
def test_a_cache_for_transformers_js_restores_what_has_an_archive() -> None:
    shown = run(
        """
        const bytes = readFileSync(given[0]);
        const asked = [];
        const headers = { "content-type": "text/html; charset=utf-8" };
        const answers = {
          "a/model.riqz": () => new Response(bytes),
          "a/cut.riqz": () => new Response(bytes.subarray(0, -9)),
          "a/page.riqz": () => new Response("<!doctype html>", { headers }),
        };
        globalThis.fetch = async (path) => {
          asked.push(path);
          return answers[path]?.() ?? new Response("", { status: 404 });
        };
        const cache = riqz.riqCache({ workers: 1 });
        const found = await cache.match("a/model.onnx");
        const own = riqz.riqCache({ read: (path) => path === "b.riqz" ? bytes : undefined });
        const body = async (response) => new Uint8Array(await response.arrayBuffer());
        return [
          sha256(await body(found)),
          sha256(await body(await own.match("b.onnx"))),
          await failure(body(await cache.match("a/cut.onnx"))),
          await Promise.all(["a/page.onnx", "a/none.onnx", "a/config.json"].map((path) => cache.match(path) ?? null)),
          asked,
          (await own.match("c.onnx")) ?? null,
          (await cache.put("a/config.json", new Response("{}"))) ?? null,
        ];
        """,
        GOLDENS / "v1-student.riqz",
    )
    model = sha256(decompress(Archive.open(GOLDENS / "v1-student.riqz")).to_bytes())
    assert shown[:3] == [model, model, "CorruptArchive: the archive is cut off"]
    assert shown[3:] == [[None] * 3, ["a/model.riqz", "a/cut.riqz", "a/page.riqz", "a/none.riqz"], None, None]


def large_archive(layers: int, shape: tuple[int, int]) -> bytes:
    """An archive with the same layer of coding `ans` several times."""
    symbols = np.rint(2 * np.random.default_rng(0).standard_normal(shape)).astype(np.int32).reshape(-1)
    quantized = Quantized(symbols, 0.5)
    layer = layer_of(quantized.restored("float32", shape).reshape(shape))
    entry, sections = encode_layer(layer, quantized, None)
    names = [f"w{number}" for number in range(layers)]
    tensors = [onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT) for name in names]
    skeleton = onnx.ModelProto(graph=onnx.GraphProto(initializer=tensors)).SerializeToString()
    entries = tuple(
        replace(entry, name=name, tensors=(f"graph.initializer[{number}]",)) for number, name in enumerate(names)
    )
    stored = deflate(skeleton)
    manifest = Manifest(SkeletonEntry(len(stored), len(skeleton), zlib.crc32(skeleton)), entries)
    return written(Archive.build(manifest, [stored, *sections * layers]))


@pytest.mark.slow
@needs_node
@on_linux
@pytest.mark.parametrize("options", [{}, {"externalData": True}])
def test_restoring_takes_little_more_memory_than_the_model(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.riqz").write_bytes(large_archive(16, (2000, 2000)))
    size, peak = run(
        r"""
        const [path, golden, options] = given;
        // Not maxRSS of resourceUsage: a new process begins with its parent's.
        const peak = () => 1024 * Number(/VmHWM:\s*(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]);
        await restore(readFileSync(golden));
        const before = peak();
        const { model, externalData } = await restore(createReadStream(path), JSON.parse(options));
        const size = externalData.reduce((sum, { data }) => sum + data.length, model.length);
        return [size, peak() - before];
        """,
        tmp_path / "model.riqz",
        GOLDENS / "v1-student.riqz",
        json.dumps(options),
    )
    assert size > 16 * 2000 * 2000 * 4
    assert peak <= 1.3 * size


@needs_node
def test_types_are_declared_for_all_that_is_exported() -> None:
    declared = set(re.findall(r"^export (?:class|function) (\w+)", MODULE.with_suffix(".d.ts").read_text(), re.M))
    assert set(run("return Object.keys(riqz)")) == declared


def test_the_module_stands_alone_and_ships() -> None:
    assert not re.search(r"^\s*(import|export .* from)\b", MODULE.read_text("utf-8"), re.MULTILINE)
    package = json.loads((MODULE.parent / "package.json").read_text("utf-8"))
    assert package["version"] == VERSION
    assert not {"dependencies", "peerDependencies", "devDependencies"} & set(package)
    data = re.search(r'^"riq_cli.web" = \[(.*)\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert data
    shipped = {path for pattern in re.findall('"(.*?)"', data[1]) for path in MODULE.parent.glob(pattern)}
    assert shipped == set(MODULE.parent.iterdir())


@needs_node
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_npm_packs_it() -> None:
    command = [str(shutil.which("npm")), "pack", "--dry-run", "--json", "--offline"]
    done = subprocess.run(command, cwd=MODULE.parent, capture_output=True, check=True, timeout=60)
    [packed_up] = json.loads(done.stdout)
    assert {item["path"] for item in packed_up["files"]} == {"riqz.js", "riqz.d.ts", "package.json"}


@needs_node
def test_the_page_shows_what_works(tmp_path: Path) -> None:
    page = (ROOT / "riq_cli" / "docs" / "browser.md").read_text("utf-8")
    [command] = re.findall(r"^\$ python (-c .*)$", page, re.MULTILINE)
    shown = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert Path(shown.stdout.strip()) == MODULE.parent
    [script] = re.findall(r"^```javascript\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shutil.copy(MODULE, tmp_path)
    shutil.copy(GOLDENS / LARGE, tmp_path / "model.riqz")
    (tmp_path / "page.mjs").write_text(script)
    done = subprocess.run([str(NODE), "page.mjs"], cwd=tmp_path, capture_output=True, check=True, text=True)
    [layer] = RECORD[LARGE]["layers"]
    *progress, last = done.stdout.splitlines()
    assert last.startswith(f"{layer['name']} {layer['dtype']} ")
    assert progress == sorted(progress, key=float)


def test_the_page_names_every_option_and_error() -> None:
    page = (ROOT / "riq_cli" / "docs" / "browser.md").read_text("utf-8")
    types = MODULE.with_suffix(".d.ts").read_text("utf-8")
    options = [*re.findall(r"^  (\w+)\?:", types, re.MULTILINE), "externalData"]
    errors = re.findall(r"class (\w+) extends ArchiveError", types)
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == options + errors
