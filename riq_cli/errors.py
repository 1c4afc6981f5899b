"""Everything that can go wrong for a reason a user can act on.

A message says what is wrong, where, and what to do about it. `cli` maps each class to an exit code, in one place.
"""


class RiqError(Exception):
    """Base of all errors that riq raises on purpose."""


class Interrupted(BaseException):
    """The process was asked to end, by the signal `number`; the message says what became of the output, if known.

    No KeyboardInterrupt: click would print an empty line for one.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class ModelError(RiqError):
    """The model cannot be read, understood or run."""


class CalibrationError(RiqError):
    """The calibration data cannot be read or does not fit the model's inputs."""


class OutputError(RiqError):
    """A file cannot be written: it exists, the folder is not writable, or the disk is full."""


class SettingsError(RiqError):
    """Options that contradict each other or the model."""


class FormatError(RiqError):
    """A format does not hold some layers, or onnxruntime does not run it."""


class CheckpointError(RiqError):
    """A file is no checkpoint, or that of another run of compress."""


class PointsError(RiqError):
    """A file does not hold the points of a sweep, or those of another model."""


class LogError(RiqError):
    """A file is not the log of a compression, or that of another archive."""


class ConstraintError(RiqError):
    """Labels or a metric that do not fit the model, or that nothing can be told from."""


class TargetError(RiqError):
    """The target was not reached; `best` is the smallest deviation, or value of a constraint, that was measured."""

    def __init__(self, message: str, best: float) -> None:
        super().__init__(message)
        self.best = best


class ArchiveError(RiqError):
    """The archive cannot be decoded."""


class NotAnArchive(ArchiveError):
    """The file does not begin as a riq archive does."""


class UnsupportedArchive(ArchiveError):
    """The archive needs a newer riq."""


class CorruptArchive(ArchiveError):
    """The archive is damaged or was made to mislead."""


class LimitExceeded(ArchiveError):
    """Restoring would need more memory than the limit allows."""
