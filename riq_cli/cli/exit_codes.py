"""Exit codes of every command; 0 is success, 2 wrong usage (click's own)."""

FAILED = 1
TARGET = 3  # a target was not reached, or a verification failed
INTERRUPTED = 130
