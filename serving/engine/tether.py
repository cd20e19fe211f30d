"""Becomes another program that the kernel ends with its parent: `python tether.py COMMAND…`. Needs the standard library alone.

A supervisor that is killed cannot end its engine, and an orphan would hold port and memory against the next one. In a container
the end of its first process ends them all; a process on a plain machine asks the kernel for the same (PR_SET_PDEATHSIG, which
outlives exec). Asking from inside the new process is safe where forking hooks of a threaded parent are not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux's prctl(2) with one argument.

    Raises:
        OSError: the kernel refuses.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    """Entry point; does not return."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
