"""`tierstore export nfs|smb DIR`: writes the configuration that exports a mount and prints the command to run."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from tierstore.errors import ConfigError
from tierstore.fuse import export as configuration

export = typer.Typer(help="Export a mount by NFS or SMB.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="Where the bucket is mounted.")]
State = Annotated[Path | None, typer.Option(help="Where the configuration and the daemon's state go. "
                                                 "[default: DIR.nfs or DIR.smb]")]
Address = Annotated[str, typer.Option(help="The address to listen on.")]


@export.command("nfs")
def nfs(
    directory: Directory, state: State = None, address: Address = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = configuration.NFS_PORT,
) -> None:  # fmt: skip
    """NFSv4.1 by nfs-ganesha (packages nfs-ganesha, nfs-ganesha-vfs); run it as root."""
    directory, place = _places(directory, state, "nfs")
    (place / "recovery").mkdir(exist_ok=True)
    (place / "ganesha.conf").write_text(configuration.nfs(directory, place, port=port, address=address))
    typer.echo(
        f"ganesha.nfsd -F -f {place}/ganesha.conf -L {place}/ganesha.log -p {place}/ganesha.pid\n"
        f"mount -t nfs4 -o vers=4.1,port={port} {address}:/{directory.name} /mnt"
    )


@export.command("smb")
def smb(
    directory: Directory, state: State = None, address: Address = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = configuration.SMB_PORT,
    user: Annotated[str, typer.Option(help="The account whose rights guests get. [default: the user]")] = "",
) -> None:  # fmt: skip
    """SMB by Samba (package samba)."""
    directory, place = _places(directory, state, "smb")
    for name in ("private", "lock", "state", "cache", "ncalrpc"):
        (place / name).mkdir(mode=0o700 if name == "private" else 0o755, exist_ok=True)
    text = configuration.smb(directory, place, port=port, address=address, user=user or getpass.getuser())
    (place / "smb.conf").write_text(text)
    typer.echo(
        f"smbd --foreground --no-process-group --configfile {place}/smb.conf\n"
        f"smbclient //{address}/{directory.name} -p {port} -N"
    )


def _places(directory: Path, state: Path | None, kind: str) -> tuple[Path, Path]:
    directory = directory.absolute()
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory; mount the bucket first")
    place = (state or directory.with_name(f"{directory.name}.{kind}")).absolute()
    place.mkdir(parents=True, exist_ok=True)
    return directory, place
