"""What must hold once the chain is at rest, whatever was done to it meanwhile: every file whole in each of its places, once.

``breaches`` compares what went in with what lies on all machines of a radar: nothing lost, nothing doubled, nothing damaged,
nothing stuck, and nothing under a name that it should not have.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataflow.lib import checksum, custody, dmap, names, place, quarantine, summary
from dataflow.lib.config import MARKER, Config, Here
from dataflow.lib.names import Kind, Name
from dataflow.lib.receive import LOGS_FOLDER
from dataflow.lib.step import OUTCOMES
from dataflow.lib.transfer import PARTIALS

PICTURE_SAMPLES = (0, 70)
"""The first and the last sample in the names of pictures."""
UNKNOWN_HASH = ""
"""Of a file that the chain itself made."""


@dataclass(frozen=True, slots=True)
class Fed:
    """What went into the chain of one radar with a NAS.

    ``sha256``: by file name, of what must arrive. ``antennas``: of each antennas_iq file. ``records``: DMAP records of each
    rawacf. ``quarantined``: names that were made bad on purpose, to the host that must have set each aside. ``partners``: to
    which folder somebody takes what lies in a target's staging folder; of the others it stays there.
    """

    sha256: Mapping[str, str]
    antennas: int = 20
    records: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, str] = field(default_factory=dict)
    partners: Mapping[str, Path] = field(default_factory=dict)


def breaches(config: Config, radar: str, fed: Fed) -> Iterator[str]:
    """Everything that is not as it must be at rest, one sentence each; nothing, when every promise was kept."""
    expected = places(config, radar, fed)
    found = set(files(config, radar, fed.partners.values()))
    yield from (f"missing: {path}" for path in sorted(expected.keys() - found))
    yield from (f"not expected: {path}" for path in sorted(found - expected.keys()))
    for path in sorted(expected.keys() & found):
        if expected[path] and (digest := checksum.sha256(path)) != expected[path]:
            yield f"damaged: {path} has hash {digest}, not {expected[path]}"
    yield from _of_dmap(config, radar, fed)
    for host in config.flow.hosts:
        yield from _of_state(config.here(host, radar))


def places(config: Config, radar: str, fed: Fed) -> dict[Path, str]:
    """Every path at which a file must lie in the end, with its hash."""
    expected = {}
    for text, digest in fed.sha256.items():
        name = _parsed(text)
        for path in _final_places(config, radar, name, fed):
            expected[path] = digest if path.name == text else UNKNOWN_HASH
    for text, host in fed.quarantined.items():
        aside = config.here(host, radar).folder("quarantine") / text
        expected |= {aside: UNKNOWN_HASH, aside.with_name(text + quarantine.REASON_ENDING): UNKNOWN_HASH}
        if host == "campus":  # the NAS has passed it on, and keeps a copy of what it passed on
            expected[config.here("borealis", radar).folder("backup") / text] = UNKNOWN_HASH
    return expected


def files(config: Config, radar: str, more: Collection[Path] = ()) -> Iterator[Path]:
    """Every file in every root of all machines of a radar, and below ``more`` folders; hidden ones too.

    Left out are markers, the mirror of the logs, and in ``incoming`` what a killed rsync left and a later ``receive`` removes.
    """
    heres = [config.here(host, radar) for host in config.flow.hosts]
    roots = {root for here in heres for root in here.roots.values()}
    incoming = [here.folder("incoming") for here in heres if "incoming" in here.folder_texts]
    for top in sorted({*roots, *more}):
        for folder, folders, contents in os.walk(top):
            folders[:] = [name for name in folders if name not in (LOGS_FOLDER, PARTIALS)]
            left = [name for name in contents if not (Path(folder) in incoming and name.startswith("."))]
            yield from (Path(folder, name) for name in left if name != MARKER)


def _final_places(config: Config, radar: str, name: Name, fed: Fed) -> Iterator[Path]:
    borealis, site, campus = (config.here(host, radar).folder for host in ("borealis", "site-linux", "campus"))
    if name.kind is Kind.ANTENNAS_IQ:
        yield borealis("antennas_iq") / name.text
        for antenna in range(fed.antennas):
            yield site("full_size_plots") / names.plot_of(name, antenna, *PICTURE_SAMPLES, full=True).text
            yield campus("plots_archive", name.time) / names.plot_of(name, antenna, *PICTURE_SAMPLES).text
        yield campus("plots_archive", name.time) / names.contact_sheet_of(name).text
        return
    if name.kind is Kind.PHOTO:
        yield campus("photos", name.time, name.camera or "") / name.text
        return
    yield borealis("backup") / name.text
    yield campus("archive_hdf5", name.time) / name.text
    yield campus("plots_archive", name.time) / names.quicklook_of(name).text
    yield from _places_of_dmap(config, radar, names.dmap_of(name), fed)


def _places_of_dmap(config: Config, radar: str, name: Name, fed: Fed) -> Iterator[Path]:
    campus = config.here("campus", radar)
    yield campus.folder("archive_dmap", name.time) / name.text
    for target, settings in config.flow.distribute.targets.items():
        yield fed.partners.get(target, campus.path(settings.folder)) / name.text


def _of_dmap(config: Config, radar: str, fed: Fed) -> Iterator[str]:
    """One DMAP file is the same everywhere, and has as many records as its rawacf."""
    for text in (text for text in fed.sha256 if _parsed(text).kind is Kind.RAWACF):
        name = names.dmap_of(_parsed(text))
        there = [path for path in _places_of_dmap(config, radar, name, fed) if path.is_file()]
        if len({checksum.sha256(path) for path in there}) > 1:
            yield f"not the same everywhere: {', '.join(map(str, there))}"
        if there and text in fed.records and (records := dmap.inspect(there[0]).records) != fed.records[text]:
            yield f"{there[0]} has {records} records, not {fed.records[text]}"


def _of_state(here: Here) -> Iterator[str]:
    """Flags and outbox are empty, and the counts of every run that came to its end add up."""
    folders = (
        custody.flags_folder(here),
        custody.open_folder(here),
        custody.outbox(here),
        custody.flags_folder(here) / "unreadable",
    )
    yield from (f"stuck: {path}" for folder in folders for path in place.scan(folder))
    told = list(summary.records(sorted(here.logs.glob("*/summary/*/*/*.jsonl"))))
    yield from (f"on {here.host_name} {count}" for count in miscounted(told))
    for record in told:
        if record["event"] == "alert" and "no record says where it went" in str(record.get("message")):
            yield f"{here.host_name} misses a file: {record['message']}"


def miscounted(told: Iterable[summary.Record]) -> Iterator[str]:
    """The runs of which the end counts other files than the records tell of; strangers are told of once and counted each time."""
    files: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    ends = []
    for record in told:
        if record["event"] == "file":
            files[record["step"], record["run"]][record["outcome"]] += 1
        elif record["event"] == "end" and "found" in record:
            ends.append(record)
    for end in ends:
        recorded, counted = files[end["step"], end["run"]], {word: end[word] for word in OUTCOMES}
        is_same = all(recorded[word] == counted[word] for word in OUTCOMES if word != "skipped")
        if not is_same or recorded["skipped"] > counted["skipped"] or end["found"] != sum(counted.values()):
            yield f"{end['step']} counts {end['found']} files, {counted}, and its records tell of {dict(recorded)}"


def _parsed(text: str) -> Name:
    name = names.parse(text)
    if name is None:
        raise ValueError(f"not a SuperDARN file name: {text!r}")
    return name
