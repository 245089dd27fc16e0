"""Rows of `credentials`, `policies` and `audit`, and the revisions by which every process notices a change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.feed import NewChange, append
from metadata.catalog.leases import lock_setting
from tierstore.errors import ConflictError, NotFound

_AUTH_REVISION: Final = "auth_revision"


@dataclass(frozen=True, slots=True)
class Account:
    """One access key. grants: bucket or "*" -> role; expires_at_ms 0: never."""

    access: str
    user: str
    grants: dict[str, str]
    token_sha256: bytes
    secret: str
    enabled: bool
    policies: tuple[str, ...]
    created_at_ms: int
    expires_at_ms: int


def _account(row: Any) -> Account:
    return Account(
        row.access, row.user, json.loads(row.grants), bytes(row.token_sha256), row.secret, bool(row.enabled),
        tuple(json.loads(row.policies)), row.created_at_ms, row.expires_at_ms,
    )  # fmt: skip


def hold(connection: sa.Connection) -> None:
    """Until the end of the transaction nobody else changes access keys: for whoever changes one as it stands, or takes
    from one to another."""
    lock_setting(connection, _AUTH_REVISION)


def by_access(connection: sa.Connection, access: str) -> Account | None:
    row = connection.execute(sa.select(schema.credentials).where(schema.credentials.c.access == access)).first()
    return None if row is None else _account(row)


def by_token(connection: sa.Connection, token_sha256: bytes) -> Account | None:
    t = schema.credentials
    row = connection.execute(sa.select(t).where(t.c.token_sha256 == token_sha256)).first()
    return None if row is None else _account(row)


def everyone(connection: sa.Connection) -> list[Account]:
    """All access keys by name."""
    query = sa.select(schema.credentials).order_by(schema.credentials.c.access)
    return [_account(row) for row in connection.execute(query)]


def of_user(connection: sa.Connection, user: str) -> list[Account]:
    """The access keys of a user, by name."""
    t = schema.credentials
    return [_account(row) for row in connection.execute(sa.select(t).where(t.c.user == user).order_by(t.c.access))]


def has_user(connection: sa.Connection, user: str) -> bool:
    """Whether any access key belongs to a user of this name."""
    t = schema.credentials
    return connection.execute(sa.select(sa.literal(1)).where(t.c.user == user).limit(1)).first() is not None


def insert(connection: sa.Connection, account: Account) -> int:
    """A new access key; the new auth revision. Raises ConflictError(code="key-exists")."""
    if by_access(connection, account.access) is not None:
        raise ConflictError(f"there is an access key {account.access!r} already", code="key-exists")
    connection.execute(sa.insert(schema.credentials).values(**_values(account), access=account.access))
    return _changed(connection, account.access, account.created_at_ms)


def replace(connection: sa.Connection, account: Account, *, at_ms: int) -> int:
    """Change an access key; the new auth revision. Raises NotFound(code="no-such-access-key")."""
    t = schema.credentials
    done = connection.execute(sa.update(t).where(t.c.access == account.access).values(**_values(account)))
    if not done.rowcount:
        raise NotFound(f"there is no access key {account.access!r}", code="no-such-access-key")
    return _changed(connection, account.access, at_ms)


def delete(connection: sa.Connection, access: str, *, at_ms: int) -> int:
    """Revoke for good; the new auth revision. Raises NotFound(code="no-such-access-key")."""
    t = schema.credentials
    if not connection.execute(sa.delete(t).where(t.c.access == access)).rowcount:
        raise NotFound(f"there is no access key {access!r}", code="no-such-access-key")
    return _changed(connection, access, at_ms)


def _values(account: Account) -> dict[str, object]:
    return {
        "user": account.user, "grants": json.dumps(account.grants), "token_sha256": account.token_sha256,
        "secret": account.secret, "enabled": account.enabled, "policies": json.dumps(list(account.policies)),
        "created_at_ms": account.created_at_ms, "expires_at_ms": account.expires_at_ms,
    }  # fmt: skip


def _changed(connection: sa.Connection, access: str, at_ms: int) -> int:
    append(connection, [NewChange(schema.CHANGE_CREDENTIAL, 0, access, 0)], at_ms=at_ms)
    s = schema.settings
    revision = auth_revision(connection) + 1
    if not connection.execute(sa.update(s).where(s.c.name == _AUTH_REVISION).values(value=str(revision))).rowcount:
        connection.execute(sa.insert(s).values(name=_AUTH_REVISION, value=str(revision)))
    return revision


def auth_revision(connection: sa.Connection) -> int:
    """Rises with every change of an access key; 0: none was made yet."""
    s = schema.settings.c
    return int(connection.execute(sa.select(s.value).where(s.name == _AUTH_REVISION)).scalar() or 0)


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One version of the policy document (JSON). note: why, as the operator wrote it."""

    revision: int
    document: str
    at_ms: int
    who: str
    note: str


def newest_policy(connection: sa.Connection) -> PolicyRow | None:
    """None: none was ever set, the defaults hold."""
    t = schema.policies
    row = connection.execute(sa.select(t).order_by(t.c.revision.desc()).limit(1)).first()
    return None if row is None else PolicyRow(*row)


def policy(connection: sa.Connection, revision: int) -> PolicyRow:
    """Raises NotFound(code="no-such-revision")."""
    t = schema.policies
    row = connection.execute(sa.select(t).where(t.c.revision == revision)).first()
    if row is None:
        raise NotFound(f"there is no revision {revision} of the policy", code="no-such-revision")
    return PolicyRow(*row)


def policy_history(connection: sa.Connection, limit: int) -> list[PolicyRow]:
    """The newest first."""
    t = schema.policies
    return [PolicyRow(*row) for row in connection.execute(sa.select(t).order_by(t.c.revision.desc()).limit(limit))]


def add_policy(
    connection: sa.Connection, document: str, *, at_ms: int, who: str, note: str, expected: int | None
) -> PolicyRow:
    """The next revision. expected: the revision it is meant to replace. Raises ConflictError(code="policy-changed")."""
    newest = newest_policy(connection)
    current = newest.revision if newest is not None else 0
    if expected is not None and expected != current:
        raise ConflictError(
            f"the policy is at revision {current}, not {expected}: look at it and try again", code="policy-changed"
        )
    row = PolicyRow(current + 1, document, at_ms, who, note)
    try:
        connection.execute(
            sa.insert(schema.policies).values(
                revision=row.revision, document=document, at_ms=at_ms, who=who, note=note
            )
        )
    except sa.exc.IntegrityError:
        raise ConflictError("somebody else changed the policy at this moment", code="policy-changed") from None
    append(connection, [NewChange(schema.CHANGE_POLICY, 0, "", row.revision)], at_ms=at_ms)
    return row


@dataclass(frozen=True, slots=True)
class AuditRow:
    id: int
    at_ms: int
    who: str
    action: str
    target: str
    detail: str


def note(connection: sa.Connection, *, at_ms: int, who: str, action: str, target: str = "", detail: str = "") -> None:
    """Write down what an operator did, in the same transaction."""
    connection.execute(
        sa.insert(schema.audit).values(at_ms=at_ms, who=who, action=action, target=target, detail=detail)
    )


def audit_page(connection: sa.Connection, *, before: int, limit: int) -> list[AuditRow]:
    """The newest first; before: an id (0: from the newest)."""
    t = schema.audit
    query = sa.select(t).order_by(t.c.id.desc()).limit(limit)
    if before:
        query = query.where(t.c.id < before)
    return [AuditRow(*row) for row in connection.execute(query)]
