"""The computer that plays a host, the disks that it may write to, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Root:
    """A place that a host may write to. ``mounted``: a network mount, shared by the machines of one radar.

    ``reserve_bytes``: what steps leave free there. ``min_free_for_iq_bytes``: what antennas_iq leaves free there for rawacf.
    """

    path: str
    mounted: bool = False
    reserve_bytes: int = 0
    min_free_for_iq_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The computer that plays a host for a radar, and its limits."""

    name: str
    address: str
    port: int = 22
    user: str | None = None
    command: str = "dataflow"
    nas: Literal["mounted", "none"] = "mounted"
    bandwidth_kib_s: int | None = None
    read_limit_mib_s: int | None = None
    roots: dict[str, Root] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
