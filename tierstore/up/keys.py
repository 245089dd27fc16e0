"""The random credentials of a cluster that `up` made: created once, kept in DATA/keys, one file each, mode 0600.

There are no default credentials anywhere: a data directory without keys gets new ones, one with keys keeps them.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tierstore import statefile
from tierstore.auth.access import user_token
from tierstore.errors import ConfigError

#: boto3 and the AWS tools sign for it unless told otherwise.
REGION: Final = "us-east-1"
#: Master keys of encrypted S3 objects: without this file they cannot be read.
MASTER_KEYS: Final = "s3_master_keys"
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True, slots=True)
class Keys:
    """access_key, secret_key: for signed requests; token: bearer token of the same key (role admin);
    join_token: lets daemons join. `directory` holds a file for each."""

    directory: Path
    access_key: str
    secret_key: str
    token: str
    join_token: str

    def file(self, name: str) -> str:
        return str(self.directory / name)


def load_or_create(directory: Path) -> Keys:
    """The keys in `directory`, made if it does not exist. Raises ConfigError when some are missing."""
    names = ("access_key", "secret_key", "token", "join_token")
    if not directory.exists():
        access = "TS" + "".join(secrets.choice(_ALPHABET) for _ in range(18))
        values = {
            "access_key": access,
            "secret_key": secrets.token_urlsafe(30),
            "token": user_token(access, secrets.token_bytes(24)),
            "join_token": secrets.token_urlsafe(24),
        }
        # All or none: written beside and renamed, so that a crash leaves no half set.
        staged = directory.with_name(f"{directory.name}.new")
        staged.mkdir(mode=0o700, exist_ok=True)
        for name, value in values.items():
            write_private(staged / name, value + "\n")
        staged.rename(directory)
        statefile.sync_directory(str(directory.parent))
    master = directory / MASTER_KEYS
    if not master.exists():     # also in a directory of an earlier release
        write_private(master, f"up:{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
    try:
        found = {name: (directory / name).read_text().strip() for name in names}
    except OSError as error:
        detail = f"{error.filename} cannot be read ({error.strerror}); restore it, or use another --data"
        raise ConfigError(detail) from None
    return Keys(directory=directory, **found)


def write_private(path: Path, text: str) -> None:
    """Replace a file by `text`, mode 0600, whole or not at all, synced."""
    statefile.replace(str(path), text.encode())
