"""Opening a device's directory: lock, identity, index, recovery, in that order; before the loop has the device.

Invariant: an index that cannot be used is put aside, never repaired in place; it is rebuilt from segments and files.
"""

from __future__ import annotations

import os

from objectd.store import records
from objectd.store.index import Index
from objectd.store.layout import Layout
from objectd.store.recovery import Recovery, Report
from objectd.store.settings import StoreSettings
from tierstore.clock import Clock
from tierstore.errors import IntegrityError
from tierstore.names import Tier


def open_directory(path: str, tier: Tier, expected_uuid: bytes | None, settings: StoreSettings,
                   clock: Clock) -> tuple[Layout, Index, Report]:
    """Lock and format or recover the directory; its index is up to date and marked as in use. Blocking."""
    layout = Layout.open(path, tier=tier, expected_uuid=expected_uuid)
    try:
        layout.fill_ballast(settings.ballast_bytes)
        uuid = bytes.fromhex(layout.identity.uuid)
        notes: list[str] = []
        try:
            index = Index.open(layout.index, uuid=uuid, map_bytes=settings.index_map_bytes)
        except IntegrityError as error:
            aside = os.path.join(layout.quarantine, f"index.{clock.now_ms()}")
            os.rename(layout.index, aside)
            notes.append(f"{error}; it was put into {aside} and is rebuilt from segments and files")
            index = Index.open(layout.index, uuid=uuid, map_bytes=settings.index_map_bytes)
        report = Recovery(layout, index, seed=records.seed_of(uuid), now_ms=clock.now_ms).run()
        report.notes[:0] = notes
        index.mark_clean(False)
    except BaseException:   # whatever it was, the lock must not stay
        layout.close()
        raise
    return layout, index, report
