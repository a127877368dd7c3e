"""``dataflow``, by its name or as ``python -m dataflow``.

A chain starts this for every step and every request. Python's search for garbage goes through what is being imported again and
again, twice more at the end, and finds none: a fifth of such a start. So there is none meanwhile, nor at the end.
"""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Run one command; its exit code."""
    gc.disable()
    from dataflow import cli

    gc.enable()
    code = cli.main()
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(main())
