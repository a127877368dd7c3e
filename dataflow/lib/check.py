"""What ``dataflow check`` looks at before a host goes to work, and how to mend each finding."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from dataflow.lib import place
from dataflow.lib.config import MARKER, Config, Here
from dataflow.lib.errors import TryLater
from dataflow.lib.mirror_settings import Mirror

PROGRAMS = {"borealis": ("rsync", "ssh"), "site-linux": ("rsync", "rrsync", "ssh"), "campus": ("rsync", "rrsync")}
MODULES = {
    "borealis": ("inotify_simple", "yaml"),
    "site-linux": ("inotify_simple", "yaml", "numpy", "h5py", "matplotlib", "PIL"),
    "campus": ("inotify_simple", "yaml", "numpy", "h5py", "pydarnio", "matplotlib", "PIL"),
    "mirror": ("yaml", "pydarnio", "paramiko", "globus_sdk"),
}
_PACKAGES = {
    "ssh": "openssh-client", "rrsync": "rsync", "PIL": "pillow", "yaml": "pyyaml", "inotify_simple": "inotify-simple",
    "globus_sdk": "globus-sdk",
}  # fmt: skip
"""The packages that are called otherwise than the program or module that they bring."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``mend``: what to do; empty where all is well."""

    subject: str
    is_good: bool
    message: str
    mend: str = ""


def configuration(loaded: Config) -> Iterator[Finding]:
    """Tell which configuration is in force; one that is wrong was refused before."""
    yield Finding("configuration", True, f"{loaded.source}, sha256 {loaded.sha256[:12]}")
    if loaded.root:
        yield Finding("--root", True, f"every machine has its own folder below {loaded.root}; the commands below need it too")
    for setting in loaded.overrides:
        yield Finding("--set", True, setting)


def look(here: Here, create_markers: bool) -> Iterator[Finding]:
    """Look at the roots, the local folders, the programs and modules of one host and radar."""
    for root, path in here.roots.items():
        yield _root(here, root, path, create_markers)
    relayed = [("logs of other hosts", here.relayed_logs)] if here.upstream else []
    for what, folder in [("state", here.state), ("logs", here.logs), *relayed]:
        yield _writable(what, folder)
    for program in PROGRAMS.get(here.host_name, ()):
        found = shutil.which(program)
        yield Finding(program, bool(found), found or "not installed", "" if found else f"apt install {_package(program)}")
    for module in MODULES.get(here.host_name, ()):
        present = util.find_spec(module) is not None
        mend = "" if present else f"{sys.executable} -m pip install {_PACKAGES.get(module, module)}"
        yield Finding(module, present, "present" if present else "missing", mend)
    if here.host_name == "campus" and not shutil.which("lbzip2"):
        yield Finding("lbzip2", True, "not installed: conversion compresses on one core", "apt install lbzip2")


def secrets(mirror: Mirror) -> Iterator[Finding]:
    """Look at the files with which the mirror shows who it is: keys, host keys, tokens."""
    stores = {"the mirror": mirror.store, **{name: partner.store for name, partner in mirror.partners.items()}}
    if mirror.hub is not None:
        stores["the hub"] = mirror.hub.store
    for what, store in stores.items():
        for word, mend in (
            ("key_file", "ssh-keygen -t ed25519 -N '' -f {path}, and send them the .pub"),
            ("known_hosts", "once the people there have confirmed the fingerprint: ssh-keyscan -p {port} {address} >> {path}"),
            ("token_file", "dataflow mirror login"),
        ):
            if (text := getattr(store, word)) is not None:
                mend = mend.format(path=text, address=store.address, port=store.port)
                yield _secret(f"{word} of {what}", Path(text), word != "known_hosts", mend)


def _secret(subject: str, path: Path, is_private: bool, mend: str) -> Finding:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        return Finding(subject, False, f"{path}: {error.strerror}", mend)
    if is_private and mode & 0o077:
        return Finding(subject, False, f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
    return Finding(subject, True, str(path))


def _root(here: Here, root: str, path: Path, create_marker: bool) -> Finding:
    try:
        place.require_answer(here, root)
    except TryLater as error:
        return Finding(f"root {root}", False, str(error), f"is its server up? Then, as root: umount -f -l {path}; mount {path}")
    if create_marker:
        _create_marker(root, path)
    try:
        place.check_root(here, root)
    except TryLater as error:
        again = f"dataflow check {here.host_name} --radar {here.radar} --create-markers"
        return Finding(f"root {root}", False, str(error), f"mount {path}, then: {again}")
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(f"root {root}", False, f"{path} is not writable", f"chown it to {here.host.user}")
    free = shutil.disk_usage(path)
    return Finding(f"root {root}", True, f"{path}, {free.free / 1e9:.1f} GB free")


def _create_marker(root: str, path: Path) -> None:
    marker = path / MARKER
    if not marker.exists():
        path.mkdir(parents=True, exist_ok=True)
        place.write_whole(marker, root.encode() + b"\n")


def _writable(what: str, folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Finding(what, False, f"{folder}: {error.strerror}", f"create {folder} and give it to the host's user")
    good = os.access(folder, os.W_OK | os.X_OK)
    return Finding(what, good, str(folder), "" if good else f"give {folder} to the host's user")


def _package(program: str) -> str:
    return _PACKAGES.get(program, program)
