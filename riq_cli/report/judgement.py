"""What a constraint's judge said, and what layout it led to, each in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from riq_cli.text import printable, real, shown

_VALUES = ("value", "limit", "holds")


def judgement(found: Any, brief: bool = False) -> str:
    """A judgement as manifests keep it, in words: of a loss, a score, or whatever facts a user's own holds.

    A `brief` one of a loss leaves out on what it was measured.
    """
    if not isinstance(found, Mapping):
        return "–"
    value, limit = real(found.get("value")), real(found.get("limit"))
    sign = "≤" if found.get("holds") is True else "ABOVE"
    if "loss_before" in found:
        change = "–" if value is None or limit is None else f"{100 * value:+.3g} % {sign} {100 * limit:g} %"
        text = f"loss {shown(found['loss_before'])} → {shown(found.get('loss_after'))} ({change})"
        if "accuracy_before" in found:
            text += f", accuracy {shown(found['accuracy_before'])} → {shown(found.get('accuracy_after'))}"
        if brief:
            return text
        return f"{text}, {shown(found.get('samples'), 'g')} samples; {printable(str(found.get('measure', '')))}"
    bound = f"{shown(value)} {sign} {shown(limit, 'g')}"
    if "score_before" in found:
        return f"score {shown(found['score_before'])} → {shown(found.get('score_after'))} (drop {bound})"
    facts = [f"{printable(str(key))} {_fact(fact)}" for key, fact in found.items() if key not in _VALUES]
    return ", ".join([bound, *facts])


def layers_at(layout: Any) -> str:
    """How many layers a fixed layout has at which width, as manifests keep it, in words."""
    if not isinstance(layout, Mapping):
        return "–"
    parts = [(shown(count, "g"), printable(str(width))) for width, count in layout.items()]
    return ", ".join(f"{count} layers in float" if width == "float" else f"{count} at {width} bits"
                     for count, width in parts)  # fmt: skip


def _fact(fact: Any) -> str:
    return shown(fact) if real(fact) is not None else printable(str(fact))
