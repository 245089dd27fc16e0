"""The mount's own device is found among all mounts without asking the mount."""

from __future__ import annotations

from tierstore.fuse.ahead import device_of

MOUNTS = (
    b"22 1 254:0 / / rw - ext4 /dev/vda rw\n"
    b"30 22 0:57 / /mnt/a\\040b rw - fuse.tierstore tierstore#a rw\n"
    b"31 22 0:58 / /mnt/c rw - fuse.tierstore tierstore#c rw\n"
    b"32 31 0:59 / /mnt/c rw - fuse.tierstore tierstore#d rw\n"
)


def test_the_newest_mount_on_a_directory() -> None:
    """Spaces are written as octal numbers; a second mount lies over the first."""
    assert device_of("/mnt/a b", MOUNTS) == "0:57"
    assert device_of("/mnt/c", MOUNTS) == "0:59"
    assert device_of("/mnt", MOUNTS) is None
