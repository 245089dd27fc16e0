"""Allocations: upload ids, devices and write tickets for chunks to come. Nothing is written: an allocation is a signed
right that lapses, and the commit judges what came of it.

Cost: about 5 us per ticket; the plan (all devices by tier and weight) is made anew when the view changes or after
PLAN_SECONDS, because usage and load move.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from metadata.services.cluster.view import ClusterView
from tierstore.auth.access import Principal, is_allowed_somewhere
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, RequestError, TierstoreError
from tierstore.names import TIERS, UPLOAD_ID_BYTES, DeviceId, ServerId, UploadId, upload_id
from tierstore.policy.placement import Candidate, Plan
from tierstore.ticket import TICKET_SECONDS_MAX, WriteTicket, mint_write
from tierstore.wire.names import ALLOCATIONS_PER_ITEM_MAX, AllocateItem, AllocateResult, Allocation, Target

COPIES_MAX: Final = 9
CHUNK_BYTES_MAX: Final = 64 << 20
PLAN_SECONDS: Final = 1.0
PLANS_MAX: Final = 64


class AllocateService:
    """One per process. Answers at once."""

    def __init__(self, view: ClusterView, clock: Clock, rng: random.Random) -> None:
        self._view = view
        self._clock = clock
        self._rng = rng
        self._plans: dict[tuple[tuple[str, ...], int, bool, bool], tuple[int, float, Plan]] = {}

    def allocate(self, item: AllocateItem, who: Principal) -> AllocateResult:
        """`count` allocations, or the error why there is none."""
        try:
            _check(item)
            if not is_allowed_somewhere(who, "write"):
                raise AccessDenied(f"{who.access or 'nobody'} may not write anywhere")
            plan = self._plan(item)
            return AllocateResult(allocations=[self._one(item, plan, i) for i in range(item.count)])
        except TierstoreError as error:
            returning = self._returning(item) if error.code == "not-enough-servers" else 0
            return AllocateResult(code=error.code, detail=error.detail, returning=returning)

    def _returning(self, item: AllocateItem) -> int:
        """How many servers are away for a moment, when they would be enough together with those that are here."""
        others = [s for s in self._view.servers.values() if s.role == "objectd" and s.id not in item.exclude_servers]
        returning = sum(server.is_returning for server in others)
        return returning if returning + sum(server.accepts_new for server in others) >= item.copies else 0

    def _one(self, item: AllocateItem, plan: Plan, place: int) -> Allocation:
        now_ms = self._clock.now_ms()
        if item.upload:
            upload, index = UploadId(item.upload), item.first_index + place
        else:
            upload, index = upload_id(now_ms, self._rng.getrandbits(48)), 0
        choice = plan.choose(
            item.copies, draw=self._rng.random, exclude_servers=frozenset(item.exclude_servers)
        )
        expires_at = now_ms // 1000 + TICKET_SECONDS_MAX
        extra = self._extra(item, choice.targets)

        def target(candidate: Candidate) -> Target:
            key_id, key = self._view.signing_key(candidate.server) or (0, b"")
            ticket = mint_write(
                WriteTicket(
                    ServerId(candidate.server), DeviceId(candidate.device), upload, index, 1, item.chunk_bytes_max,
                    expires_at,
                ),
                key_id=key_id, key=key,
            )  # fmt: skip
            return Target(candidate.server, candidate.device, candidate.tier, ticket)

        return Allocation(
            upload, index, [target(c) for c in choice.targets], [target(c) for c in choice.spares], expires_at * 1000,
            [target(extra)] if extra is not None else [],
        )  # fmt: skip

    def _extra(self, item: AllocateItem, homes: Sequence[Candidate]) -> Candidate | None:
        """A device for one more copy: of the fastest of the asked tiers with room, faster than the homes' tiers."""
        if not item.extra_tiers:
            return None
        slowest = min((_place(home.tier) for home in homes), default=0)
        tiers = [tier for tier in item.extra_tiers if _place(tier) < slowest]
        for tier in sorted(tiers, key=_place):
            plan = self._plan(item, only=tier)
            if plan.fitting_servers:
                return plan.choose(1, draw=self._rng.random, spares=0).targets[0]
        return None

    def _plan(self, item: AllocateItem, *, only: str = "") -> Plan:
        """only: of the devices of one tier."""
        # Sizes in powers of two: few plans, and a device with room for the class has room for the chunk.
        size = 1 << max(12, (item.chunk_bytes_max - 1).bit_length())
        needs_suspects = self._needs_suspects(item)
        key = ((only,) if only else tuple(item.tiers), size, bool(only), needs_suspects)
        now = self._clock.monotonic()
        known = self._plans.get(key)
        if known is not None and known[0] == self._view.revision and now - known[1] < PLAN_SECONDS:
            return known[2]
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        candidates = [c for c in self._candidates(or_suspect=needs_suspects) if only in ("", c.tier)]
        plan = Plan(candidates, tiers=item.tiers, chunk_bytes=size)
        self._plans[key] = (self._view.revision, now, plan)
        return plan

    def _needs_suspects(self, item: AllocateItem) -> bool:
        """Whether those that are up are too few without the ones that were silent for some seconds: on a busy machine,
        or while another metadata process takes over, everybody is for a moment, and no write need fail for it."""
        up = {device.server for device in self._view.devices.values() if self._view.can_place(device)}
        return len(up.difference(item.exclude_servers)) < item.copies

    def _candidates(self, *, or_suspect: bool) -> list[Candidate]:
        """Devices that take new chunks; full ones too, with no room, so that "full" is told from "too few"."""
        candidates = []
        for device in self._view.devices.values():
            server = self._view.servers.get(device.server)
            is_full = device.health == "full"
            if server is None or not (
                self._view.can_place(device, or_suspect=or_suspect) or (is_full and server.accepts_new)
            ):
                continue
            candidates.append(
                Candidate(
                    device.id, device.server, device.tier, 0 if is_full else device.free_bytes, server.load,
                    device.queue, server.failure_domain,
                )
            )  # fmt: skip
        return candidates


def _place(tier: str) -> int:
    """Place of a tier in the order of speed, the fastest first."""
    return TIERS.index(tier) if tier in TIERS else len(TIERS)


def _check(item: AllocateItem) -> None:
    if not 1 <= item.count <= ALLOCATIONS_PER_ITEM_MAX:
        raise RequestError(f"count is 1 to {ALLOCATIONS_PER_ITEM_MAX}, not {item.count}", code="bad-allocation")
    if not 1 <= item.copies <= COPIES_MAX:
        raise RequestError(f"copies is 1 to {COPIES_MAX}, not {item.copies}", code="bad-allocation")
    if not 1 <= item.chunk_bytes_max <= CHUNK_BYTES_MAX:
        raise RequestError(f"chunk_bytes_max is 1 to {CHUNK_BYTES_MAX}", code="bad-allocation")
    if item.upload and (len(item.upload) != UPLOAD_ID_BYTES or not 0 <= item.first_index <= 0xFFFFFFFF - item.count):
        raise RequestError("not an upload id with a chunk index", code="bad-allocation")
