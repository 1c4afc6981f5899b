"""Constraints: what users care about, told from a model's outputs or from a session that runs it."""

from riq_cli.constraint.choice import FlipsConstraint, KLConstraint
from riq_cli.constraint.constraint import Constraint, Judge, Judgement, check_margin
from riq_cli.constraint.loss import LossConstraint
from riq_cli.constraint.metric import MetricConstraint
from riq_cli.runtime import Candidate

__all__ = ["Candidate", "Constraint", "FlipsConstraint", "Judge", "Judgement", "KLConstraint", "LossConstraint",
           "MetricConstraint", "check_margin"]  # fmt: skip
