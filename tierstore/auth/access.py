"""Principals, bearer tokens and the one authorisation function: default deny.

A token is `tst.<access>.<secret part>`; the catalog keeps only its SHA-256. A daemon's credential is
`tsd.<server id>.<secret part>`. Roles nest: readonly < readwrite < admin; a grant is for one bucket or for "*" (all
buckets and, with admin, the cluster). Policy documents of the S3 door add to this with explicit Deny winning last;
they come in through `extra`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tierstore.errors import AccessDenied, NotAuthenticated

Role = Literal["readonly", "readwrite", "admin"]
#: read/list/write/delete act on objects of a bucket; bucket: create, delete or configure it; admin: the cluster.
Action = Literal["read", "list", "write", "delete", "bucket", "admin"]

ROLES: Final[tuple[Role, ...]] = ("readonly", "readwrite", "admin")
_ALLOWED: Final[dict[str, frozenset[str]]] = {
    "readonly": frozenset({"read", "list"}),
    "readwrite": frozenset({"read", "list", "write", "delete"}),
    "admin": frozenset({"read", "list", "write", "delete", "bucket", "admin"}),
}
USER_TOKEN: Final = "tst"  # noqa: S105 - a prefix, not a secret
DAEMON_TOKEN: Final = "tsd"  # noqa: S105 - the same


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who showed a valid credential. grants: bucket or "*" -> role. server: a daemon's id, else 0. policies:
    documents attached to the user, which the S3 door judges by."""

    access: str
    user: str
    grants: Mapping[str, str] = field(default_factory=dict)
    server: int = 0
    policies: tuple[str, ...] = ()

    @property
    def is_daemon(self) -> bool:
        return self.server > 0


ANONYMOUS: Final = Principal(access="", user="anonymous")


def is_allowed(principal: Principal, action: Action, bucket: str = "") -> bool:
    """Whether the roles allow it. bucket "" means the cluster (or all buckets), for which only "*" grants count."""
    role = principal.grants.get("*", "")
    if role and action in _ALLOWED.get(role, ()):
        return True
    if not bucket or action == "admin":
        return False
    return action in _ALLOWED.get(principal.grants.get(bucket, ""), ())


def is_allowed_somewhere(principal: Principal, action: Action) -> bool:
    """Whether the roles allow it on all buckets or on any one: for what belongs to no bucket yet (tickets, leases)."""
    return is_allowed(principal, action) or any(is_allowed(principal, action, bucket) for bucket in principal.grants)


def authorize(principal: Principal, action: Action, bucket: str = "") -> None:
    """Raises NotAuthenticated for nobody, AccessDenied for somebody whose roles do not allow it."""
    if is_allowed(principal, action, bucket):
        return
    if not principal.access and not principal.is_daemon:
        raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
    where = f"bucket {bucket!r}" if bucket else "the cluster"
    raise AccessDenied(f"{principal.access or 'server ' + str(principal.server)} may not {action} in {where}")


def user_token(access: str, secret_bytes: bytes) -> str:
    """The bearer token of an access key; secret_bytes: at least 24 random bytes."""
    return f"{USER_TOKEN}.{access}.{_text(secret_bytes)}"


def daemon_token(server: int, secret_bytes: bytes) -> str:
    return f"{DAEMON_TOKEN}.{server}.{_text(secret_bytes)}"


def _text(secret_bytes: bytes) -> str:
    return base64.urlsafe_b64encode(secret_bytes).rstrip(b"=").decode("ascii")


def token_hash(token: str | bytes) -> bytes:
    """What is stored of a token: its SHA-256 (the token is long and random, so no slow hash is needed)."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def parse_bearer(header: bytes | str | None) -> tuple[str, str, str]:
    """("tst" | "tsd", access or server id, whole token) of an Authorization header.

    Raises NotAuthenticated on anything else, without saying which part was wrong."""
    text = header.decode("latin-1") if isinstance(header, bytes) else (header or "")
    scheme, _, token = text.partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3 or parts[0] not in (USER_TOKEN, DAEMON_TOKEN) or not all(parts):
        raise NotAuthenticated("send a token: Authorization: Bearer tst.<access>.<secret>")
    return parts[0], parts[1], token.strip()
