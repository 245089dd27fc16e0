"""May somebody do this in a bucket? His roles and policies, and what the bucket's own policy denies (docs/adr/0500).

Whoever asks through a gateway was judged there by the bucket's policy, with all that conditions may ask; whoever asks
metadata himself (SDK, mounts) is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence

from metadata.catalog.buckets import Bucket
from metadata.services.names.claims import check_bucket
from tierstore.auth.access import Action, Principal, authorize, authorize_all, require_by_bucket, require_undenied
from tierstore.wire.s3 import POLICY


def authorize_in(who: Principal, action: Action, bucket: Bucket, key: str = "") -> None:
    """Raises as tierstore.auth.access.authorize does."""
    authorize(who, action, bucket.name, key)
    require_by_policy(who, action, bucket, key)


def require_by_policy(who: Principal, action: Action, bucket: Bucket, key: str = "") -> None:
    """Only what the bucket's policy says of it. Raises AccessDenied, NotFound for the system's own buckets."""
    check_bucket(who, bucket.name)
    if bucket.config and (policy := bucket.config.get(POLICY)):
        require_by_bucket(who, action, bucket.name, key, policy=policy)


def authorize_more(who: Principal, names: Sequence[str], bucket: Bucket, key: str) -> None:
    """For S3 actions that a change is beside the one it was authorized for. Raises AccessDenied where one is denied."""
    require_undenied(who, names, bucket.name, key, policy=bucket.config.get(POLICY, ""))


def authorize_bypass(who: Principal, bucket: Bucket) -> None:
    """For what destroys or weakens under governance. A gateway has judged that its caller may; whoever asks metadata
    himself must be allowed to configure the bucket. Raises AccessDenied."""
    if not (who.is_daemon or who.seen.is_judged):
        authorize_in(who, "bucket", bucket)


def authorize_all_in(who: Principal, action: Action, bucket: Bucket) -> None:
    """For doors that see the bucket as a whole. Raises as authorize_in does."""
    check_bucket(who, bucket.name)
    authorize_all(who, action, bucket.name)
    if bucket.config and (policy := bucket.config.get(POLICY)):
        require_by_bucket(who, action, bucket.name, "*", policy=policy, of_all=True)
