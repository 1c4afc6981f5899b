"""What archives hold and how two of them differ. Standard library only, but for the pictures of a page."""

from riq_cli.report.difference import NUMBERS, difference
from riq_cli.report.facts import (
    command,
    facts,
    flag,
    judgement,
    layers_at,
    reservation,
    searched,
    top1_text,
    with_derived,
)
from riq_cli.report.page import SearchLog, measured_in_search, page
from riq_cli.report.totals import PARTS, SortKey, Totals, cells, fixed_rate, rows, totals
from riq_cli.report.verification import verification_page, worst_samples

__all__ = ["NUMBERS", "PARTS", "SearchLog", "SortKey", "Totals", "cells", "command", "difference", "facts",
           "fixed_rate", "flag", "judgement", "layers_at", "measured_in_search", "page", "reservation", "rows",
           "searched", "top1_text", "totals", "verification_page", "with_derived", "worst_samples"]  # fmt: skip
