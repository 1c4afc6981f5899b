"""How an archive was made and what was measured, in words, and as a command. All that it tells is untrusted text."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from riq_cli.archive import Archive, Manifest
from riq_cli.text import (
    counted,
    deviation_text,
    fingerprint,
    interval_text,
    percent,
    printable,
    relative_error,
    shortened,
    shown,
    standard_errors,
    wilson,
)

_VALUES = ("value", "limit", "holds")
_FLAGS = {"effort": "--preset", "outputs": "--output", "dims": "--dim"}  # settings whose option has another name
DEFAULT_PRESET = "small"
_PRESETS: dict[str, dict[str, Any]] = {  # what archives record of the presets of riq compress; the first that fits
    "paper": {"allocation": "norm", "search": "algorithm1", "epsilon": 0.01, "holdout": 0.0},
    "uniform": {"allocation": "uniform", "epsilon": 0.0, "holdout": 0.0},
    "fast": {"allocation": "norm"},
    "balanced": {"effort": "balanced"},
    "smallest": {"effort": "smallest"},
    "deployable": {"deployable": True},
    DEFAULT_PRESET: {},
}


def facts(archive: Archive) -> list[tuple[str, str]]:
    """What was measured and how the archive was made, as names and texts; nothing where it tells nothing."""
    manifest = archive.manifest
    result, calibration = manifest.result, manifest.calibration
    if not result:
        return []
    found = []
    if "constraint" in result:
        found.append(("constraint", judgement(result["constraint"])))
    if "constraint_holdout" in result:
        found.append(("constraint, held out", judgement(result["constraint_holdout"])))
    for tensor in result.get("measured", ()):
        mean = deviation_text(tensor["mean"], tensor.get("standard_error"))
        found.append(("deviation", f"{mean}, worst sample {shown(tensor['worst'])} at {shortened(tensor['name'])}"))
    if "holdout" in result:
        mean = deviation_text(result["holdout"], result.get("holdout_standard_error"))
        found.append(("held out", f"{mean} on {counted(result.get('holdout_samples'), 'sample')}"))
    for key, name in (("top1", "top-1"), ("holdout_top1", "top-1, held out")):
        for one in result.get(key, ()):
            found.append((name, f"kept on {top1_text(one)} at {shortened(one['name'])}"))
    kind = calibration.get("kind", "–")
    found.append(
        (
            "calibration",
            f"{counted(calibration.get('samples'), 'sample')}, {kind}{reservation(kind)}, "
            f"SHA-256 {fingerprint(calibration.get('sha256', '–'))}…",
        )
    )
    found.append(("search", searched(result)))
    if "layout" in result:
        found.append(("layout", layers_at(result["layout"])))
    settings = ", ".join(
        f"{key} = {' '.join(itertools.chain(*_values(value))) or value}"
        for key, value in named(manifest.settings).items()
        if value is not None
    )
    return [*found, ("settings", f"{settings}; {manifest.creator}")]


def top1_text(found: Mapping[str, Any], brief: bool = False) -> str:
    """How often the top-1 of a tensor was kept, in words: `62 of 64 choices, 96.9 % (95 % interval 89.3 to 99.1 %)`.

    The interval is that of as many independent choices: those of one sample, as in a sequence, are not. A `brief` text
    leaves out the share.
    """
    samples, choices, kept = found["samples"], found["choices"], found["kept"]
    of = "" if samples == choices else f" in {counted(samples, 'sample')}"
    share = kept / choices
    share_text = "" if brief else f", {percent(share)}"
    interval = interval_text(share, found.get("effective", samples))
    return f"{kept:,} of {counted(choices, 'choice')}{of}{share_text} ({interval})"


def with_derived(result: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's result for JSON, with what follows from it: relative errors, shares of top-1 and their intervals."""

    def errors(found: Mapping[str, Any], mean: str, error: str, prefix: str = "") -> dict[str, Any]:
        if mean not in found:
            return {}
        relative, standard_error = relative_error(found[mean], found.get(error))
        return {f"{prefix}relative_error": relative, f"{prefix}relative_error_standard_error": standard_error}

    def shares(found: Mapping[str, Any]) -> dict[str, Any]:
        share = found["kept"] / found["choices"]
        return {**found, "share": share, "interval": list(wilson(share, found.get("effective", found["samples"])))}

    derived = errors(result, "deviation", "standard_error")
    derived |= errors(result, "holdout", "holdout_standard_error", "holdout_")
    if "measured" in result:
        derived["measured"] = [tensor | errors(tensor, "mean", "standard_error") for tensor in result["measured"]]
    derived |= {key: list(map(shares, result[key])) for key in ("top1", "holdout_top1") if key in result}
    return {**result, **derived}


def named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an archive with the preset in place of what it sets, and first; as they are without a preset."""
    if not settings or ("k" in settings and "allocation" not in settings):
        return dict(settings)
    name, preset = next((name, preset) for name, preset in _PRESETS.items() if preset.items() <= settings.items())
    return {"preset": name} | {key: value for key, value in sorted(settings.items()) if key not in preset}


def searched(result: Mapping[str, Any]) -> str:
    """The solution of a search and what it took, in words."""
    counts = ", ".join(
        counted(number, noun)
        for noun, number in (("evaluation", result.get("evaluations")), ("probe", result.get("probes")))
    )
    return (
        f"{result.get('allocation', '–')} allocation, {result.get('rounding', 'nearest')} rounding, "
        f"k = {shown(result.get('k'), '.5g')}, epsilon = {shown(result.get('epsilon'), 'g')}; {counts}"
    )


def judgement(found: Mapping[str, Any], brief: bool = False) -> str:
    """A constraint's judgement in words: of a loss, flips, a divergence, a score, or whatever facts a user's own holds.

    A `brief` one leaves out where and on what it was measured.
    """
    value, limit, margin = found["value"], found["limit"], found.get("margin")
    added = ""
    if isinstance(margin, int | float) and margin:
        added = f" with {standard_errors(margin)}"
    sign = "≤" if found.get("holds") else "ABOVE"
    where = "" if brief or "tensor" not in found else f" at {shortened(str(found['tensor']))}"
    if "loss_before" in found:
        change = "–" if value is None or limit is None else f"{100 * value:+.3g} %{added} {sign} {100 * limit:g} %"
        text = f"loss {_fact(found['loss_before'])} → {_fact(found.get('loss_after'))} ({change})"
        if "accuracy_before" in found:
            text += f", accuracy {_fact(found['accuracy_before'])} → {_fact(found.get('accuracy_after'))}"
        return text if brief else f"{text}, {_counted(found.get('samples'), 'sample')}; {found.get('measure', '')}"
    if "changed" in found:
        low, high = (_percent(found.get(name)) for name in ("low", "high"))
        return (
            f"top-1{where} changed on {_fact(found['changed'])} of {_counted(found.get('choices'), 'choice')} "
            f"({_percent(value)}{added} {sign} {_percent(limit)}; 95 % interval {low} to {high})"
        )
    bound = f"{shown(value)}{added} {sign} {shown(limit, 'g')}"
    if "kl" in found:
        error = found.get("standard_error")
        kl = _fact(found["kl"]) if error is None else f"{_fact(found['kl'])} ± {_fact(error)}"
        return f"KL divergence{where} {kl} nats ({bound}), {_counted(found.get('choices'), 'choice')}"
    if "score_before" in found:
        return f"score {_fact(found['score_before'])} → {_fact(found.get('score_after'))} (drop {bound})"
    return ", ".join([bound, *(f"{key} {_fact(fact)}" for key, fact in found.items() if key not in _VALUES)])


def _percent(fact: Any) -> str:
    """A fact that should be a share, in percent."""
    return percent(fact) if isinstance(fact, int | float) else _fact(fact)


def _fact(fact: Any) -> str:
    """A fact that may be a number, a text, true, false, or not known."""
    if isinstance(fact, int) and not isinstance(fact, bool):
        return f"{fact:,}"
    return shown(fact) if fact is None or isinstance(fact, float) else str(fact)


def _counted(fact: Any, noun: str) -> str:
    """A number of things that may not be a number."""
    return f"{_fact(fact)} {noun}{'' if fact == 1 else 's'}"


def reservation(kind: Any) -> str:
    """What a deviation is worth by the kind of its samples: nothing to add, or that random ones promise nothing."""
    return ": no promise for real data" if kind == "random" else ""


def layers_at(layout: Mapping[str, int]) -> str:
    """How many layers a fixed layout has at which width, in words."""
    return ", ".join(
        f"{counted(count, 'layer')} {'in float' if width == 'float' else f'at {width} bits'}"
        for width, count in layout.items()
    )


def command(manifest: Manifest) -> str:
    """The `riq compress` command line that makes an archive again from the same model and samples.

    An archive holds no names of files: MODEL, DATA and LABELS stand for them. Nor does it hold the options of images.
    """
    words = ["riq", "compress", "MODEL"]
    if manifest.calibration.get("kind", "random") != "random":
        words += ["--calibration", "DATA"]
    if manifest.settings.get("objective") == "loss":
        words += ["--labels", "LABELS"]
    for key, value in named(manifest.settings).items():
        if (key, value) == ("preset", DEFAULT_PRESET):
            continue
        for text in _values(value):
            words += [flag(key), *text]
    return " ".join(shlex.quote(printable(word)) for word in words)


def flag(setting: str) -> str:
    """The option of the command line that sets a setting: `--max-bits` for `max_bits`."""
    return _FLAGS.get(setting, f"--{setting.replace('_', '-')}")


def _values(value: Any) -> Iterator[list[str]]:
    """What follows the option, each time that it has to be given."""
    if isinstance(value, dict):
        yield from ([f"{key}={item}"] for key, item in value.items())
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)
    elif value is True:
        yield []
    elif value is not None and value is not False:
        yield [str(value)]
