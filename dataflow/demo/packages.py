"""The Python packages that the demo needs besides the core, brought into its own folder where they are missing.

The core runs the radar computer; the demo plays site-linux and campus too. What those need is told by the extras of the
installed distribution, so there is one list of it.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata, util
from pathlib import Path

from dataflow.lib import check, command
from dataflow.lib.errors import BadConfig

FOLDER = ".packages"
TIME_LIMIT_S = 600.0
_EXTRAS = ("site", "campus")
HOSTS = ("borealis", "site-linux", "campus")


def provide(folder: Path) -> None:
    """Return when everything can be imported; else install it below ``folder`` and start this program again from there.

    Raises:
        BadConfig: pip cannot bring the packages.
    """
    missing = [
        module
        for module in dict.fromkeys(module for host in HOSTS for module in check.MODULES[host])
        if util.find_spec(module) is None
    ]
    if not missing:
        return
    target = (folder / FOLDER).absolute()
    if str(target) in sys.path:
        raise BadConfig(f"{', '.join(missing)} cannot be imported, although installed in {target}: remove that folder, try again")
    wanted = _requirements()
    sys.stdout.write(f"The demo plays campus too and needs {', '.join(missing)}: pip brings them into {target}\n")
    sys.stdout.flush()
    finished = command.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, *wanted], timeout_s=TIME_LIMIT_S
    )
    if finished.returncode != 0:
        raise BadConfig(f"pip cannot install {' '.join(wanted)}: {finished.last_lines}")
    path = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    os.execve(sys.executable, [sys.executable, "-m", "dataflow", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path})


def _requirements() -> list[str]:
    """What the extras of the installed distribution ask for, each once."""
    lines = metadata.requires("dataflow") or []
    wanted = [line.partition(";")[0].strip() for line in lines if any(f'extra == "{extra}"' in line for extra in _EXTRAS)]
    return list(dict.fromkeys(wanted))
