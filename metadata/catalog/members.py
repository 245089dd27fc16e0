"""What a commit must know of the devices and servers that its receipts come from, read in its own transaction."""

from __future__ import annotations

from typing import Final

from metadata.catalog import schema
from metadata.catalog.session import BulkRead

#: (id, server_id, state) and (id, incarnation, state). Whoever changes them calls session.lock_out_commits first.
DEVICES: Final = BulkRead(schema.devices, ("id", "server_id", "state"), ("id",))
SERVERS: Final = BulkRead(schema.servers, ("id", "incarnation", "state"), ("id",))
#: Devices of these states, and devices of servers of these states, take part in no new commit (rule 11).
REFUSED_STATES: Final = frozenset({"drained", "removed"})
