"""The directory of one device: names, identity (device.json), the lock, and how names are made durable.

    device.json   format, uuid, tier, cluster id, highest catalog sequence seen; replaced whole
    lock          flock: one process per device
    reserve       ballast, given back when a delete meets a full disk
    segments/NNNNNNNN.seg, segments/high-water (no segment up to this number may be made again)
    files/xx/<chunk id>, trash/<chunk id>.<wall ms>, quarantine/, index/

Invariant: a directory that holds anything but no device.json is never formatted, and a device.json of another format,
uuid or tier than expected is refused before anything is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid as uuids
from dataclasses import asdict, dataclass, replace
from typing import Final

from tierstore.errors import ConfigError, UnavailableError
from tierstore.failpoints import hit
from tierstore.names import Tier

FORMAT: Final = 1
DIRECTORIES: Final = ("segments", "files", "trash", "quarantine", "index")


@dataclass(frozen=True, slots=True)
class Identity:
    format: int
    uuid: str
    tier: str
    cluster_id: str = ""
    seen_sequence: int = 0


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Blocking."""
    hit("store.directory.before_sync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    hit("store.directory.after_sync")


def replace_file(path: str, content: bytes) -> None:
    """Replace a small file durably and whole. Blocking."""
    staged = path + ".new"
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, content)
        hit("store.layout.before_sync")
        os.fsync(fd)
    finally:
        os.close(fd)
    hit("store.layout.before_rename")
    os.replace(staged, path)
    sync_directory(os.path.dirname(path))


class Layout:
    def __init__(self, root: str, identity: Identity, lock_fd: int) -> None:
        self.root = root
        self.identity = identity
        self._lock_fd = lock_fd
        self.segments = os.path.join(root, "segments")
        self.files = os.path.join(root, "files")
        self.trash = os.path.join(root, "trash")
        self.quarantine = os.path.join(root, "quarantine")
        self.index = os.path.join(root, "index")
        self.reserve = os.path.join(root, "reserve")

    @classmethod
    def open(cls, root: str, *, tier: Tier, expected_uuid: bytes | None = None) -> Layout:
        """Lock the directory, format it if it is empty, check whose it is. Blocking.
        Raises ConfigError (not ours, another device's) and UnavailableError(code="device-in-use")."""
        root = os.path.abspath(root)
        os.makedirs(root, exist_ok=True)
        described = os.path.join(root, "device.json")
        if not os.path.exists(described):
            strange = sorted(set(os.listdir(root)) - {"lock", "lost+found", "device.json.new", *DIRECTORIES})
            if strange or (expected_uuid is None and _has_content(root)):
                raise ConfigError(f"{root} holds {', '.join(strange[:3]) or 'chunks'} but no device.json: give the "
                                  "device an empty directory, or restore its device.json")
        lock_fd = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(f"{root} is in use by another process", code="device-in-use") from None
            identity = _read(described) if os.path.exists(described) else _format(root, tier, expected_uuid)
            if expected_uuid is not None and identity.uuid != expected_uuid.hex():
                raise ConfigError(f"{root} is device {identity.uuid}, expected was {expected_uuid.hex()}: disks "
                                  "exchanged? Mount the right one or correct the configuration")
            layout = cls(root, identity, lock_fd)
            for name in DIRECTORIES:
                os.makedirs(os.path.join(root, name), exist_ok=True)
            if identity.tier != tier:
                layout.store(replace(identity, tier=tier))
        except BaseException:   # whatever went wrong, the lock must not stay behind
            os.close(lock_fd)
            raise
        return layout

    def store(self, identity: Identity) -> None:
        """Write device.json durably. Blocking."""
        replace_file(os.path.join(self.root, "device.json"), json.dumps(asdict(identity), indent=1).encode() + b"\n")
        self.identity = identity

    def segment_path(self, number: int) -> str:
        return os.path.join(self.segments, f"{number:08d}.seg")

    def segment_numbers(self) -> list[int]:
        return sorted(int(n[:-4]) for n in os.listdir(self.segments) if n.endswith(".seg") and n[:-4].isdigit())

    def high_water(self) -> int:
        """The highest segment number that was ever unlinked, 0 if none. Raises ConfigError if it cannot be read."""
        try:
            with open(os.path.join(self.segments, "high-water"), "rb") as file:
                return int(file.read())
        except FileNotFoundError:
            return 0
        except ValueError:
            raise ConfigError(f"{self.segments}/high-water is damaged: write the highest segment number that was "
                              "ever used into it") from None

    def raise_high_water(self, number: int) -> None:
        """Durable before a segment is unlinked: its number is never used again. Blocking."""
        if number > self.high_water():
            replace_file(os.path.join(self.segments, "high-water"), b"%d\n" % number)

    def file_directory(self, chunk: bytes) -> str:
        # byte 11 is random; the first bytes are a time and the last a chunk's index, they would crowd few directories
        return os.path.join(self.files, f"{chunk[11]:02x}")

    def file_path(self, chunk: bytes) -> str:
        return os.path.join(self.file_directory(chunk), chunk.hex())

    def trash_path(self, chunk: bytes, wall_ms: int) -> str:
        return os.path.join(self.trash, f"{chunk.hex()}.{wall_ms}")

    def fill_ballast(self, count: int) -> None:
        """Allocate the ballast if there is room for it. Blocking."""
        fd = os.open(self.reserve, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if count > 0 and os.fstat(fd).st_size < count:
                with contextlib.suppress(OSError):  # a full disk: it is filled when space has returned
                    os.posix_fallocate(fd, 0, count)
        finally:
            os.close(fd)

    def release_ballast(self) -> bool:
        """Give the ballast back to the file system; False if there was none. Blocking."""
        try:
            had = os.stat(self.reserve).st_size > 0
            os.truncate(self.reserve, 0)
        except OSError:
            return False
        return had

    def close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def _has_content(root: str) -> bool:
    """True if a formatted device lost its device.json: an interrupted format leaves only empty directories."""
    segments = os.path.join(root, "segments")
    return os.path.isdir(segments) and any(name.endswith(".seg") for name in os.listdir(segments))


def _read(path: str) -> Identity:
    try:
        with open(path, "rb") as file:
            raw = json.load(file)
        identity = Identity(int(raw["format"]), str(raw["uuid"]), str(raw["tier"]), str(raw["cluster_id"]),
                            int(raw["seen_sequence"]))
        bytes.fromhex(identity.uuid)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it from a copy; its uuid stands in the "
                          "catalog") from None
    if identity.format != FORMAT:
        raise ConfigError(f"{path} has format {identity.format}, this release reads format {FORMAT}")
    return identity


def _format(root: str, tier: Tier, uuid: bytes | None) -> Identity:
    identity = Identity(FORMAT, (uuid or uuids.uuid4().bytes).hex(), tier)
    for name in DIRECTORIES:
        os.makedirs(os.path.join(root, name), exist_ok=True)
    for number in range(256):
        os.makedirs(os.path.join(root, "files", f"{number:02x}"), exist_ok=True)
    sync_directory(os.path.join(root, "files"))
    replace_file(os.path.join(root, "device.json"), json.dumps(asdict(identity), indent=1).encode() + b"\n")
    return identity
