"""Configurations that export a mount further: NFS by nfs-ganesha (FSAL_VFS, NFSv4.1), SMB by Samba's smbd. Pure.

NFSv4 only: no portmapper, one port. The recovery directory and the file system's id are explicit, because a FUSE mount
has neither a UUID of its own nor a place in /var that is ours. ganesha keeps no directory entries, and attributes for a
second: other mounts, S3 and REST change the bucket and it is not told; the mount below is, and has caches of its own.
smbd runs on one port of one address, its state beside the configuration.
"""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

NFS_PORT = 2049
SMB_PORT = 4450


def nfs(directory: Path, state: Path, *, port: int, address: str) -> str:
    """ganesha.conf for one mount. state: an existing directory of ganesha's own."""
    number = crc32(str(directory).encode())
    return f"""\
# Written by `tierstore export nfs`. Run:
# ganesha.nfsd -F -f {state}/ganesha.conf -L {state}/ganesha.log -p {state}/ganesha.pid
NFS_CORE_PARAM {{
    Protocols = 4;
    NFS_Port = {port};
    Bind_addr = {address};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
}}
NFSv4 {{
    RecoveryBackend = fs;
    RecoveryRoot = "{state}/recovery";
    Grace_Period = 10;
    Lease_Lifetime = 10;
    Minor_Versions = 1;
    Only_Numeric_Owners = true;
}}
# Entries of directories that ganesha kept would be stale when somebody else renames: then listing fails.
MDCACHE {{ Dir_Chunk = 0; }}
EXPORT {{
    Export_Id = {number % 65000 + 1};
    Path = "{directory}";
    Pseudo = "/{directory.name}";
    Filesystem_Id = {number % 65000 + 1}.{number % 1000 + 1};
    Protocols = 4;
    Transports = TCP;
    Access_Type = RW;
    Squash = No_Root_Squash;
    SecType = sys;
    Attr_Expiration_Time = 1;
    FSAL {{ Name = VFS; }}
}}
LOG {{ Default_Log_Level = EVENT; }}
"""


def smb(directory: Path, state: Path, *, port: int, address: str, user: str) -> str:
    """smb.conf for one mount. user: the account whose rights the guests get."""
    return f"""\
# Written by `tierstore export smb`. Run: smbd --foreground --no-process-group --configfile {state}/smb.conf
[global]
    server role = standalone server
    server min protocol = SMB2
    interfaces = {address}
    bind interfaces only = yes
    smb ports = {port}
    disable netbios = yes
    map to guest = Bad User
    guest account = {user}
    private dir = {state}/private
    lock directory = {state}/lock
    state directory = {state}/state
    cache directory = {state}/cache
    pid directory = {state}
    ncalrpc dir = {state}/ncalrpc
    log file = {state}/smbd.log
    load printers = no
    printing = bsd
    printcap name = /dev/null
    unix extensions = no
    # The kernel keeps no share modes for FUSE; oplocks would let two doors of one bucket disagree.
    kernel share modes = no
    oplocks = no
    ea support = yes
    store dos attributes = no

[{directory.name}]
    path = {directory}
    read only = no
    guest ok = yes
    force user = {user}
"""
