"""What a constraint's judge said, and what layout it led to, in words. Facts and names in them are untrusted text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from riq_cli.text import shown

_VALUES = ("value", "limit", "holds")


def judgement(found: Mapping[str, Any], brief: bool = False) -> str:
    """A judgement as manifests keep it, in words: of a loss, a score, or whatever facts a user's own holds.

    A `brief` one of a loss leaves out on what it was measured.
    """
    value, limit = found["value"], found["limit"]
    sign = "≤" if found.get("holds") else "ABOVE"
    if "loss_before" in found:
        change = "–" if value is None or limit is None else f"{100 * value:+.3g} % {sign} {100 * limit:g} %"
        text = f"loss {_fact(found['loss_before'])} → {_fact(found.get('loss_after'))} ({change})"
        if "accuracy_before" in found:
            text += f", accuracy {_fact(found['accuracy_before'])} → {_fact(found.get('accuracy_after'))}"
        if brief:
            return text
        return f"{text}, {_fact(found.get('samples'))} samples; {found.get('measure', '')}"
    bound = f"{shown(value)} {sign} {shown(limit, 'g')}"
    if "score_before" in found:
        return f"score {_fact(found['score_before'])} → {_fact(found.get('score_after'))} (drop {bound})"
    facts = [f"{key} {_fact(fact)}" for key, fact in found.items() if key not in _VALUES]
    return ", ".join([bound, *facts])


def reservation(kind: Any) -> str:
    """What a deviation is worth by the kind of its samples: nothing to add, or that random ones promise nothing."""
    return ": no promise for real data" if kind == "random" else ""


def layers_at(layout: Mapping[str, int]) -> str:
    """How many layers a fixed layout has at which width, as manifests keep it, in words."""
    return ", ".join(
        f"{count} layers in float" if width == "float" else f"{count} at {width} bits"
        for width, count in layout.items()
    )


def _fact(fact: Any) -> str:
    """A fact that may be a number, a text, true, false, or not known."""
    return shown(fact) if fact is None or isinstance(fact, float) else str(fact)
