"""Waiting for files: inotify on the flag folder and, on the radar computer, on the data folder and its day folders.

Events only shorten the wait; what there is to do is found by looking. So a queue that overflowed means no more than
"look now", and a day folder that appears is watched and then looked at.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from inotify_simple import INotify, flags

from dataflow.lib import finished, place, sdnotify
from dataflow.lib.flag import is_flag_name

WAKE_S = 30.0
_ARRIVALS = flags.MOVED_TO | flags.CLOSE_WRITE
_DATA_EVENTS = flags.CREATE | flags.MOVED_TO


class Watch:
    """``flag_came`` tells that a flag arrived since it was last set to False, ``data_came`` that something came into the data."""

    def __init__(self, flag_folders: Sequence[Path], data_folder: Path | None) -> None:
        self._inotify = INotify()
        self._data_folder = data_folder
        self._watched: dict[Path, int] = {}
        self.flag_came = self.data_came = False
        for folder in flag_folders:
            place.make_own_folder(folder)
            self._inotify.add_watch(folder, _ARRIVALS)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler of any kind, so that a child's end wakes the wait
        self._poll = select.poll()
        self._poll.register(self._inotify.fileno(), select.POLLIN)
        self._poll.register(self._wake_reader, select.POLLIN)
        self.watch_data()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._inotify.close()

    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """True when something arrived; False when ``is_over`` says so, or after ``timeout_s``. Feeds the service's watchdog."""
        deadline = time.monotonic() + timeout_s
        while not is_over() and (left_s := deadline - time.monotonic()) > 0:
            sdnotify.notify("WATCHDOG=1")
            if self._take_events(min(left_s, WAKE_S)):
                return True
        return False

    def _take_events(self, timeout_s: float) -> bool:
        """Read what happened; True when it is worth a look."""
        worth = False
        self._poll.poll(int(timeout_s * 1000))
        self._drain_signals()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self.flag_came = self.data_came = worth = True
            elif event.mask & flags.IGNORED:
                self._watched = {folder: watch for folder, watch in self._watched.items() if watch != event.wd}
            elif event.wd in self._watched.values():
                if not event.name.startswith("."):
                    self.data_came = worth = True
            elif is_flag_name(event.name):
                self.flag_came = worth = True
        if worth:
            self.watch_data()
        return worth

    def _drain_signals(self) -> None:
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            pass

    def watch_data(self) -> None:
        """Watch the data folder and its day folders, as far as they are there now."""
        if self._data_folder is None:
            return
        for folder in (self._data_folder, *finished.day_folders(self._data_folder)):
            if folder not in self._watched:
                try:
                    self._watched[folder] = self._inotify.add_watch(folder, _DATA_EVENTS)
                except OSError:
                    continue
