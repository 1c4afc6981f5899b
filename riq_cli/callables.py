"""Functions of the user's own, named `module:name` on the command line."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from riq_cli.errors import Interrupted, RiqError
from riq_cli.text import first_line


def imported(text: str, error: type[RiqError]) -> Any:
    """What `module:name` names; modules of the working directory are found too.

    Args:
        text: a module's name, a colon, and the name of something in it.
        error: raised for whatever goes wrong in the module, which is the user's own.
    """
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        with blamed(f"{text}: the module cannot be imported", error):
            loaded = importlib.import_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(loaded, name):
        raise error(f"{text}: the module has no {name!r}")
    return getattr(loaded, name)


@contextlib.contextmanager
def blamed(text: str, error: type[RiqError]) -> Iterator[None]:
    """A block of the user's own code: whatever it raises, even to leave Python, is an error; interruptions stay.

    Args:
        text: what the message begins with.
        error: its class.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise
    except BaseException as reason:
        raise error(f"{text}: {type(reason).__name__}: {first_line(reason)}") from reason
