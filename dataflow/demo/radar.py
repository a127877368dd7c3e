"""What the simulated radars are: their sites, what a slice of an experiment asks for, and what may be wrong with an antenna.

The values are those of the radars themselves: locations from the SuperDARN hardware tables, pulse sequence and timing from
the eight-pulse common mode of Borealis.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dataflow.lib.errors import BadConfig

PULSES = (0, 14, 22, 24, 27, 31, 42, 43)
"""The pulse sequence, in units of ``TAU_US``."""
TAU_US = 1500
SAMPLE_US = 300
PULSE_US = 300
FIRST_RANGE_KM = 180
FIRST_RANGE_US = 1200.8307
RANGE_STEP_KM = 45
BEAMS = 16
BEAM_STEP_DEG = 3.24
CPIDS = range(-(2**15), 2**15)
"""What DMAP can hold."""

EXPERIMENTS = {151: "NormalScan", 157: "NormalSound", 191: "InterleavedScan", 3503: "Twofsound", 3800: "FullFOV"}


@dataclass(frozen=True, slots=True)
class Site:
    """A radar station: its three letters and where it stands (degrees, degrees, km above sea level)."""

    station: str
    latitude_deg: float
    longitude_deg: float
    altitude_km: float


SITES = {
    site.station: site
    for site in (
        Site("sas", 52.160, -106.530, 0.494),
        Site("pgr", 53.980, -122.590, 0.670),
        Site("inv", 68.414, -133.772, 0.050),
        Site("cly", 70.487, -68.504, 0.028),
        Site("rkn", 62.828, -92.113, 0.050),
    )
}


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """One slice of an experiment, which is one rawacf stream and, if asked for, one antennas_iq stream.

    ``beams_per_record`` is 1 for a scan (beam 0, 1, 2 ... record by record) and 16 for wide beam (all at once).

    Raises:
        BadConfig: on creation, for a CPID that DMAP cannot hold, or another number of beams.
    """

    slice_id: int = 0
    cpid: int = 151
    experiment_name: str = EXPERIMENTS[151]
    beams_per_record: int = 1
    with_interferometer: bool = True
    with_antennas_iq: bool = True
    ranges: int = 75
    frequency_khz: int = 10_500

    def __post_init__(self) -> None:
        check_cpid(self.cpid)
        if self.beams_per_record not in (1, BEAMS):
            raise BadConfig(f"slice {self.slice_id} has {self.beams_per_record} beams per record: a record holds 1 or {BEAMS}")


class FaultKind(StrEnum):
    """What is wrong with an antenna: nothing arrives; ten times the noise; gain and phase wander through the block."""

    DEAD = "dead"
    NOISY = "noisy"
    DRIFTING = "drifting"


@dataclass(frozen=True, slots=True)
class Fault:
    """One antenna, by its number, and what is wrong with it. It shows in antennas_iq only."""

    antenna: int
    kind: FaultKind


def parse_fault(text: str) -> Fault:
    """The fault written ``antenna=7:dead``.

    Raises:
        BadConfig: it is written otherwise.
    """
    key, _, value = text.partition("=")
    number, _, kind = value.partition(":")
    if key != "antenna" or not (number.isascii() and number.isdigit()) or kind not in tuple(FaultKind):
        raise BadConfig(
            f"fault {text!r}: write it antenna=NUMBER:KIND, for example antenna=7:dead; KIND is {', '.join(FaultKind)}"
        )
    return Fault(int(number), FaultKind(kind))


def check_cpid(cpid: int) -> None:
    """Refuse a CPID that would come out of the conversion to DMAP as another one.

    Raises:
        BadConfig: it does not fit into 16 bits.
    """
    if cpid not in CPIDS:
        raise BadConfig(f"CPID {cpid} does not fit into DMAP, which holds {CPIDS[0]} to {CPIDS[-1]}: choose another")
