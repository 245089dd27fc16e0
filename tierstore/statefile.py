"""Small files that must survive a power cut: identities, secrets, settings written by a program.

Owns the one way to write them: temporary file beside, fsync, rename, fsync of the directory. Invariant: after a cut the
name shows the old content or the new one, whole; when `replace` has returned, the new one. A rename alone is not
enough: ext4 may bring the old name back, or none if the file is new. Blocking; the files are a few hundred bytes.
"""

from __future__ import annotations

import os

from tierstore.failpoints import hit


def make_directory(path: str, *, mode: int = 0o700) -> None:
    """The directory and its missing parents; each new name is durable when it returns. Raises OSError."""
    path = os.path.abspath(path)
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        os.makedirs(directory, mode=mode, exist_ok=True)    # another process may make it at the same moment
        sync_directory(os.path.dirname(directory))


def replace(path: str, content: bytes, *, mode: int = 0o600) -> None:
    """Write the file whole, in place of what is there. Durable when it returns. Raises OSError."""
    # two lives of one daemon may overlap in a planned restart: each has a temporary file of its own
    staged = f"{path}.{os.getpid()}.new"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        hit("statefile.before_sync")
        os.fsync(fd)
    finally:
        os.close(fd)
    hit("statefile.before_rename")
    os.replace(staged, path)
    hit("statefile.after_rename")
    sync_directory(os.path.dirname(os.path.abspath(path)))


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
