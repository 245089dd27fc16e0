"""The mount's own process: `python -m tierstore.fuse FD` reads what to mount where from that descriptor.

`tierstore mount` becomes it (same pid): the command line's libraries are as much memory again as a mount needs.
"""

from __future__ import annotations

import os
import sys

import msgspec

from tierstore.errors import ConfigError, TierstoreError
from tierstore.fuse import NEEDS


def main() -> int:
    with os.fdopen(int(sys.argv[1]), "rb") as pipe:
        told = pipe.read()
    try:
        try:
            from tierstore.fuse.main import Wish, serve
        except ImportError:
            raise ConfigError(NEEDS) from None
        serve(msgspec.json.decode(told, type=Wish))
    except TierstoreError as error:
        sys.stderr.write(f"tierstore: {error.detail or error.code}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
