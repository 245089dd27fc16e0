"""The SDK: `connect` or `SyncStore` to begin; `Store` has the calls."""

from tierstore.sdk.connect import connect
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.objects import ObjectInfo, ObjectReader, PutInfo
from tierstore.sdk.store import Store
from tierstore.sdk.sync import SyncStore
from tierstore.wire.names import Condition, ObjectMeta

__all__ = [
    "Condition", "ObjectInfo", "ObjectMeta", "ObjectReader", "PutInfo", "Store", "StoreLimits", "SyncStore", "connect",
]  # fmt: skip
