"""May this caller do this by a native request? His roles and policies, and what the bucket's policy denies.

Conditions are judged here with all that the request shows (docs/adr/0500): address, TLS, time, what it asks for, and,
where a policy looks at them, the tags that the object has. Metadata judges again by what does not hang on the request.

Cost where no policy is: a look at the bucket's view, which is believed for a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from tierstore.auth.access import (
    EXISTING_TAG,
    EXISTING_TAGS_SEEN,
    OF_VERSIONS,
    Action,
    Principal,
    Seen,
    authorize,
    require_by_bucket,
    require_undenied,
)
from tierstore.auth.policy_language import Policy
from tierstore.clock import Clock
from tierstore.errors import NotFound
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.names import version_text
from tierstore.sdk.store import Store
from tierstore.serving.exchange import Exchange
from tierstore.wire.names import BucketView
from tierstore.wire.s3 import POLICY
from tierstore.wire.sites import SITE_USER

#: Headers that conditions know, and the same of what is asked for.
_HEADERS: Final = (
    ("referer", "aws:referer"), ("user-agent", "aws:useragent"), ("if-match", "s3:if-match"),
    ("if-none-match", "s3:if-none-match"),
)  # fmt: skip
#: Nothing else.
NO_MORE: Final[Mapping[str, str]] = {}


class NativeRights:
    """One per gateway process."""

    def __init__(self, catalog: S3Catalog, store: Store, clock: Clock, *, is_secure: bool = False) -> None:
        self._catalog = catalog
        self._store = store
        self._clock = clock
        self._is_secure = is_secure

    def is_plain(self, principal: Principal, bucket: str) -> bool:
        """Whether roles alone decide, as far as is known at once; else `require` has to be asked."""
        view = self._catalog.known(bucket)
        return view is not None and not principal.policies and POLICY not in view.config

    async def require(
        self, exchange: Exchange, principal: Principal, action: Action, bucket: str, key: str, *, version: int = 0,
        asked: Mapping[str, str] = NO_MORE,
    ) -> None:  # fmt: skip
        """For a request on the Exchange seam. asked: condition key -> what else it asks for. Raises NotAuthenticated,
        AccessDenied."""
        if self.is_plain(principal, bucket):
            authorize(principal, action, bucket, key)
            return
        headers = ((name, exchange.header(name.encode())) for name, _ in _HEADERS)
        said = {name: value.decode("latin-1") for name, value in headers if value is not None}
        await self.judge(
            principal, action, bucket, key, address=exchange.peer, headers=said, version=version, asked=asked
        )

    async def judge(
        self, principal: Principal, action: Action, bucket: str, key: str, *, address: str,
        headers: Mapping[str, str], version: int = 0, asked: Mapping[str, str] = NO_MORE,
    ) -> None:  # fmt: skip
        """headers: by their names in lower case. Raises NotAuthenticated, AccessDenied."""
        if not principal.access or principal.user.startswith(SITE_USER):
            authorize(principal, action, bucket, key)
            return
        policy = await self._policy(bucket)
        more = {key_of: [headers[name]] for name, key_of in _HEADERS if name in headers}
        more.update((key_of, [value]) for key_of, value in asked.items())
        if version:
            more["s3:versionid"] = [version_text(version)]
        more[EXISTING_TAGS_SEEN] = []
        if key and action == "read" and _asks(EXISTING_TAG, principal.policies, policy):
            more.update(await self._tags(bucket, key, version))
        sender = principal.sending(Seen(address, self._is_secure, self._clock.now_ms(), more))
        authorize(sender, action, bucket, key)
        if policy:
            require_by_bucket(sender, action, bucket, key, policy=policy)
        if version:
            require_undenied(sender, OF_VERSIONS.get(action, ()), bucket, key, policy=policy)

    async def _policy(self, bucket: str) -> str:
        """"" where there is none, or no bucket: whoever goes on hears that from metadata."""
        try:
            view: BucketView = await self._catalog.bucket(bucket)
        except NotFound:
            return ""
        return view.config.get(POLICY, "")

    async def _tags(self, bucket: str, key: str, version: int) -> dict[str, list[str]]:
        try:
            found = await self._store.find(bucket, key, version=version, first=0, length=1)
        except NotFound:
            return {}
        tags = found.meta.tags if found.meta is not None else {}
        return {EXISTING_TAG + name.lower(): [value] for name, value in tags.items()}


def _asks(key: str, of_user: Iterable[str], of_bucket: str) -> bool:
    return any(Policy.kept(text, of_user=True).asks_for(key) for text in of_user) or (
        bool(of_bucket) and Policy.kept(of_bucket).asks_for(key)
    )
