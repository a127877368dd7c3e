"""Real disks to break: a small ext4 in a file, mounted through a loop device, that can be filled, torn off and garbled.

    python -m faults.disks flip FOLDER FILE       turn one bit of a file, on the disk that is mounted at FOLDER

Needs root. What is done to a disk here happens below whoever uses it: the bytes that are turned are those of the device, so the
page cache still holds the right ones, and only a reader who asks the disk again sees the damage.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE = ".disk"
FIBMAP, FIGETBSZ = 1, 2
"""ioctl(2) of the kernel's linux/fs.h: the block of the device in which a block of a file lies, and the size of blocks."""


class Disk:
    """One mounted disk. What it holds is in ``image``, a sparse file."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.image = image
        self._filler = folder / ".filler"

    def fill(self) -> None:
        """Leave not one free byte; names can still be made, as long as their folders have room for them."""
        self._filler.mkdir()
        with (self._filler / "large").open("wb", buffering=0) as large, (self._filler / "small").open("wb", buffering=0) as small:
            _until_full(lambda number: os.posix_fallocate(large.fileno(), number << 24, 1 << 24))
            for size_bytes in (1 << 12, 1 << 9):
                _until_full(lambda number, size_bytes=size_bytes: small.write(bytes(size_bytes)))

    @property
    def is_full(self) -> bool:
        """Whether it was filled and not emptied since."""
        return self._filler.exists()

    def make_room(self) -> None:
        """Take back what ``fill`` took."""
        shutil.rmtree(self._filler)

    def read_only(self) -> None:
        """Refuse every change from now on, as ext4 does after an error."""
        _run("mount", "-o", "remount,ro", self.folder)

    def writable(self) -> None:
        """Take changes again."""
        _run("mount", "-o", "remount,rw", self.folder)

    def tear_off(self) -> None:
        """Unmount it under its users: who has a file open keeps it, who asks for a name finds the empty mount point."""
        _run("umount", "--lazy", self.folder)

    def mount(self) -> None:
        """Mount it (again); what was torn off comes back as it was left."""
        _run("mount", "-o", "loop", self.image, self.folder)

    def flip(self, file: Path, at: float = 0.5) -> None:
        """Turn one bit of a file on the device; its size, its times and what the page cache holds stay as they are."""
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            size = os.fstat(stream.fileno()).st_size
            block_bytes = _ask(stream.fileno(), FIGETBSZ, 0)
            offset = int(size * at)
            block = _ask(stream.fileno(), FIBMAP, offset // block_bytes)
        with self.image.open("r+b", buffering=0) as device:
            place = block * block_bytes + offset % block_bytes
            (byte,) = os.pread(device.fileno(), 1, place)
            os.pwrite(device.fileno(), bytes([byte ^ 1]), place)


@contextlib.contextmanager
def mounted(folder: Path, size_bytes: int = 24 << 20) -> Iterator[Disk]:
    """A disk of its own in place of a folder, with what lies there; afterwards that lies in the folder again, where it can."""
    if os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "mounting needs root: run this as root, in a container if need be")
    aside = folder.with_name(f".{folder.name}.before")
    folder.rename(aside)
    folder.mkdir(mode=stat.S_IMODE(aside.stat().st_mode))
    image = _image_of(folder)
    disk = Disk(folder, image)
    try:
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image)
        disk.mount()
        (folder / "lost+found").rmdir()
        shutil.copytree(aside, folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(aside)
        yield disk
    finally:
        while os.path.ismount(folder):
            disk.tear_off()
        image.unlink(missing_ok=True)


def disk_at(folder: Path) -> Disk:
    """The disk that is mounted at a folder, for another process than the one that mounted it."""
    return Disk(folder, _image_of(folder))


def is_image(path: Path) -> bool:
    """Whether a file is what a disk holds, beside the folder where that is mounted."""
    return path.name.startswith(".") and path.suffix == IMAGE


def _image_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{IMAGE}")


def _until_full(write: Callable[[int], object]) -> None:
    for number in range(1_000_000):
        try:
            write(number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return
    raise AssertionError("the disk does not fill")


def _ask(descriptor: int, request: int, value: int) -> int:
    answer = array.array("i", [value])
    fcntl.ioctl(descriptor, request, answer)
    return answer[0]


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


if __name__ == "__main__":
    if sys.argv[1] == "flip":
        disk_at(Path(sys.argv[2])).flip(Path(sys.argv[3]))
    else:
        sys.exit(__doc__)
