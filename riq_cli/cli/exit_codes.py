"""Exit codes of every command; 0 is success, 2 wrong usage (click's own)."""

from riq_cli.errors import SettingsError, TargetError

FAILED = 1
USAGE = 2
TARGET = 3  # a target was not reached, a verification failed, or a gate was missed


def of(error: BaseException) -> int:
    """The exit code of an error that a user can cause."""
    if isinstance(error, TargetError):
        return TARGET
    return USAGE if isinstance(error, SettingsError) else FAILED
