"""Object lock as the catalog keeps it: retention and legal hold in ObjectMeta.extra, the rule in a bucket's document.

Owns the names and forms of both, and the judgement whether a version may go. Pure; metadata enforces it in the commit,
so that every door (S3, native REST, lifecycle) meets the same lock.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tierstore.wire.names import ObjectMeta

#: Document of a bucket with object lock: JSON of LockRule.
DOCUMENT: Final = "s3.object-lock"
#: Names in ObjectMeta.extra; all begin with MARK, so that rows without a lock are told by a search for bytes.
MARK: Final = b"s3.lock-"
MODE: Final = "s3.lock-mode"
UNTIL: Final = "s3.lock-until"
HOLD: Final = "s3.lock-hold"
NAMES: Final = (MODE, UNTIL, HOLD)
GOVERNANCE: Final = "GOVERNANCE"
COMPLIANCE: Final = "COMPLIANCE"
_DAY_MS: Final = 86_400_000


class LockRule(msgspec.Struct, frozen=True):
    """What new versions get by themselves; mode "": nothing. One of days and years is not 0."""

    mode: str = ""
    days: int = 0
    years: int = 0

    def until_ms(self, now_ms: int) -> int:
        return now_ms + (self.days + 365 * self.years) * _DAY_MS


class Lock(msgspec.Struct, frozen=True):
    """Of one version. mode "": no retention. hold: "" (never set) | "ON" | "OFF"."""

    mode: str = ""
    until_ms: int = 0
    hold: str = ""

    def blocks(self, now_ms: int, *, bypass: bool) -> bool:
        """Whether the version may not be destroyed now. bypass: the caller may, and asked to, pass governance."""
        if self.hold == "ON":
            return True
        return now_ms < self.until_ms and not (self.mode == GOVERNANCE and bypass)

    def weakened_by(self, new: Lock, now_ms: int) -> bool:
        """Whether the new retention does anything to this one but prolong it. Another mode does, also the stricter one:
        who may not pass governance may not make of it what nobody can take back."""
        if not self.mode or now_ms >= self.until_ms:
            return False
        return new.until_ms < self.until_ms or new.mode != self.mode


def lock_of(meta: ObjectMeta | None) -> Lock:
    extra = meta.extra if meta is not None else {}
    if not extra:
        return Lock()
    return Lock(extra.get(MODE, b"").decode(), int(extra.get(UNTIL, b"0")), extra.get(HOLD, b"").decode())


def with_lock(meta: ObjectMeta, lock: Lock) -> ObjectMeta:
    """The metadata with this lock in place of the one it has."""
    extra = {name: value for name, value in meta.extra.items() if name not in NAMES}
    if lock.mode:
        extra |= {MODE: lock.mode.encode(), UNTIL: str(lock.until_ms).encode()}
    if lock.hold:
        extra[HOLD] = lock.hold.encode()
    return msgspec.structs.replace(meta, extra=extra)


def rule_of(text: str) -> LockRule:
    return msgspec.json.decode(text, type=LockRule)


def rule_text(rule: LockRule) -> str:
    return msgspec.json.encode(rule).decode()
