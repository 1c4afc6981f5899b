"""What `riq verify` measured as one HTML page, in the look of the report's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from riq_cli.report import figures
from riq_cli.report.document import cards, document, key_of, table
from riq_cli.report.facts import judgement, top1_text
from riq_cli.text import counted, estimate, html_text, percent, relative_error, shortened, shown, standard_errors

_WORST = 20  # samples in the table


def verification_page(found: Mapping[str, Any], samples: Sequence[float]) -> str:
    """The page about what was verified.

    Args:
        found: the document that `riq verify --json` prints.
        samples: the deviation of each sample, in order, where the mean is largest; NaN where it is undefined.
    """
    name = PurePath(found["archive"]).name
    sections = (
        f'<p class="soft">Beside the outputs of <code>{html_text(found["against"])}</code></p>\n',
        cards(_cards(found, samples)),
        _tensors(found),
        _samples(found, samples),
    )
    return document(f"{name}: riq verify", name, sections)


def worst_samples(samples: Sequence[float], most: int) -> list[tuple[int, float]]:
    """The numbers of so many samples of the largest deviations, counted from 0, and these; NaN is none."""
    defined = [(number, value) for number, value in enumerate(samples) if not math.isnan(value)]
    return sorted(defined, key=lambda pair: (-pair[1], pair[0]))[:most]


def _cards(found: Mapping[str, Any], samples: Sequence[float]) -> list[tuple[str, str, str]]:
    bound, margin = found["bound"], found["margin"]
    within = "within" if found["within"] else "ABOVE"
    limit = "no bound on the deviation" if bound is None else f"deviation {within} its bound of {bound:g}"
    if bound is not None and margin:
        limit += f", with a margin of {standard_errors(margin)}"
    boxes = [("verdict", _verdict(found["holds"]), limit)]
    if "deviation" in found:
        mean, error = found["deviation"], found["standard_error"]
        count = counted(sum(not math.isnan(value) for value in samples), "sample")
        note = f"mean of {count}" if error is None else f"± {error:.2g}; mean of {count}"
        boxes += [
            ("deviation", f"{mean:.3g}", note),
            ("relative error", percent(relative_error(mean, None)[0]), "√(2 · deviation)"),
            ("worst sample", f"{found['worst']:.3g}", f"{_times(found['worst'], mean)} times the mean"),
        ]
    for top1 in found.get("top1", ()):
        text = f"{top1_text(top1, brief=True)} at {shortened(top1['name'])}"
        boxes.append(("top-1 kept", percent(top1["kept"] / top1["choices"]), html_text(text)))
    if "constraint" in found:
        judged = found["constraint"]
        boxes.append(("constraint", _verdict(judged["holds"]), html_text(judgement(judged))))
    return boxes


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _times(value: float, mean: float) -> str:
    return f"{value / mean:.1f}" if 0 < mean < math.inf else "–"


def _tensors(found: Mapping[str, Any]) -> str:
    if not found.get("measured"):
        return "<p>No float output was measured.</p>\n"
    rows = [
        (
            f'<span class="name">{html_text(shortened(tensor["name"]))}</span>',
            estimate(tensor["mean"], tensor["standard_error"]),
            percent(relative_error(tensor["mean"], None)[0]),
            shown(tensor["worst"]),
            f"{tensor['samples']:,}",
        )
        for tensor in found["measured"]
    ]
    header = ("tensor", "deviation", "relative error", "worst sample", "samples")
    return f"<h2>At each tensor</h2>\n{table(header, rows, left=1)}"


def _samples(found: Mapping[str, Any], samples: Sequence[float]) -> str:
    worst = worst_samples(samples, _WORST)
    if not worst:
        return ""
    largest = max(found["measured"], key=lambda tensor: tensor["mean"])["name"]
    bound, mean = found["bound"], found["deviation"]
    rows = [
        (f"{number}", f"{value:.4g}", percent(relative_error(value, None)[0]), _times(value, mean))
        for number, value in worst
    ]
    header = ("sample", "deviation", "relative error", "times the mean")
    key = [(figures.line("mean", 0, 8, 22, 8), f"mean {mean:.3g}")]
    if bound:
        key.append((figures.line("target", 0, 8, 22, 8), f"bound {bound:g} on the mean"))
    picture = figures.deviations([value for value in samples if not math.isnan(value)], mean, bound)
    drawn = f'<figure class="trace">{picture}{key_of(key)}</figure>\n' if picture else ""
    where = f'<span class="name">{html_text(shortened(largest))}</span>'
    return (
        f'<h2>Each sample</h2>\n<p class="soft">Deviations at {where}, where their mean is largest.</p>\n{drawn}'
        f'<h2>The worst samples</h2>\n<p class="soft">Numbered from 0, in the order of the data; files of a folder by '
        f"their names.</p>\n{table(header, rows, left=0)}"
    )
