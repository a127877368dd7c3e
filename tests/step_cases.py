"""Every step of the shipped configuration, as the contract suite needs to know it: one case for each.

A case tells how the hop before leaves an input, where the input must lie in the end, what the step writes to, and how an
input of it goes bad. A row of the suite that makes no sense for a step is named in ``exempt``, with the reason.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from loopback import Machines

from dataflow.demo import simulate_radar
from dataflow.demo.simulate_radar import SliceSpec
from dataflow.lib import checksum, conversion, custody, flag, names
from dataflow.lib.context import utc_now
from dataflow.lib.flag import Entry
from dataflow.lib.names import Kind, Name

FIRST = datetime(2024, 11, 1, tzinfo=UTC)
ANTENNAS = 2


@dataclass(frozen=True)
class Case:
    """One step. ``feed(machines, n)`` makes the n-th input; ``places`` are where it, or what is made of it, ends."""

    id: str
    step: str
    host: str
    feed: Callable[[Machines, int], Path]
    places: Callable[[Machines, Path], list[Path]]
    destinations: tuple[tuple[str, str], ...] = ()
    """(host, root) of all roots that the step writes to."""
    disk: Callable[[Machines], Path] | None = None
    """The disk that is full in the row ``full``."""
    radar: str = "sas"
    part: str = ""
    removes_source: bool = True
    far: str | None = None
    """The other host that has to be up."""
    spoil: Callable[[Machines, Path], Path] | None = None
    """Make an input bad; where it lies then."""
    taken: Callable[[Machines, Path], list[Path]] | None = None
    """The names at which other content may lie already."""
    judge: str = ""
    """The host whose quarantine takes a newcomer, if not this one."""
    read_by: str = "itself"
    """Who reads the input: the step itself, or the program of this name."""
    commands: tuple[str, ...] = ("run",)
    """The commands that may be killed: the step's, the sender of a shell step, the receiver."""
    stride: int = 1
    """Every how manieth change is tried when killing; 1 unless a run takes seconds, or another case runs the same code."""
    exempt: Mapping[str, str] = field(default_factory=dict)


def at(number: int) -> datetime:
    """The time in the name of the n-th input."""
    return FIRST + timedelta(hours=2 * number)


def bytes_of(number: int, size: int = 20_000) -> bytes:
    return random.Random(number).randbytes(size + number)


def put(path: Path, content: bytes, modified: datetime) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified.timestamp(), modified.timestamp()))
    return path


def parsed(path: Path) -> Name:
    name = names.parse(path.name)
    assert name is not None
    return name


def entry_of(path: Path, **more: object) -> Entry:
    return Entry(path.name, path.stat().st_size, checksum.sha256(path), **more)  # type: ignore[arg-type]


def rot(machines: Machines, path: Path) -> Path:
    """The disk gives back another byte than was written; size and time are as before."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


# The radar computer


def radar_file(machines: Machines, number: int, radar: str = "sas") -> Path:
    """A finished file in the radar's day folder: rawacf, antennas_iq (where it leaves the radar), DMAP of the radar's own."""
    kinds = ("rawacf", "antennas_iq", "plain") if radar == "sas" else ("rawacf", "plain")
    kind, time = kinds[number % len(kinds)], at(number)
    name = f"{time:%Y%m%d.%H%M.%S}.{radar}.a.rawacf" if kind == "plain" else names.radar_file(time, radar, 0, Kind(kind)).text
    folder = machines.here("borealis", radar).folder("data") / f"{time:%Y%m%d}"
    return put(folder / name, bytes_of(number), time + timedelta(hours=2))


def on_nas(machines: Machines, path: Path) -> list[Path]:
    name, folder = parsed(path), machines.here("borealis").folder
    if name.kind is Kind.ANTENNAS_IQ:
        return [folder("antennas_iq") / name.text, folder("to_plot") / name.text]
    delivered = names.dmap_of(name).text if name.kind is Kind.DMAP_PLAIN else name.text
    return [folder("rawacf_dmap" if name.kind is Kind.DMAP_PLAIN else "rawacf_array") / delivered, folder("backup") / delivered]


def on_site_linux(machines: Machines, path: Path) -> list[Path]:
    name, folder = parsed(path), machines.here("site-linux", "inv").folder
    return [
        folder("rawacf_dmap") / names.dmap_of(name).text if name.kind is Kind.DMAP_PLAIN else folder("rawacf_array") / name.text
    ]


def days_off(machines: Machines, path: Path) -> Path:
    wrong = path.stat().st_mtime + 3 * 86400
    os.utime(path, (wrong, wrong))
    return path


# site-linux


def site_data(machines: Machines, number: int) -> Path:
    """What the radar computer delivered: rawacf as HDF5, or DMAP."""
    here, time = machines.here("site-linux"), at(number)
    if number % 2:
        path = here.folder("rawacf_dmap") / f"{time:%Y%m%d.%H%M.%S}.sas.a.rawacf.bz2"
    else:
        path = here.folder("rawacf_array") / names.radar_file(time, "sas", 0, Kind.RAWACF).text
    put(path, bytes_of(number), time)
    machines.admit("site-linux", "sas", [entry_of(path)], "borealis")
    return path


def data_on_campus(machines: Machines, path: Path) -> list[Path]:
    return [machines.here("campus").folder("data" if parsed(path).kind is Kind.DMAP else "holding") / path.name]


def picture(number: int, radar: str = "sas") -> str:
    source = names.radar_file(at(number), radar, 0, Kind.ANTENNAS_IQ)
    return (names.plot_of(source, 3, 0, 70) if number % 2 else names.contact_sheet_of(source)).text


def site_picture(machines: Machines, number: int) -> Path:
    path = put(machines.here("site-linux").folder("daily_plots") / picture(number), bytes_of(number), utc_now())
    machines.admit("site-linux", "sas", [entry_of(path, by="plot_antennas_iq")], "site-linux")
    return path


def picture_on_campus(machines: Machines, path: Path) -> list[Path]:
    return [machines.here("campus").folder("plots") / path.name]


def photo(machines: Machines, number: int) -> Path:
    name = f"{at(number):%Y%m%d.%H%M}.cam21{number % 3}.jpg"
    return put(machines.here("site-linux").folder("cameras") / name, bytes_of(number), at(number))


def photo_on_campus(machines: Machines, path: Path) -> list[Path]:
    name = parsed(path)
    return [machines.here("campus").folder("photos", name.time, name.camera or "") / name.text]


def rotten_photo(machines: Machines, path: Path) -> Path:
    machines.admit("site-linux", "sas", [entry_of(path, by=custody.ADOPTED)], "site-linux")
    return rot(machines, path)


def iq_file(machines: Machines, number: int) -> Path:
    """An antennas_iq file with the marker that says that it still has to be drawn."""
    here, name = machines.here("site-linux"), names.radar_file(at(number), "sas", 0, Kind.ANTENNAS_IQ)
    path = put(here.folder("antennas_iq") / name.text, made(number)[1], at(number))
    put(here.folder("to_plot") / name.text, b"", at(number))
    machines.admit("site-linux", "sas", [entry_of(path)], "borealis")
    return path


def drawn(machines: Machines, path: Path) -> list[Path]:
    name, here = parsed(path), machines.here("site-linux")
    small = [names.plot_of(name, antenna, 0, 70).text for antenna in range(ANTENNAS)] + [names.contact_sheet_of(name).text]
    full = [names.plot_of(name, antenna, 0, 70, full=True).text for antenna in range(ANTENNAS)]
    return [here.folder("daily_plots") / text for text in small] + [here.folder("full_size_plots") / text for text in full]


def backed_up(machines: Machines, number: int) -> Path:
    """A rawacf or DMAP file of the backup that campus has archived; the newest file beside it tells how late it is."""
    here, time = machines.here("site-linux"), at(number)
    put(here.folder("backup") / names.radar_file(utc_now(), "sas", 0, Kind.RAWACF).text, b"the newest", utc_now())
    text = f"{time:%Y%m%d.%H%M.%S}.sas.a.rawacf.bz2" if number % 2 else names.radar_file(time, "sas", 0, Kind.RAWACF).text
    (archived,) = in_archive(machines, here.folder("backup") / text)
    return put(here.folder("backup") / text, put(archived, bytes_of(number), time).read_bytes(), time)


def in_archive(machines: Machines, path: Path) -> list[Path]:
    name = parsed(path)
    return [machines.here("campus").folder("archive_dmap" if name.kind is Kind.DMAP else "archive_hdf5", name.time) / name.text]


def waiting_flag(machines: Machines, number: int) -> Path:
    here = machines.here("site-linux")
    listed = [Entry(f"{at(number):%Y%m%d.%H%M.%S}.sas.{n}.rawacf.h5", 1, f"{number * 100 + n:064x}") for n in range(25)]
    moment = FIRST + timedelta(seconds=number)
    written = flag.write(custody.outbox(here), "sas", "site-linux", "fed", listed, lambda: moment)
    return custody.outbox(here) / written.file_name


def flag_on_campus(machines: Machines, path: Path) -> list[Path]:
    return [custody.flags_folder(machines.here("campus")) / path.name]


def summary_log(machines: Machines, number: int) -> Path:
    """A log of a step: this host's own, or one that the host before handed over."""
    here, day, step = machines.here("site-linux"), utc_now(), f"fed{number}"
    if number % 2:
        path = here.relayed_logs / "sas" / step / f"{day:%Y%m%d}.sas.{step}.borealis.jsonl"
    else:
        path = here.logs / step / "summary" / f"{day:%Y}" / f"{day:%m}" / f"{day:%Y%m%d}.sas.{step}.jsonl"
    line = b'{"v": 1, "time": "2024-11-01T00:00:00.000000Z", "event": "fed", "radar": "sas"}\n'
    return put(path, line * (10 + number), day)


def log_on_campus(machines: Machines, path: Path) -> list[Path]:
    step, sender = path.name.split(".")[2], "borealis" if path.name.endswith("borealis.jsonl") else "site-linux"
    return [machines.here("campus").relayed_logs / "sas" / step / f"{path.name[:8]}.sas.{step}.{sender}.jsonl"]


# campus


@functools.cache
def made(number: int) -> tuple[bytes, bytes, bytes, conversion.Conversion]:
    """One block of the simulated radar: rawacf, antennas_iq, and what the rawacf becomes as DMAP."""
    with tempfile.TemporaryDirectory() as folder:
        spec = SliceSpec(ranges=20, with_interferometer=False)
        rawacf, iq = simulate_radar.write_block(
            Path(folder), "sas", at(number), [spec], records=2, antennas=ANTENNAS, sequences=1, samples=80, seed=number
        )
        part = Path(folder) / ".dmap"
        done = conversion.convert(rawacf, part, parsed(rawacf), processes=1)
        return rawacf.read_bytes(), iq.read_bytes(), part.read_bytes(), done


def to_convert(machines: Machines, number: int) -> Path:
    name = names.radar_file(at(number), "sas", 0, Kind.RAWACF)
    path = put(machines.here("campus").folder("holding") / name.text, made(number)[0], at(number))
    machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    return path


def converted(machines: Machines, path: Path) -> list[Path]:
    data = machines.here("campus").folder("data")
    return [data / path.name, data / names.dmap_of(parsed(path)).text]


def truncated(machines: Machines, path: Path) -> Path:
    """Cut off at the radar already: its hash is that of what is left."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    host = "campus" if "campus" in path.parts else "site-linux"
    machines.admit(host, "sas", [entry_of(path)], "borealis")
    return path


def to_distribute(machines: Machines, number: int) -> Path:
    """DMAP files that were converted here, and the HDF5 file of another block in between."""
    rawacf, _, dmap, done = made(number)
    name = names.radar_file(at(number), "sas", 0, Kind.RAWACF)
    if number % 3 == 1:
        path = put(machines.here("campus").folder("data") / name.text, rawacf, at(number))
        machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    else:
        path = put(machines.here("campus").folder("data") / names.dmap_of(name).text, dmap, at(number))
        more = {"parent": done.source_sha256, "by": "convert_on_campus", "records": done.records, "cpids": done.cpids}
        machines.admit("campus", "sas", [entry_of(path, **more)], "campus")
    return path


def distributed(machines: Machines, path: Path) -> list[Path]:
    name, here = parsed(path), machines.here("campus")
    if name.kind is Kind.RAWACF:
        return [here.folder("archive_hdf5", name.time) / name.text]
    staged = [here.path(target.folder) / name.text for target in machines.config.flow.distribute.targets.values()]
    return [here.folder("archive_dmap", name.time) / name.text, *staged]


def to_look_at(machines: Machines, number: int) -> Path:
    """A rawacf with the marker that says that its quick-look still has to be drawn; every other one is archived already."""
    here, name = machines.here("campus"), names.radar_file(at(number), "sas", 0, Kind.RAWACF)
    folder = here.folder("data") if number % 2 else here.folder("archive_hdf5", name.time)
    path = put(folder / name.text, made(number)[0], at(number))
    put(here.folder("to_plot") / name.text, b"", at(number))
    machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    return path


def looked_at(machines: Machines, path: Path) -> list[Path]:
    return [machines.here("campus").folder("plots") / names.quicklook_of(parsed(path)).text]


def old_picture(machines: Machines, number: int) -> Path:
    """Every other one was copied in by hand."""
    path = put(machines.here("campus").folder("plots") / picture(number), bytes_of(number), at(number))
    if number % 2:
        machines.admit("campus", "sas", [entry_of(path)], "site-linux")
    return path


def picture_in_archive(machines: Machines, path: Path) -> list[Path]:
    name = parsed(path)
    return [machines.here("campus").folder("plots_archive", name.time) / name.text]


def of_other_radar(machines: Machines, path: Path) -> Path:
    return path.rename(path.with_name(path.name.replace(".sas.", ".pgr.")))


def root(host: str, name: str, radar: str = "sas") -> Callable[[Machines], Path]:
    return lambda machines: machines.here(host, radar).roots[name]


CHECKED_AT_THE_RADAR = "a clock that was wrong is seen once, on the radar computer; after that the manifest vouches for the file"
LOCAL = "the step works on disks of its own machine or its site's and needs no other host"
UNDECIDED = "where backup and archive differ a person has to say which is right: both stay, which test_expire shows"
NOT_DATA = "its input is a file of our own, written whole by rename, not something that a radar or a person makes"

CASES = (
    Case(
        id="rsync_to_nas",
        step="rsync_to_nas",
        host="borealis",
        feed=radar_file,
        places=on_nas,
        destinations=(("borealis", "store"),),
        disk=root("borealis", "store"),
        spoil=days_off,
        taken=lambda machines, path: [place for place in on_nas(machines, path) if ".to_plot" not in place.parts],
        exempt={"host down": LOCAL},
    ),
    Case(
        id="rsync_to_nas, nas: none",
        step="rsync_to_nas",
        host="borealis",
        radar="inv",
        feed=functools.partial(radar_file, radar="inv"),
        places=on_site_linux,
        destinations=(("site-linux", "store"),),
        disk=root("site-linux", "store", "inv"),
        far="site-linux",
        commands=("run", "receive"),
        spoil=days_off,
        taken=on_site_linux,
        judge="site-linux",
    ),
    Case(
        id="plot_antennas_iq",
        step="plot_antennas_iq",
        host="site-linux",
        feed=iq_file,
        places=drawn,
        removes_source=False,
        destinations=(("site-linux", "local"), ("site-linux", "store")),
        disk=root("site-linux", "local"),
        spoil=truncated,
        read_by="dataflow.lib.crew",
        stride=9,
        exempt={
            "conflict": "a picture that is there stays as it is: it can be drawn from the file again at any time",
            "host down": LOCAL,
            "time stamp": CHECKED_AT_THE_RADAR,
        },
    ),
    Case(
        id="rsync_to_campus data",
        step="rsync_to_campus",
        host="site-linux",
        part="data",
        feed=site_data,
        places=data_on_campus,
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        far="campus",
        commands=("run", "receive"),
        spoil=rot,
        taken=lambda machines, path: [*data_on_campus(machines, path), machines.here("campus").folder("to_archive") / path.name],
        judge="campus",
        read_by="rsync",
        exempt={"time stamp": CHECKED_AT_THE_RADAR},
    ),
    Case(
        id="rsync_to_campus pictures",
        step="rsync_to_campus",
        host="site-linux",
        part="pictures",
        feed=site_picture,
        places=picture_on_campus,
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        far="campus",
        stride=2,
        commands=("run", "receive"),
        spoil=rot,
        taken=picture_on_campus,
        judge="campus",
        read_by="rsync",
        exempt={"time stamp": CHECKED_AT_THE_RADAR},
    ),
    Case(
        id="transfer_cam_photos",
        step="transfer_cam_photos",
        host="site-linux",
        feed=photo,
        places=photo_on_campus,
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        far="campus",
        stride=2,
        commands=("run", "send_files", "receive"),
        spoil=rotten_photo,
        taken=photo_on_campus,
        judge="campus",
        exempt={"time stamp": "the cameras' clocks are not the radar's; a photo is sorted by its name"},
    ),
    Case(
        id="expire_site_storage",
        step="expire_site_storage",
        host="site-linux",
        feed=backed_up,
        places=in_archive,
        destinations=(("site-linux", "store"), ("site-linux", "local"), ("campus", "archive")),
        far="campus",
        stride=4,
        commands=("run", "receive"),
        exempt={
            "full": "it writes nothing; a full disk is what it is for, which test_expire shows",
            "conflict": UNDECIDED,
            "fuse": UNDECIDED,
            "one bad": UNDECIDED,
            "time stamp": CHECKED_AT_THE_RADAR,
        },
    ),
    Case(
        id="send_flag",
        step="send_flag",
        host="site-linux",
        feed=waiting_flag,
        places=flag_on_campus,
        spoil=rot,
        disk=lambda machines: machines.here("campus").machine_state,
        far="campus",
        commands=("run", "receive"),
        exempt={
            "not mounted": "flags lie in the state folder of each machine, which is always a local disk and no root",
            "changing": NOT_DATA,
            "conflict": "a flag's name is the microsecond at which it was written: the same name is the same flag",
            "time stamp": NOT_DATA,
        },
    ),
    Case(
        id="send_logs",
        step="send_logs",
        host="site-linux",
        feed=summary_log,
        places=log_on_campus,
        removes_source=False,
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        far="campus",
        commands=("run", "receive"),
        exempt={
            "changing": "a log grows while it is sent: that is what logs do; the next run sends what was added",
            "conflict": "the newer state of a log replaces the older: it is the same file, longer",
            "fuse": "no log is bad: lines that cannot be read are passed over by the readers",
            "one bad": "no log is bad: lines that cannot be read are passed over by the readers",
            "time stamp": NOT_DATA,
        },
    ),
    Case(
        id="convert_on_campus",
        step="convert_on_campus",
        host="campus",
        feed=to_convert,
        places=lambda machines, path: [*converted(machines, path), machines.here("campus").folder("to_plot") / path.name],
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        spoil=truncated,
        taken=converted,
        exempt={"host down": LOCAL, "time stamp": CHECKED_AT_THE_RADAR},
    ),
    Case(
        id="distribute_borealis_data",
        step="distribute_borealis_data",
        host="campus",
        feed=to_distribute,
        places=distributed,
        destinations=(("campus", "sddata"), ("campus", "archive"), ("campus", "staging")),
        disk=root("campus", "staging"),
        spoil=rot,
        taken=lambda machines, path: distributed(machines, path)[:1],
        exempt={"host down": LOCAL, "time stamp": CHECKED_AT_THE_RADAR},
    ),
    Case(
        id="plot_rawacf",
        step="plot_rawacf",
        host="campus",
        feed=to_look_at,
        places=looked_at,
        removes_source=False,
        destinations=(("campus", "sddata"), ("campus", "archive")),
        disk=root("campus", "sddata"),
        stride=5,
        exempt={
            "conflict": "a picture that is there stays as it is: it can be drawn from the file again at any time",
            "fuse": "no picture condemns a rawacf: one that cannot be drawn is told, and its marker goes",
            "one bad": "no picture condemns a rawacf: one that cannot be drawn is told, and its marker goes",
            "host down": LOCAL,
            "time stamp": CHECKED_AT_THE_RADAR,
        },
    ),
    Case(
        id="archive_iq_plots",
        step="archive_iq_plots",
        host="campus",
        feed=old_picture,
        places=picture_in_archive,
        destinations=(("campus", "sddata"),),
        disk=root("campus", "sddata"),
        spoil=of_other_radar,
        taken=picture_in_archive,
        exempt={
            "host down": LOCAL,
            "time stamp": CHECKED_AT_THE_RADAR,
        },
    ),
)
