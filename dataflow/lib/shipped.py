"""Where the files lie that come with the program but are not Python: config.yaml, daemons/ and services/.

In a checkout they lie beside the package. A wheel carries them as data files, and pip puts those into ``share/dataflow``
below the folder that it installs into (a virtual environment, ``~/.local``, ``/usr/local``, a ``--prefix`` or a
``--target``), which is always somewhere above the package.
"""

from __future__ import annotations

from pathlib import Path

from dataflow.lib.errors import BadConfig

_PACKAGE = Path(__file__).parents[1]


def path(relative: str) -> Path:
    """The path of a shipped file, such as ``config.yaml`` or ``daemons/campus.daemon``.

    Raises:
        BadConfig: this installation does not have it.
    """
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / relative).is_file():
        return checkout / relative
    for above in (checkout, *checkout.parents):
        found = above / "share/dataflow" / relative
        if found.is_file():
            return found
    raise BadConfig(
        f"{relative} did not come with the dataflow in {_PACKAGE}: install dataflow anew with pip, or name the file yourself "
        "(the configuration: --config FILE)"
    )
