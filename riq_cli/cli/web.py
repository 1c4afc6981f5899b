"""`riq web`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from riq_cli.cli import options
from riq_cli.cli.help import Command, grouped
from riq_cli.cli.paths import check_outputs
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import say
from riq_cli.errors import CalibrationError, OutputError
from riq_cli.files import atomic_folder
from riq_cli.text import counted, human_size

if TYPE_CHECKING:
    from riq_cli.archive import Archive
    from riq_cli.calibration import Sample
    from riq_cli.model import Model

_PAGE = ("index.html", "page.js", "worker.js", "samples.js", "riqz.js")  # as they ship with riq
_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web
_DATA, _ARCHIVE, _SAMPLES = "page.json", "model.riqz", "samples.npz"
_MOST_SAMPLES = 8  # every visitor downloads them


@click.command(
    cls=Command,
    synopsis="ARCHIVE -o FOLDER [OPTIONS]",
    examples=r"""
riq web model.riqz -o site
riq web model.riqz -o site --runtime node_modules/onnxruntime-web
riq web model.riqz -o site --runtime node_modules/onnxruntime-web \
    --calibration heldout.npz --against model.onnx
python -m http.server --directory site
""",
    short_help="Write a page that decodes and runs an archive in the browser.",
)
@click.argument("archive", type=options.archive_type)
@grouped(
    "Page",
    click.option("--runtime", metavar="FOLDER|URL",
                 help="onnxruntime-web: the folder of its npm package, of which three files are copied; or a URL of "
                 "its dist folder, from which visitors load it. [default: the page decodes, but runs nothing]"),
    click.option("--calibration", type=options.calibration_type, metavar="DATA",
                 help=f"Samples that the page runs, as for riq compress; the first {_MOST_SAMPLES}."),
    click.option("--against", type=options.model_type, metavar="MODEL",
                 help="The original model: its outputs on these samples go onto the page, which shows the deviation."),
)  # fmt: skip
@grouped("Model", options.follow_links_option)
@options.image_options
@grouped(
    "Output",
    click.option("-o", "folder", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
                 help="Folder to write; it may be there already."),
    options.force_option,
    options.max_size_option,
    options.quiet_option,
)  # fmt: skip
def web(
    archive: str,
    runtime: str | None,
    calibration: str | None,
    against: str | None,
    follow_links: bool,
    folder: Path,
    force: bool,
    max_size: int,
    quiet: bool,
    **images: Any,
) -> None:
    """Write a page that downloads ARCHIVE (- for stdin), decodes it in the browser, and runs the model there.

    Visitors see sizes and times, and can run the model on files of their own: .npz, .npy, or an image, which is
    prepared as the options say. Any static server can serve FOLDER. The page loads nothing from elsewhere, unless
    --runtime is a URL.
    """
    if archive == against == "-":
        raise click.UsageError("only one of ARCHIVE and --against can come from stdin")
    if against is not None and calibration is None:
        raise click.UsageError("--against compares outputs on samples; give --calibration as well")
    if calibration is not None and runtime is None:
        raise click.UsageError("the page runs samples with onnxruntime-web; give --runtime as well")
    is_url = runtime is not None and re.match("https?://", runtime)
    copied = [] if runtime is None or is_url else _runtime_files(Path(runtime))
    data = [] if calibration is None else [_SAMPLES]
    paths = [folder / name for name in (*_PAGE, _DATA, _ARCHIVE, *data, *(path.name for path in copied))]
    if folder.is_dir():
        check_outputs([str(path) for path in paths], [archive, against, calibration], force)
    elif folder.exists():
        raise OutputError(f"{folder}: is a file; name a folder")
    else:
        check_outputs([str(folder)], [], force)

    from riq_cli.calibration import ImageOptions, write_npz
    from riq_cli.decode import decode_layers
    from riq_cli.session import restored

    preparation = ImageOptions(**options.given(images))
    with options.open_archive(archive, max_size) as opened, Wait("decoding layers", quiet) as wait:
        with options.coding_executor(opened.manifest.layers) as executor:
            model = restored(opened, decode_layers(opened, executor))  # a damaged archive ends here
        arrays: dict[str, Any] = {}
        samples: Sequence[Sample] = ()
        if calibration is not None:
            samples = options.load_calibration(calibration, options.given(images)).samples(model.inputs, warn=wait.warn)
            samples = samples[:_MOST_SAMPLES]
            arrays = _inputs(samples)
            if against is not None:
                original = options.load_model(against, follow_links)
                if not quiet:
                    options.warn_of_another_model(archive, opened, against, original)
                arrays |= _outputs(original, samples)
        content = _content(opened, archive) | {
            "runtime": None if runtime is None else runtime.rstrip("/") + "/" if is_url else "./",
            "samples": _SAMPLES if arrays else None,
            "rows": [sample.rows for sample in samples],  # each is one to riq, and has a deviation of its own
            "images": asdict(preparation),
        }
        with atomic_folder(folder, force, last=_DATA) as temporary:
            for name in _PAGE:
                with as_file(files("riq_cli") / "web" / name) as path:
                    shutil.copyfile(path, temporary / name)
            for path in copied:
                shutil.copyfile(path, temporary / path.name)
            (temporary / _DATA).write_text(json.dumps(content, indent=2), encoding="utf-8")
            opened.save(temporary / _ARCHIVE)
            if arrays:
                with (temporary / _SAMPLES).open("wb") as file:
                    write_npz(file, arrays)
            sizes = [path.stat().st_size for path in temporary.iterdir()]
    if not quiet:
        say(f"{folder}: {counted(len(sizes), 'file')}, {human_size(sum(sizes))}", err=True)


def _runtime_files(folder: Path) -> list[Path]:
    """The files of onnxruntime-web that the page needs.

    Raises:
        UsageError: the folder does not hold them.
    """
    for place in (folder, folder / "dist"):
        paths = [place / name for name in _RUNTIME]
        if all(path.is_file() for path in paths):
            return paths
    raise click.UsageError(
        f"--runtime {folder}: holds no {_RUNTIME[0]} with its WebAssembly; give the folder "
        "node_modules/onnxruntime-web that 'npm install onnxruntime-web' makes, or a URL"
    )


def _content(archive: Archive, path: str) -> dict[str, Any]:
    """What page.json tells of an archive."""
    manifest = archive.manifest
    return {
        "title": "model" if path == "-" else Path(path).stem,
        "archive": _ARCHIVE,
        "bytes": archive.size,
        "source": manifest.source.get("bytes"),
        "weights": sum(layer.size for layer in manifest.layers),
        "deviations": {tensor["name"]: tensor["mean"] for tensor in manifest.result.get("measured", [])},
    }


def _inputs(samples: Sequence[Sample]) -> dict[str, Any]:
    """The feeds of samples, by keys such as `0/inputs/image`."""
    arrays = {
        f"{number}/inputs/{name}": array for number, (feed, _) in enumerate(samples) for name, array in feed.items()
    }
    if any(array.dtype.hasobject for array in arrays.values()):
        raise CalibrationError("the model takes text, which a page cannot hold as samples; leave out --calibration")
    return arrays


def _outputs(original: Model, samples: Sequence[Sample]) -> dict[str, Any]:
    """The float outputs of the original model on samples, by keys such as `0/outputs/logits`."""
    from riq_cli.runtime import DEFAULT_PROVIDER, Runtime, stacked_outputs
    from riq_cli.session import open_session

    session = open_session(original, [DEFAULT_PROVIDER], Runtime().options(patient=False, lean=False))
    return {
        f"{number}/outputs/{name}": array.astype("float64" if array.dtype == "float64" else "float32")
        for number, sample in enumerate(samples)
        for name, array in stacked_outputs(session, [sample]).items()
        if array.dtype.kind == "f"
    }
