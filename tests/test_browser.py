"""The decoder and the page of `riq web` in Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from riq_cli.archive import Archive
from riq_cli.pipeline import decompress
from tests import builders
from tests.archives import MANIFEST, edited, packed
from tests.command import riq
from tests.node import MODULE, ROOT, browse, needs_chromium, npm, served, sha256

pytestmark = [needs_chromium, pytest.mark.zoo]

SAMPLES = ROOT / "sample_models"
NAMES = ("cnn", "transformer")
LAYER = ("layers", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain page, riqz.js, archives, and what tests of `riq web` need."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "plain.html").write_text("<!doctype html><title>plain</title>")
    (folder / "riqz.js").write_bytes(MODULE.read_bytes())
    for name in NAMES:
        arguments = ("--preset", "fast", "--calibration", SAMPLES / "calibration.npz", "-o", f"{name}.riqz")
        done = riq("compress", SAMPLES / f"{name}.onnx", *arguments, folder=folder)
        assert done.returncode == 0, done.stderr
    huge = [((*LAYER, "shape"), [1 << 39]), ((*LAYER, "tensors"), ["graph.initializer[0]"])]
    (folder / "huge.riqz").write_bytes(packed(edited(MANIFEST, huge)))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


def in_page(url: str, script: str) -> Any:
    """The value that a script returns in a plain page; it has the module's names."""
    prelude = """
        const { decode, restore, LimitExceeded } = await import("/riqz.js");
        const failure = (promise) => promise.then(() => "nothing", ({ name, message }) => `${name}: ${message}`);
        const sha256 = async (bytes) => {
          const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
          return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
        };
    """
    return browse(f"{url}plain.html", "return page.evaluate(given[0]);", f"(async () => {{ {prelude} {script} }})()")


def test_the_model_is_restored_with_and_without_workers(folder: Path, url: str) -> None:
    shown = in_page(
        url,
        """
        const result = [];
        for (const workers of [0, 1, 2]) {
          for (const name of ["cnn", "transformer"]) {
            result.push(await sha256((await restore(await fetch(`${name}.riqz`), { workers })).model));
          }
        }
        return result;
        """,
    )
    expected = [sha256(decompress(Archive.open(folder / f"{name}.riqz")).to_bytes()) for name in NAMES]
    assert shown == expected * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_layers_come_while_the_archive_is_downloaded(url: str, workers: int) -> None:
    count = in_page(
        url,
        f"""
        let count = 0;
        for await (const layer of decode(await fetch("transformer.riqz?held{workers}"), {{ workers: {workers} }})) {{
          if (count++ === 0) await fetch("release?held{workers}");  // the other half comes only now
        }}
        return count;
        """,
    )
    assert count > 1


def test_decoding_is_cancelled_while_it_waits(url: str) -> None:
    shown = in_page(
        url,
        """
        const result = [];
        for (const workers of [0, 1]) {
          const controller = new AbortController();
          const { signal } = controller;
          const response = await fetch(`transformer.riqz?held-${workers}`);
          const decoding = failure(restore(response, { signal, workers }));
          setTimeout(() => controller.abort(new Error("enough")), 50);
          result.push(await decoding);
          await fetch(`release?held-${workers}`);
        }
        return result;
        """,
    )
    assert shown == ["Error: enough"] * 2


def test_a_download_that_ends_early_is_an_error(url: str) -> None:
    cut, short = in_page(
        url,
        """
        const result = [];
        for (const how of ["cut", "short"]) result.push(await failure(restore(await fetch(`transformer.riqz?${how}`))));
        return result;
        """,
    )
    assert cut == "TypeError: network error"  # the browser's own
    assert short == "CorruptArchive: the archive is cut off"


def test_too_little_memory_is_an_error_that_the_page_survives(url: str) -> None:
    shown = in_page(
        url,
        """
        const layers = async (options) => { for await (const layer of decode(await fetch("huge.riqz"), options)); };
        const result = [await failure(layers({}))];
        for (const workers of [0, 1]) result.push(await failure(layers({ maxSize: 2 ** 45, workers })));
        return result;
        """,
    )
    assert shown[0].startswith("LimitExceeded: the restored model needs ")
    assert [message.split(":")[0] for message in shown[1:]] == ["RangeError"] * 2


SHOWN = "await page.waitForSelector('#result:not([hidden]), #error:not([hidden])');"
FACTS = """
    const facts = {};
    for (const box of await page.locator("#facts > div").all()) {
      const [name, value] = (await box.innerText()).split("\\n");
      facts[name] = value;
    }
"""


@pytest.fixture(scope="module")
def site(folder: Path) -> Path:
    """The folder of a page with samples, the original's outputs and onnxruntime-web; files to drop lie beside it."""
    runtime, calibration = npm() / "node_modules" / "onnxruntime-web", SAMPLES / "heldout.npz"
    arguments = ("--runtime", runtime, "--calibration", calibration, "--against", SAMPLES / "cnn.onnx")
    done = riq("web", "cnn.riqz", "-o", "site", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    with np.load(calibration) as loaded:
        images = loaded["image"]
    np.savez_compressed(folder / "three.npz", image=images[:3].astype(np.float64))
    np.save(folder / "fortran.npy", np.asfortranarray(images[:1]))
    np.savez(folder / "other.npz", pixels=images[:1])
    Image.fromarray((255 * images[0, 0]).astype(np.uint8)).save(folder / "digit.png")
    (folder / "digit.txt").write_text("no image")
    return folder / "site"


def test_the_page_runs_the_model_and_measures_the_deviation(folder: Path, site: Path) -> None:
    with served(site) as url:
        shown = browse(
            url,
            f"""
            {SHOWN}{FACTS}
            const dark = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
            const light = await dark();
            await page.emulateMedia({{ colorScheme: "dark" }});
            return {{
              facts,
              title: await page.title(),
              output: await page.innerText("tbody"),
              error: await page.isVisible("#error"),
              overflows: await page.evaluate(() => document.documentElement.scrollWidth > innerWidth),
              schemes: [light, await dark()],
            }};
            """,
        )
    original = (SAMPLES / "cnn.onnx").stat().st_size
    assert shown["facts"]["Original"] == f"{original / 1000:.0f}\xa0kB"
    assert list(shown["facts"]) == ["Original", "Archive", "Decoding", "One run", "Deviation"]
    with np.load(SAMPLES / "heldout.npz") as loaded:
        np.savez(folder / "eight.npz", image=loaded["image"][:8])
    command = ("verify", "cnn.riqz", "--against", SAMPLES / "cnn.onnx", "--calibration", "eight.npz", "--json")
    found = json.loads(riq(*command, "--output", "logits", folder=folder).stdout)
    assert float(shown["facts"]["Deviation"]) == pytest.approx(found["deviation"], rel=1e-3)
    assert (shown["title"], shown["error"], shown["overflows"]) == ("cnn", False, False)
    assert shown["output"].startswith("logits\t1×10 float32\t[")
    assert shown["schemes"][0] != shown["schemes"][1]


def test_visitors_drop_samples_and_images(folder: Path, site: Path) -> None:
    session = onnxruntime.InferenceSession(decompress(Archive.open(folder / "cnn.riqz")).to_bytes())
    with np.load(folder / "three.npz") as loaded:
        [[expected]] = session.run(None, {"image": loaded["image"][:1].astype(np.float32)})
    best = f"[{expected.argmax()}] {float(f'{expected.max():.4g}'):g}"
    names = ["three.npz", "fortran.npy", "digit.png", "other.npz", "digit.txt"]
    with served(site) as url:
        shown = browse(
            url,
            f"""
            {SHOWN}
            const result = [];
            for (const name of given) {{
              await page.setInputFiles("input", name);
              await page.waitForSelector("#drop input:enabled", {{ state: "attached" }});
              const failed = await page.isVisible("#error");
              result.push(await page.innerText(failed ? "#error" : "#result"));
            }}
            return result;
            """,
            *[folder / name for name in names],
        )
    for name, text in zip(names[:3], shown, strict=False):
        assert f"{name}:" in text and best in text
    assert shown[3] == "the file holds pixels; the model takes image (float32, batch×1×28×28)"
    assert shown[4] == "digit.txt: is neither an .npz or .npy file nor an image"


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 3, 1, 1), np.float32, ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4", "--channel-order", "bgr")),
        ((1, 1, 1, 3), np.uint8, ("--image-layout", "nhwc")),
    ],
)
def test_images_are_prepared_as_for_compress(
    shape: tuple[int, ...], dtype: Any, options: tuple[str, ...], tmp_path: Path
) -> None:
    nodes = [builders.node("Cast", "image", "cast", to=onnx.TensorProto.FLOAT), builders.node("Flatten", "cast", "y")]
    image = onnx.helper.make_tensor_value_info("image", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
    builders.save(builders.model(nodes, [image], [builders.info("y", 1, 3)], []), tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1), (200, 100, 50)).save(tmp_path / "images" / "pixel.png")
    runtime = ("--runtime", npm() / "node_modules" / "onnxruntime-web")
    for command in (("compress", "model.onnx"), ("web", "model.riqz", "-o", "site", *runtime, *options)):
        done = riq(*command, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    assert riq("run", "model.onnx", "--input", "images", *options, "-o", "y.npz", folder=tmp_path).returncode == 0
    with np.load(tmp_path / "y.npz") as loaded:
        expected = loaded["y"].ravel()
    script = f"""
        await page.waitForSelector("#drop");
        await page.setInputFiles("input", given[0]);
        {SHOWN} return page.innerText("tbody td:last-child");
    """
    with served(tmp_path / "site") as url:
        shown = browse(url, script, tmp_path / "images" / "pixel.png")
    np.testing.assert_allclose([float(value) for value in shown.split()], expected, rtol=1e-3)


def test_without_onnxruntime_web_the_page_decodes_all_the_same(folder: Path) -> None:
    assert riq("web", "transformer.riqz", "-o", "decoding", folder=folder).returncode == 0
    with served(folder / "decoding") as url:
        shown = browse(
            url,
            f"await page.waitForSelector('#fact-Decoding'); {FACTS} return [facts, await page.innerText('#status')];",
        )
    assert list(shown[0]) == ["Original", "Archive", "Decoding"]
    assert "riq web --runtime" in shown[1]


def test_the_page_tells_what_is_wrong_with_the_archive(folder: Path) -> None:
    assert riq("web", "transformer.riqz", "-o", "broken", folder=folder).returncode == 0
    path = folder / "broken" / "model.riqz"
    data = path.read_bytes()
    told = []
    for damaged in (data[:-100], b"<!doctype html>", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with served(folder / "broken") as url:
            told.append(browse(url, f"{SHOWN} return page.innerText('#error');"))
    assert told == ["the archive is cut off", "not a riq archive", "model.riqz: the server answers 404 File not found"]
