"""Policies attached to users, as the rows of their keys hold them. Pure.

A user is the name that keys share; every key of a user carries the same policies, so a key is judged by one row.
"""

from __future__ import annotations

import json
from typing import Final

from metadata.catalog.accounts import Account
from tierstore.auth.policy_language import Policy, PolicyError
from tierstore.errors import RequestError

POLICIES_MAX: Final = 10
NAME_CHARACTERS_MAX: Final = 128


def packed(name: str, document: str) -> str:
    return json.dumps([name, document])


def policies_of(account: Account) -> list[tuple[str, str]]:
    """(name, document) of each."""
    return [(name, document) for name, document in map(json.loads, account.policies)]


def with_policy(account: Account, name: str, document: str | None) -> tuple[str, ...]:
    """The policies with this one set or (None) gone. Raises RequestError(bad-policy) beyond POLICIES_MAX."""
    held = {held_name: text for held_name, text in policies_of(account) if held_name != name}
    if document is not None:
        held[name] = document
    if len(held) > POLICIES_MAX:
        raise RequestError(f"a user has at most {POLICIES_MAX} policies", code="bad-policy")
    return tuple(packed(*pair) for pair in sorted(held.items()))


def check(name: str, document: str) -> None:
    """Raises RequestError(bad-policy)."""
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise RequestError(f"a policy's name has 1 to {NAME_CHARACTERS_MAX} printable characters", code="bad-policy")
    try:
        Policy.of_user(document)
    except PolicyError as error:
        raise RequestError(f"policy {name!r}: {error}", code="bad-policy") from None
