"""`riq compress --batch`: one archive for each of many models.

Each is compressed in a process of its own, here or on a worker of a cluster.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from riq_cli.archive import Archive
from riq_cli.cli import constraints, fleet, job, options
from riq_cli.cli.help import FAILED, TARGET
from riq_cli.cli.paths import refuse_sources
from riq_cli.cli.progress import Wait
from riq_cli.cli.terminal import error_line, print_json, say
from riq_cli.errors import ArchiveError, Interrupted, OutputError
from riq_cli.executors import isolated
from riq_cli.files import check_output
from riq_cli.remote import is_url, local, without_query
from riq_cli.text import counted, human_size, shown, times

if TYPE_CHECKING:
    from riq_cli.calibration import Calibration
    from riq_cli.model import Model
    from riq_cli.pipeline import Settings

_COLUMNS = re.compile(r"\s*\t\s*|\s{2,}")  # what separates the columns of a list; a blank alone may be in a name
_KILLED = "its process was killed, most often because memory ran out; give it more, or fewer --jobs"


@dataclass(frozen=True)
class Task:
    """A model of a batch, its samples, its archive, and what all models share: options of `job.prepared` and others."""

    model: str
    calibration: str | None
    archive: str
    force: bool
    resume: bool
    shared: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a model: its archive, one that was there already, or an exit code and what is wrong.

    The checkpoint of an archive is there until the archive is written.
    """

    archive: Archive | None
    status: Literal["compressed", "present", "missed", "failed"]
    checkpoint: str | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


def compress_batch(
    batch: str,
    calibration: str | None,
    folder: str | None,
    workers: int,
    scheduler: str | None,
    force: bool,
    resume: bool,
    as_json: bool,
    quiet: bool,
    shared: Mapping[str, Any],
) -> None:
    """Compress every model of a batch, and say what came out.

    Args:
        batch: a folder of models, or a list of them.
        calibration: samples of those that the list gives none for; {folder} and {stem} are of the model.
        folder: where the archives go.
        workers: models at the same time, on this machine.
        scheduler: of the cluster whose workers compress instead; None: this machine does.
        force: replace archives of other models, samples or settings; those of the same are kept in any case.
        resume: go on with models that had begun from their checkpoints.
        as_json: print JSON on stdout.
        quiet: print errors only.
        shared: options that all models share, see `job.prepared`.

    Raises:
        UsageError: the options do not go together, or the list is none.
        Exit: with 1 if a model failed, else with 3 if one missed its target.
        RiqError: there is no such cluster, or it has gone; archives of models that were done are written.
    """
    if folder is None or folder == "-":
        raise click.UsageError("--batch needs -o FOLDER, where the archives go")
    tasks = _tasks(batch, calibration, Path(folder), force, resume, shared)
    _check_settings(shared)
    for task in tasks:
        Path(task.archive).parent.mkdir(parents=True, exist_ok=True)
        check_output(task.archive, overwrite=True)
    rows: dict[str, dict[str, Any]] = {}
    wait = Wait("compressing models", quiet)
    try:
        with wait, contextlib.closing(_outcomes(tasks, workers, scheduler)) as outcomes:
            began, present = time.monotonic(), 0
            _tell(wait, 0, len(tasks), 0.0)
            for task, outcome in outcomes:
                outcome = _saved(task, outcome)
                rows[task.model] = _row(task, outcome)
                present += outcome.status == "present"
                _tell(wait, len(rows) - present, len(tasks) - present, time.monotonic() - began)
                with wait.hidden():
                    _say(task, outcome, rows[task.model], quiet)
    except Interrupted as error:
        done = f"{len(rows)} of {counted(len(tasks), 'model')}"
        begun = "" if resume else ", and with --resume within those that had begun"
        message = f"interrupted after {done}; the same command goes on with the others{begun}"
        raise Interrupted(error.number, message) from error
    in_order = [rows[task.model] for task in tasks]
    whole = fleet.sums([row for row in in_order if "archive_bytes" in row])
    counts = {status: sum(row["status"] == status for row in in_order) for status in ("present", "missed", "failed")}
    if as_json:
        print_json({"archives": in_order, "totals": whole | counts})
    elif not quiet:
        *lines, summed = fleet.text(in_order, whole)
        others = "".join(f"; {count} {status}" for status, count in counts.items() if count)
        say("", *lines, summed + others, err=True)
    if counts["failed"] or counts["missed"]:
        raise click.exceptions.Exit(FAILED if counts["failed"] else TARGET)


# ---- what there is to do ----


def _tasks(
    batch: str, calibration: str | None, folder: Path, force: bool, resume: bool, shared: Mapping[str, Any]
) -> list[Task]:
    tasks: dict[str, Task] = {}
    for model, place, samples in _listed(Path(batch)):
        archive = str(folder / place.with_suffix(".riqz"))
        if archive in tasks:
            raise click.UsageError(f"{batch}: {tasks[archive].model} and {model} both become {archive}")
        settings = dict(shared["settings"])
        settings["labels"] = _filled(settings["labels"], model)
        samples = samples or _filled(calibration, model)
        tasks[archive] = Task(model, samples, archive, force, resume, {**shared, "settings": settings})
    if not tasks:
        raise click.UsageError(f"{batch}: holds no model (*.onnx)")
    return list(tasks.values())


def _listed(batch: Path) -> list[tuple[str, Path, str | None]]:
    """Each model, where its archive goes below the folder of all, and its samples if the list names them.

    Paths of a list are relative to its folder.
    """
    if batch.is_dir():
        return [(str(path), path.relative_to(batch), None) for path in sorted(batch.rglob("*.onnx")) if path.is_file()]
    try:
        lines = batch.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise click.UsageError(f"{batch}: neither a folder nor a list of models; write a path in each line") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        model, *samples = map(local, _COLUMNS.split(line.strip()))
        place = Path(without_query(model).partition("://")[2] if is_url(model) else model)
        place = place.relative_to(place.anchor)
        if len(samples) > 1 or ".." in place.parts:
            raise click.UsageError(
                f"{batch}: line {number}: write MODEL, or MODEL and its samples with a tab or two blanks between them; "
                "no .. in MODEL, whose path its archive keeps"
            )
        model = model if is_url(model) else str(batch.parent / model)
        found.append((model, place, _beside(batch, samples[0]) if samples else None))
    return found


def _beside(batch: Path, samples: str) -> str:
    """Samples of a list: a path relative to its folder, a URL, or module:callable."""
    path = batch.parent / samples
    return samples if ":" in samples and not path.exists() else str(path)


def _filled(pattern: str | None, model: str) -> str | None:
    """A path with the folder and the name of a model in it."""
    folder, name = os.path.split(without_query(model) if is_url(model) else model)
    return pattern and pattern.replace("{folder}", folder or ".").replace("{stem}", Path(name).stem)


def _check_settings(shared: Mapping[str, Any]) -> None:
    """Return nothing if the options go together, as far as that is known without a model.

    Raises:
        UsageError, SettingsError: they do not.
    """
    given = dict(shared["settings"])
    options.taken(given, options.IMAGES)
    asked = options.taken(given, constraints.OPTIONS)
    if asked.keys() <= {"margin"}:  # a constraint may need labels of each model
        job.wanted_settings(shared["preset"], given, None, asked.get("margin"))


# ---- what is done, in a process of its own ----


def _outcomes(
    tasks: Sequence[Task], workers: int, scheduler: str | None
) -> Generator[tuple[Task, Outcome], None, None]:
    """Each task with its outcome, as soon as there is one."""
    if scheduler is None:
        with contextlib.closing(isolated(_compressed, tasks, workers)) as found:
            for task, outcome in found:
                yield task, outcome or Outcome(None, "failed", error=_KILLED)
        return
    from riq_cli.cluster import KILLED, cluster

    with cluster(scheduler) as found:
        for task, outcome in found.finished(partial(_compressed, folder=os.getcwd()), tasks):
            yield task, outcome or Outcome(None, "failed", error=KILLED)


def _compressed(task: Task, folder: str = ".") -> Outcome:
    """The archive of a model, or what is wrong; paths are relative to the folder."""
    from riq_cli.cli.commands import failure

    warnings: list[str] = []
    began = time.monotonic()
    try:
        found = _archive(task, folder, warnings)
    except Exception as error:
        code, message = failure(error)
        return Outcome(None, "missed" if code == TARGET else "failed", error=message, warnings=tuple(warnings))
    return replace(found, warnings=tuple(warnings), seconds=time.monotonic() - began)


def _archive(task: Task, folder: str, warnings: list[str]) -> Outcome:
    path = str(Path(folder, task.archive))
    sources = (task.model, task.calibration, *constraints.files(task.shared["settings"]))
    refuse_sources((path,), [source and job.seen_from(folder, source) for source in sources])
    model, data, wanted = job.prepared_from(folder, task.model, task.calibration, **task.shared)
    refuse_sources((path,), model.external_files)
    if Path(path).exists():
        archive = _same(path, model, data, wanted)
        if archive is not None:
            return Outcome(archive, "present")
        if not task.force:
            raise OutputError(
                f"{task.archive}: exists already, and is not of this model, these samples and settings; use --force to "
                "replace it"
            )
    with job.resumable(
        path, job.checkpoint_path(path, wanted.k, warnings.append), task.resume, warnings.append
    ) as checkpoint:
        archive = job.made(model, data, wanted, None, warnings.append, checkpoint)
        return Outcome(archive, "compressed", str(checkpoint.path) if checkpoint.is_there else None)


def _same(path: str, model: Model, data: Calibration | None, wanted: Settings) -> Archive | None:
    """The archive in a file, if it is of this model, these samples and settings."""
    from riq_cli.calibration import Calibration, digest

    try:
        archive = Archive.open(path)
    except ArchiveError:
        return None
    manifest = archive.manifest
    if model.source is None or manifest.source != asdict(model.source) or manifest.settings != wanted.recorded():
        return None
    samples = (data or Calibration.random()).samples(model.inputs, wanted.dims, wanted.batch_size)
    made_with = manifest.calibration.get("sha256", digest(samples))  # nothing is measured without layers to code
    return archive if made_with == digest(samples) else None


# ---- what is said ----


def _saved(task: Task, outcome: Outcome) -> Outcome:
    """The outcome, after its archive was written and its checkpoint removed."""
    if outcome.status == "compressed" and outcome.archive is not None:
        try:
            outcome.archive.save(task.archive, task.force)
        except OutputError as error:
            again = f"; --resume goes on from {outcome.checkpoint}" if outcome.checkpoint else ""
            return replace(outcome, archive=None, status="failed", error=f"{error}{again}")
        if outcome.checkpoint is not None:
            Path(outcome.checkpoint).unlink(missing_ok=True)
    return outcome


def _row(task: Task, outcome: Outcome) -> dict[str, Any]:
    """What --json prints of a model."""
    row = {"model": task.model, "archive": task.archive, "status": outcome.status}
    if outcome.archive is None:
        return row | {"error": outcome.error}
    seconds = {"seconds": round(outcome.seconds, 3)} if outcome.status == "compressed" else {}
    return row | seconds | fleet.row(outcome.archive)


def _tell(wait: Wait, done: int, total: int, seconds: float) -> None:
    """Show how many models are done of those that had no archive; the first says how long all will take."""
    from riq_cli.pipeline.progress import Expected, Progress

    expected = (Expected("models", seconds * total),) if done == 1 else ()
    wait(Progress("models", done, total, expected=expected))


def _say(task: Task, outcome: Outcome, row: Mapping[str, Any], quiet: bool) -> None:
    """A line for each warning, and one for the outcome."""
    if not quiet:
        for warning in outcome.warnings:
            say(f"riq: warning: {task.model}: {warning}", err=True)
    if outcome.archive is None:
        error_line(f"{task.model}: {outcome.error}")
    elif not quiet and outcome.status == "present":
        say(f"{task.archive}: is there already", err=True)
    elif not quiet:
        ratio = f", {times(row['ratio'])}" if row["ratio"] else ""
        size = human_size(row["archive_bytes"])
        say(f"{task.archive}: {size}{ratio}, deviation {shown(row['deviation'])}; {row['seconds']:.1f} s", err=True)
