"""What archives hold and how two of them differ, without decoding a layer. Standard library only."""

from riq_cli.report import codes
from riq_cli.report.difference import Change, Difference, Status, difference
from riq_cli.report.judgement import judgement, layers_at, reservation
from riq_cli.report.page import page
from riq_cli.report.reproduction import command, flag
from riq_cli.report.totals import SortKey, Totals, fixed_rate, rows, totals

__all__ = ["Change", "Difference", "SortKey", "Status", "Totals", "codes", "command", "difference", "fixed_rate",
           "flag", "judgement", "layers_at", "page", "reservation", "rows", "totals"]  # fmt: skip
