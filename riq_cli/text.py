"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from html import escape

# Letters and marks without a shape of their own; Python takes them for printable (Default_Ignorable_Code_Point).
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


# What comes out of a file is untrusted. It goes through one of the next three functions, one for each kind of output.


def printable(text: str) -> str:
    """Text for a terminal, in one line: what is not seen, or moves what is seen, becomes an escape such as `\\x1b`."""
    return "".join(c if c.isprintable() and not _INVISIBLE.match(c) else _escaped(c) for c in text)


def code_span(text: str) -> str:
    """Text for markdown, as a code span, where no markup, link, image or mention comes to life."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def html_text(text: str) -> str:
    """Text for HTML, as content of an element or in the quotes of an attribute."""
    return escape(printable(text), quote=True)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shortened(text: str, width: int = 60) -> str:
    """A printable name of at most `width` characters: the middle of a long one is left out."""
    text = printable(text)
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"


def fingerprint(sha256: str) -> str:
    """The beginning of a SHA-256 that is enough to distinguish files, or sets of samples: 16 hex digits."""
    return sha256[:16]


def counted(number: int | None, noun: str) -> str:
    """A number of things: `1 probe`, `2,000 probes`, `– probes` where it is not known."""
    return f"{number} {noun}" if number == 1 else f"{shown(number, ',')} {noun}s"


def standard_errors(number: float) -> str:
    """A margin in words: `1 standard error`, `1.65 standard errors`."""
    return f"{number:.3g} standard error{'' if number == 1 else 's'}"


def times(ratio: float) -> str:
    """How large an archive is beside its source, by the ratio of their bytes: `×23.24 smaller`, `×4.17 larger`."""
    return f"×{ratio:.2f} smaller" if ratio >= 1 else f"×{1 / ratio:.2f} larger"


def first_line(error: BaseException) -> str:
    """What an error of another package says, for a message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def human_size(size: float) -> str:
    """A size in bytes as people read it: `712 B`, `34.6 kB`, `4.75 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 1000 else f"{size:.3g} {unit}"


def finite(value: float) -> float | None:
    """The value for JSON, which has no infinity: None."""
    return value if math.isfinite(value) else None


def shown(value: float | None, style: str = ".4g") -> str:
    """A number in a format's style, `–` where there is none."""
    return "–" if value is None else format(value, style)


def estimate(mean: float, error: float | None) -> str:
    """A mean of samples with its standard error, `0.0092 ± 0.0011`; the mean alone where no error is known."""
    return shown(mean) if error is None else f"{shown(mean)} ± {shown(error, '.2g')}"


def relative_error(deviation: float, error: float | None) -> tuple[float, float | None]:
    """The relative error √(2D) of outputs at a deviation D, and its standard error by the delta method.

    Two vectors of length 1 at a cosine distance D are √(2D) apart.

    Args:
        deviation: the mean D, >= 0.
        error: its standard error; None where it is not known.
    """
    relative = math.sqrt(2 * deviation)
    return relative, error / relative if error is not None and relative else None


def deviation_text(mean: float, error: float | None, bound: str = "") -> str:
    """A mean deviation, what bounds it, and its relative error: `0.0092 ± 0.0011 ≤ 0.01 (relative error 14 %)`."""
    relative, _ = relative_error(mean, error)
    return f"{estimate(mean, error)}{bound} (relative error {percent(relative)})"


def percent(share: float) -> str:
    """A share in percent, with two digits below one half: `0.74 %`, `14 %`, `96.9 %`; only 1 is `100 %`."""
    value = 100 * share
    return f"{value:.2g} %" if value < 50 else f"{min(value, 99.9) if value < 100 else value:.3g} %"


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a probability by Wilson: its ends are z of their own standard errors from the share.

    Args:
        share: of the trials that came out so, in 0 … 1.
        count: of independent trials, >= 1.
        z: by default that of a 95 % interval.
    """
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def interval_text(share: float, count: int) -> str:
    """The 95 % interval of a probability in words: `95 % interval 89.3 to 99.1 %`."""
    low, high = wilson(share, count)
    return f"95 % interval {100 * low:.3g} to {100 * high:.3g} %"


def tick(value: float) -> str:
    """A round number as axes show it: `0.002`, `−500`, `2·10⁻⁵`."""
    sign = "−" if value < 0 else ""
    size = abs(value)
    if size == 0 or 9e-5 < size < 99999.5:
        return f"{sign}{size:.6g}"
    mantissa, exponent = f"{size:.6e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return sign + (power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}")
