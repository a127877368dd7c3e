"""Where everything lies on a mirror: paths relative to the root of its store. ``tree`` is the top of the mirror there.

    <tree>/raw/YYYY/MM/<name>.rawacf.bz2            data
    <tree>/raw/YYYY/MM/YYYYMM.hashes                the list of that month
    <tree>/.config/master.hashes                    the list of the lists
    <tree>/.config/all_failed.txt                   what failed a check
    <tree>/.config/blocklist/*.txt                  names that must not come back

A month is six digits, ``YYYYMM``.
"""

from __future__ import annotations

import re

from dataflow.lib.names import Kind, Name

FIRST_MONTH = "200506"
"""The first month of rawacf data on any mirror; before that it is another format, which lies below ``dat``."""

EMPTY_BYTES = 14
"""A bzip2 stream of nothing has so many: a file that is not larger holds no data."""

_MONTH = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])", re.ASCII)


def is_month(text: str) -> bool:
    """Whether a text is a month, ``YYYYMM``."""
    return _MONTH.fullmatch(text) is not None


def is_published(name: Name | None) -> bool:
    """Whether a mirror takes files of such a name: compressed DMAP, since the format began."""
    return name is not None and name.kind is Kind.DMAP and month_of(name) >= FIRST_MONTH


def month_of(name: Name) -> str:
    """The month of the time in a name."""
    return f"{name.time:%Y%m}"


def data_folder(tree: str, month: str) -> str:
    """Where the data of a month lie, and their list."""
    return _joined(tree, "raw", month[:4], month[4:])


def data_path(tree: str, name: Name) -> str:
    """Where a file lies."""
    return f"{data_folder(tree, month_of(name))}/{name.text}"


def month_list(tree: str, month: str) -> str:
    """The list of a month."""
    return f"{data_folder(tree, month)}/{month}.hashes"


def master_line(month: str) -> str:
    """How the list of a month is called in the master list."""
    return f"./raw/{month[:4]}/{month[4:]}/{month}.hashes"


def master_lines(month: str) -> tuple[str, str]:
    """How it may be called there: as we write it, and as others do."""
    return master_line(month), f"./raw/{month}.hashes"


def master_list(tree: str) -> str:
    """The list of the lists."""
    return _joined(tree, ".config", "master.hashes")


def failed_list(tree: str) -> str:
    """The list of what failed a check."""
    return _joined(tree, ".config", "all_failed.txt")


def blocklist(tree: str) -> str:
    """The folder of the lists of names that must not come back."""
    return _joined(tree, ".config", "blocklist")


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
