"""What is wrong with a configuration that its types cannot say: references that lead nowhere, numbers that make no sense."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from dataflow.lib import schema
from dataflow.lib.config import (
    EXPIRABLE,
    PLACEHOLDERS,
    RESERVED_TARGETS,
    VERSION,
    Expiry,
    Flow,
    Host,
    Radar,
    Target,
    step_file,
)
from dataflow.lib.errors import BadConfig
from dataflow.lib.machine import Machine, Root
from dataflow.lib.mirror_settings import MIRROR_FOLDERS, OWN_SOURCE, STORE_NEEDS, Mirror, StoreSettings
from dataflow.lib.names import Kind

ADDRESS = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
Finding = tuple[schema.Key, str]
"""Where in the document, and what is wrong there."""


def of(flow: Flow) -> Iterator[Finding]:
    """All findings of a document."""
    if flow.version != VERSION:
        yield ("version",), f"is {flow.version}; this dataflow reads version {VERSION}"
    for name, host in flow.hosts.items():
        yield from _host_findings(flow, ("hosts", name), host)
    for radar, entry in flow.radars.items():
        yield from _radar_findings(flow, ("radars", radar), radar, entry)
    for name, target in flow.distribute.targets.items():
        yield from _target_findings(flow, ("distribute", "targets", name), name, target)
    for name, expiry in flow.expire.items():
        yield from _expiry_findings(("expire", name), name, expiry)
    if flow.mirror is not None:
        yield from _mirror_findings(("mirror",), flow.mirror)
    yield from _number_findings(flow)


def _never_ends(flow: Flow, host: Host) -> bool:
    follower = host
    for _ in flow.hosts:
        if follower.next not in flow.hosts:
            return False
        follower = flow.hosts[follower.next]
    return True


def _number_findings(flow: Flow) -> Iterator[Finding]:
    for section in ("files", "daemon", "ssh", "transfer", "plots", "campus", "scrub", "distribute", "antenna_health"):
        for name, value in asdict(getattr(flow, section)).items():
            may_be_zero = section == "files" or name in ("every_days", "archive_after_h", "stale_days")
            if isinstance(value, int | float) and not (math.isfinite(value) and (value > 0 or (may_be_zero and value == 0))):
                yield (section, name), f"must be {'zero or more' if may_be_zero else 'more than zero'}, not {value}"
    if flow.files.block_s == 0:
        yield ("files", "block_s"), "must be more than zero"


def _host_findings(flow: Flow, key: schema.Key, host: Host) -> Iterator[Finding]:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", str(key[-1])):
        yield key, "a host is a word of lower-case letters, digits, '-' and '_': flags carry it in their names"
    if host.next is not None and host.next not in flow.hosts:
        yield (*key, "next"), f"there is no host {host.next!r}{schema.likely(host.next, flow.hosts)}"
    elif _never_ends(flow, host):
        yield (*key, "next"), f"from {host.next} it never comes to a last host: the chain must end"
    if host.waits_on == "data" and "data" not in host.folders:
        yield (*key, "waits_on"), "it waits on data but has no folder `data`"
    yield from _root_findings(key, host.roots)
    yield from _folder_findings(key, host.folders, host.roots)
    for kind, folder in host.routes.items():
        if kind not in set(Kind):
            yield (*key, "routes", kind), f"{kind!r} is not a kind of file; there are: {', '.join(Kind)}"
        yield from _known((*key, "routes", kind), folder, host.folders)
    for name in ("passed", "backlog", "kept"):
        for number, folder in enumerate(getattr(host, name)):
            yield from _known((*key, name, number), folder, host.folders)
    for name in ("file_mode", "dir_mode"):
        if not re.fullmatch(r"[0-7]{3,4}", getattr(host, name)):
            yield (*key, name), 'must be an octal mode in quotes, like "0664"'
    for number, entry in enumerate(host.steps):
        try:
            step_file((entry.split() or [""])[0])
        except BadConfig as error:
            yield (*key, "steps", number), str(error)


def _radar_findings(flow: Flow, key: schema.Key, radar: str, entry: Radar) -> Iterator[Finding]:
    if not re.fullmatch(r"[a-z]{3}", radar):
        yield key, "a radar is three lower-case letters"
    for name, machine in entry.machines.items():
        if name not in flow.hosts:
            yield (*key, "machines", name), f"there is no host {name!r}{schema.likely(name, flow.hosts)}"
            continue
        yield from _machine_findings(flow.hosts[name], (*key, "machines", name), machine)
        following = flow.hosts[name].next
        if following in flow.hosts and following not in entry.machines:
            yield (*key, "machines"), f"no machine plays {following}, to which {name} sends"


def _machine_findings(host: Host, key: schema.Key, machine: Machine) -> Iterator[Finding]:
    yield from _root_findings(key, machine.roots)
    yield from _folder_findings(key, machine.folders, {**host.roots, **machine.roots})
    for name, value in (("address", machine.address), ("user", machine.user or "x"), ("name", machine.name)):
        if not re.fullmatch(ADDRESS, value):
            yield (*key, name), f"{value!r} cannot be one"
    if not re.fullmatch(r"[A-Za-z0-9/._-]+", machine.command):
        yield (*key, "command"), f"{machine.command!r} must be the plain path of the program on that machine"
    for name in ("port", "bandwidth_kib_s", "read_limit_mib_s"):
        value_or_none = getattr(machine, name)
        if value_or_none is not None and value_or_none < 1:
            yield (*key, name), f"must be at least 1, not {value_or_none}"


def _target_findings(flow: Flow, key: schema.Key, name: str, target: Target) -> Iterator[Finding]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in RESERVED_TARGETS:
        yield key, f"{name!r} names no target: one word, and not {' or '.join(RESERVED_TARGETS)}, which have queues of their own"
    roots = {root: value for host in flow.hosts.values() for root, value in host.roots.items()}
    yield from _path_findings((*key, "folder"), target.folder, roots)


def _expiry_findings(key: schema.Key, name: str, expiry: Expiry) -> Iterator[Finding]:
    if name not in EXPIRABLE:
        yield key, f"nothing goes from {name!r} by itself{schema.likely(name, EXPIRABLE)}; it may from: {', '.join(EXPIRABLE)}"
    if not (math.isfinite(expiry.keep_days) and expiry.keep_days > 0):
        yield (*key, "keep_days"), f"must be more than zero, not {expiry.keep_days}"
    if expiry.min_free_percent is not None and not 0 < expiry.min_free_percent < 100:
        yield (*key, "min_free_percent"), f"must be between 0 and 100, not {expiry.min_free_percent}"


def _mirror_findings(key: schema.Key, mirror: Mirror) -> Iterator[Finding]:
    yield from _root_findings(key, mirror.roots)
    yield from _folder_findings(key, mirror.folders, mirror.roots)
    for needed in MIRROR_FOLDERS:
        if needed not in mirror.folders:
            yield (*key, "folders"), f"there must be a folder `{needed}`"
    for name, text in mirror.holdings.items():
        yield from _path_findings((*key, "holdings", name), text, mirror.roots)
    for word in ("waiting_days", "recent_days", "late_days"):
        if not (math.isfinite(value := getattr(mirror, word)) and value >= 0):
            yield (*key, word), f"must be zero or more, not {value}"
    for name, partner in mirror.partners.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name) or name == OWN_SOURCE:
            yield (
                (*key, "partners", name),
                f"a partner is a word of lower-case letters, digits, '-' and '_', and not {OWN_SOURCE}",
            )
        yield from _known((*key, "partners", name, "holding"), partner.holding, mirror.holdings)
    if mirror.hub is not None:
        yield from _known((*key, "hub", "holding"), mirror.hub.holding, mirror.holdings)
    if mirror.backfill is not None:
        yield from _known((*key, "backfill", "holding"), mirror.backfill.holding, mirror.holdings)
        for number, source in enumerate(mirror.backfill.sources):
            at = (*key, "backfill", "sources", number)
            if source.partner is not None and source.partner not in mirror.partners:
                yield (*at, "partner"), f"there is no partner {source.partner!r}{schema.likely(source.partner, mirror.partners)}"
            if source.partner is None and source.store is None and source.name != OWN_SOURCE:
                yield at, f"source {source.name!r} is nowhere: give `partner` or `store`, or call it {OWN_SOURCE} for our own"
            if source.files_per_hour < 1:
                yield (*at, "files_per_hour"), f"must be at least 1, not {source.files_per_hour}"
    for at, store in _stores(key, mirror):
        yield from _store_findings(at, store, mirror.roots)


def _stores(key: schema.Key, mirror: Mirror) -> Iterator[tuple[schema.Key, StoreSettings]]:
    yield (*key, "store"), mirror.store
    yield from (((*key, "partners", name, "store"), partner.store) for name, partner in mirror.partners.items())
    if mirror.hub is not None:
        yield (*key, "hub", "store"), mirror.hub.store
    for number, source in enumerate(mirror.backfill.sources if mirror.backfill else ()):
        if source.store is not None:
            yield (*key, "backfill", "sources", number, "store"), source.store


def _store_findings(key: schema.Key, store: StoreSettings, roots: Mapping[str, Root]) -> Iterator[Finding]:
    if store.kind == "directory":
        yield from _path_findings((*key, "root"), store.root, roots)
    elif not store.root.startswith("/"):
        yield (*key, "root"), f"must be absolute, not {store.root!r}"
    for word in STORE_NEEDS[store.kind]:
        if getattr(store, word) is None:
            yield key, f"a store of kind {store.kind} needs `{word}`"
    if store.address is not None and not re.fullmatch(ADDRESS, store.address):
        yield (*key, "address"), f"{store.address!r} cannot be one"
    for word in ("connect_timeout_s", "keep_alive_s", "time_limit_s", "channels", "port"):
        if not (math.isfinite(value := getattr(store, word)) and value > 0):
            yield (*key, word), f"must be more than zero, not {value}"


def _root_findings(key: schema.Key, roots: Mapping[str, Root]) -> Iterator[Finding]:
    for name, root in roots.items():
        if not root.path.startswith("/"):
            yield (*key, "roots", name, "path"), f"must be absolute, not {root.path!r}"
        for limit in ("reserve_bytes", "min_free_for_iq_bytes"):
            if getattr(root, limit) < 0:
                yield (*key, "roots", name, limit), f"must be zero or more, not {getattr(root, limit)}"


def _folder_findings(key: schema.Key, folders: Mapping[str, str], roots: Mapping[str, Root]) -> Iterator[Finding]:
    for name, text in folders.items():
        yield from _path_findings((*key, "folders", name), text, roots)


def _path_findings(key: schema.Key, text: str, roots: Mapping[str, Root]) -> Iterator[Finding]:
    root, _, relative = text.partition("/")
    if root not in roots:
        yield key, f"{text!r} does not begin with the name of a root ({', '.join(roots)}){schema.likely(root, roots)}"
    if ".." in relative.split("/"):
        yield key, f"{text!r} must not contain '..'"
    for word in re.findall(r"\{([^}]*)\}?", text):
        if word not in PLACEHOLDERS:
            yield key, f"{text!r}: there is no {{{word}}}{schema.likely(word, PLACEHOLDERS)}"


def _known(key: schema.Key, folder: str, folders: Mapping[str, str]) -> Iterator[Finding]:
    if folder not in folders:
        yield key, f"there is no folder {folder!r}{schema.likely(folder, folders)}"
