"""``dataflow demo-mirror``: two of the world's mirrors on this computer, with real files and without any account.

North and south publish what their radars wrote, sync with each other, lose a file and bring it back, and compare. One file is
damaged, one is blocked, and one has other content on each side. It ends by itself and shows where every file is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dataflow.demo import chain, machines, packages, simulate_radar
from dataflow.demo.simulate_radar import BLOCK, SliceSpec
from dataflow.lib import check, checksum, config, conversion, names
from dataflow.lib.config import Config
from dataflow.lib.errors import BadConfig, Exit
from dataflow.lib.names import Name
from dataflow.mirror import hash_lists, job, layout
from dataflow.mirror.job import Job
from dataflow.mirror.mirror_lists import MirrorLists

RADARS = ("sas", "pgr", "inv")
BLOCKS = 2
RECORDS = 3
SLICE = SliceSpec(with_antennas_iq=False, with_interferometer=False, ranges=20)
COMPUTER = "computer"
TREE = "sddata"


@dataclass(frozen=True, slots=True)
class Mirror:
    """One of the two: its name, and the shipped configuration as it is there."""

    name: str
    config: Config

    @property
    def top(self) -> Path:
        """Where it lies: ``raw`` and ``.config`` are below."""
        settings, here = self.config.mirror()
        return here.path(settings.store.root) / settings.tree

    def holding(self, name: str) -> Path:
        """One of its holding directories."""
        settings, here = self.config.mirror()
        return here.path(settings.holdings[name])

    def data(self, name: Name) -> Path:
        """Where a file lies on it, or should."""
        return self.top / layout.data_path("", name)

    def listed(self, name: Name) -> str | None:
        """The SHA-1 that it lists for a file."""
        month = layout.month_of(name)
        path = self.top / layout.month_list("", month)
        return hash_lists.parse_month(path.read_bytes(), month).hashes.get(name.text) if path.exists() else None


@dataclass(frozen=True, slots=True)
class Story:
    """What is wrong on purpose: names of the file that is damaged, blocked by north, of other content, and lost at north."""

    files: tuple[Name, ...]
    damaged: Name
    blocked: Name
    different: Name
    lost: Name


def run(folder: Path) -> int:
    """Run the demo in ``folder``, which it empties first if an earlier demo made it; 0 when every file is where it should be."""
    chain.prepare(folder)
    packages.provide(folder)
    folder = folder.absolute()
    north, south = _mirror(folder, "north", "south"), _mirror(folder, "south", "north")
    print(f"Two mirrors, north and south, are below {folder / COMPUTER}; every store is a folder there.")
    story = _write(folder, north, south)
    codes = _play(north, south, story)
    print("\nEvery file, with the first digits of its SHA-1 where it lies:\n")
    are_right = [_show(north, south, name, story) for name in story.files]
    print("\nWhere to look:")
    for mirror in (north, south):
        _show_places(mirror)
        machines.write_wrapper(folder / mirror.name, mirror.config)
    print(f"\nTo try more, each mirror has a `dataflow` of its own, for example:\n  {folder / 'north'} mirror verify")
    is_well = all(are_right) and set(codes) <= {Exit.ACCOUNTED, Exit.LEFT_OVER}
    return Exit.ACCOUNTED if is_well else Exit.LEFT_OVER


def _mirror(folder: Path, name: str, other: str) -> Mirror:
    """The shipped configuration, with one partner and every store a folder of this computer."""
    loaded = config.load(None, folder, list(_overrides(name, other)))
    _, here = loaded.mirror()
    for finding in check.look(here, create_markers=True):
        if not finding.is_good:
            raise BadConfig(f"{name}: {finding.subject}: {finding.message}. {finding.mend}")
    made = Mirror(name, loaded)
    made.top.mkdir(parents=True, exist_ok=True)
    made.holding("main").mkdir(parents=True, exist_ok=True)
    return made


def _overrides(name: str, other: str) -> Iterator[str]:
    roots = {name: f"/{name}/mirror", other: f"/{other}/mirror", "holding": f"/{name}/holding"}
    stores = {each: f"{{kind: directory, root: {each}/chroot}}" for each in (name, other)}
    partner = f"{{name: the mirror {other}, holding: {other}, tree: {TREE}, store: {stores[other]}}}"
    yield f"mirror.machine.name={COMPUTER}"
    yield f"mirror.roots={{{', '.join(f'{root}: {{path: {path}}}' for root, path in roots.items())}}}"
    yield f"mirror.holdings={{main: holding/main, {other}: holding/{other}}}"
    yield f"mirror.state=/{name}/state"
    yield f"mirror.logs=/{name}/logs"
    yield f"mirror.store={stores[name]}"
    yield f"mirror.tree={TREE}"
    yield f"mirror.partners={{{other}: {partner}}}"
    yield "mirror.hub=null"
    yield f"mirror.backfill={{holding: main, sources: [{{name: {other}, partner: {other}}}]}}"


def _write(folder: Path, north: Mirror, south: Mirror) -> Story:
    """Make DMAP files of the last two whole months, and put them into the holding directories of both."""
    files: dict[str, list[Name]] = {}
    for number, radar in enumerate(RADARS):
        main = (south if radar == "inv" else north).holding("main")
        for block, start in enumerate(_starts()):
            files.setdefault(radar, []).append(_dmap(folder, radar, start, 10 * number + block, main))
    both, different, damaged = files["pgr"][0], files["pgr"][1], files["sas"][1]
    shutil.copy2(north.holding("main") / both.text, south.holding("main"))
    _dmap(folder, "pgr", different.time, 100, south.holding("main"))
    path = north.holding("main") / damaged.text
    path.write_bytes(path.read_bytes()[:-500])
    print("The radars sas and pgr wrote for north, pgr and inv for south, in two months.")
    print(f"{both.text} is at both; {different.text} too, with other content; {damaged.text} is cut off.")
    every = tuple(name for of_radar in files.values() for name in of_radar)
    return Story(every, damaged, files["inv"][1], different, files["inv"][0])


def _starts() -> Iterator[datetime]:
    """When the blocks begin: on one day of each of the last two whole months."""
    this_month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last_month = (this_month - timedelta(days=1)).replace(day=1)
    for month in ((last_month - timedelta(days=1)).replace(day=10), last_month.replace(day=10)):
        yield from (month + number * BLOCK for number in range(BLOCKS))


def _dmap(folder: Path, radar: str, start: datetime, seed: int, target: Path) -> Name:
    """One block of a radar as a DMAP file in a folder."""
    written = folder / "radar" / str(seed)
    (source,) = simulate_radar.write_block(written, radar, start, [SLICE], records=RECORDS, seed=seed, open_each_record=False)
    name = names.parse(source.name)
    assert name is not None
    made = names.dmap_of(name)
    part = target / f".{made.text}.part"
    conversion.convert(source, part, name)
    part.rename(target / made.text)
    return made


def _play(north: Mirror, south: Mirror, story: Story) -> list[Exit]:
    """What the two do, one command after the other; how each of them ended."""
    pairs, months = ((north, south), (south, north)), sorted({layout.month_of(name) for name in story.files})
    codes = [_publish(mirror, "main") for mirror in (north, south)]
    print(f"\nnorth blocks {story.blocked.text}: it must not come from anywhere.")
    _run(north, "block", lambda made: _lists(made).block([story.blocked.text], "demo.txt"))
    for mirror, other in pairs:
        codes += [_sync(mirror, other, months), _publish(mirror, other.name)]
    print(f"\nThe disk of north loses {story.lost.text}, which its list still names.")
    north.data(story.lost).unlink()
    codes += [_backfill(north, story.lost), _publish(north, "main")]
    return codes + [_compare(mirror, other) for mirror, other in pairs]


def _publish(mirror: Mirror, holding: str) -> Exit:
    from dataflow.mirror import publish

    return _command(mirror, f"mirror publish {holding}", lambda made: publish.publish(made, holding, None, None, False))


def _sync(mirror: Mirror, other: Mirror, months: list[str]) -> Exit:
    from dataflow.mirror import sync

    return _command(mirror, f"mirror sync {other.name} --since {months[0]}", lambda made: sync.sync(made, other.name, months))


def _backfill(mirror: Mirror, name: Name) -> Exit:
    from dataflow.mirror import backfill

    radar, day = str(name.radar), name.time.date()
    words = f"backfill --radar {radar} --from {day} --to {day}"
    return _command(mirror, words, lambda made: backfill.backfill(made, radar, day, day))


def _compare(mirror: Mirror, other: Mirror) -> Exit:
    from dataflow.mirror import compare

    return _command(mirror, f"mirror compare {other.name}", lambda made: compare.compare(made, other.name, None))


def _command(mirror: Mirror, words: str, work: Callable[[Job], None]) -> Exit:
    """Do what a command does, and show the command and what it tells."""
    print(f"\n{mirror.name}$ dataflow {words}")
    code, made = _run(mirror, "_".join(words.split()[:2]).removesuffix("_--radar"), work)
    counts = ", ".join(f"{count} {word}" for word, count in sorted(made.counts.items()))
    _say(f"{counts or 'nothing to do'}, exit {int(code)}")
    return code


def _run(mirror: Mirror, name: str, work: Callable[[Job], None]) -> tuple[Exit, Job]:
    made = job.open_job(mirror.config, name, "demo", _say)
    return job.run(made, work), made


def _lists(made: Job) -> MirrorLists:
    return MirrorLists(made.open(made.settings.store), made.settings.tree, made.folder("work"))


def _say(text: str) -> None:
    print("\n".join(f"  {names.printable(line)}" for line in text.split("\n")), flush=True)


def _show(north: Mirror, south: Mirror, name: Name, story: Story) -> bool:
    """A line of the table; True when all is as the story wants it."""
    here, there = (_cell(mirror, name) for mirror in (north, south))
    is_listed = [cell.endswith(" listed") for cell in (here, there)]
    told, is_right = {
        story.damaged: ("damaged: published by nobody", (here, there) == ("-", "-")),
        story.blocked: ("blocked by north", here == "-" and is_listed[1]),
        story.different: ("other content: a person decides", here != there and all(is_listed)),
        story.lost: ("agreed; north had lost it", here == there and all(is_listed)),
    }.get(name, ("agreed", here == there and all(is_listed)))
    print(f"  {name.text:33}  north {here:20}  south {there:20}  {told if is_right else f'SHOULD BE: {told}'}")
    return is_right


def _cell(mirror: Mirror, name: Name) -> str:
    """What a mirror has of a file."""
    path, listed = mirror.data(name), mirror.listed(name)
    if not path.exists():
        return "-" if listed is None else "LISTED, NOT THERE"
    (sha1,) = checksum.hashes_on_disk(path, ("sha1",))
    return f"{sha1[:10]} {'listed' if sha1 == listed else 'NOT LISTED'}"


def _show_places(mirror: Mirror) -> None:
    settings, here = mirror.config.mirror()
    (partner,) = settings.partners
    places = {
        "the mirror": mirror.top,
        "set aside": here.folder("set_aside"),
        "summary logs": here.logs,
        "report page": here.folder("reports") / partner / "index.html",
    }
    for what, path in places.items():
        print(f"  {mirror.name:6} {what:13} {path}")
