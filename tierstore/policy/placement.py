"""Where new chunks go: the pure choice of devices on different servers. No I/O, clock or chance of its own.

A choice is a weighted draw without replacement: a device weighs its free bytes, less when its server is busy. One
device per server; servers of failure domains not used yet are preferred; a tier earlier in the caller's list wins as
long as it has room on enough servers, else the next one fills up (a full fast tier never fails a write).

Cost: O(devices) per plan (cached by the caller until the view changes), O(copies) per draw.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from tierstore.errors import CapacityError, UnavailableError

#: A device with less than this after the chunk is as good as full: room for the store's own records.
HEADROOM_BYTES: Final = 4 << 20
#: Further devices offered beside the chosen ones.
SPARES: Final = 2
#: A server at full load still gets this share of what its free space would give it.
LOAD_FLOOR: Final = 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that may take new chunks now. load: 0..1 of its server; queue: requests that wait at the device."""

    device: int
    server: int
    tier: str
    free_bytes: int
    load: float = 0.0
    queue: float = 0.0
    failure_domain: str = ""

    @property
    def weight(self) -> float:
        return self.free_bytes * max(LOAD_FLOOR, 1.0 - self.load) / (1.0 + self.queue)


@dataclass(frozen=True, slots=True)
class Choice:
    """targets: exactly `copies` devices of different servers. spares: devices of yet other servers, best first."""

    targets: tuple[Candidate, ...]
    spares: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class _Rank:
    """The candidates of one tier, with running sums of their weights for the draw."""

    candidates: tuple[Candidate, ...]
    sums: tuple[float, ...]


class Plan:
    """The devices that could take a chunk of a given size, ready to be drawn from many times."""

    def __init__(self, candidates: Iterable[Candidate], *, tiers: Sequence[str], chunk_bytes: int) -> None:
        """tiers: in order of preference; those not named come after them (none named: all are equal)."""
        everything = list(candidates)
        self.servers = len({c.server for c in everything})
        fitting = [c for c in everything if c.free_bytes >= chunk_bytes + HEADROOM_BYTES]
        self.fitting_servers = len({c.server for c in fitting})
        groups: dict[int, list[Candidate]] = {}
        order = {tier: place for place, tier in enumerate(tiers)}
        for candidate in fitting:
            groups.setdefault(order.get(candidate.tier, len(order)), []).append(candidate)
        self._ranks = [
            _Rank(tuple(group), tuple(accumulate(max(c.weight, 1.0) for c in group)))
            for _, group in sorted(groups.items())
        ]

    def choose(
        self, copies: int, *, draw: Callable[[], float], exclude_servers: frozenset[int] = frozenset(),
        used_domains: frozenset[str] = frozenset(), spares: int = SPARES,
    ) -> Choice:  # fmt: skip
        """`draw` gives numbers in [0, 1). Raises UnavailableError(not-enough-servers) when fewer than `copies` servers
        take new chunks at all, CapacityError(cluster-full) when too few of them have room."""
        servers: set[int] = set(exclude_servers)
        domains: set[str] = {d for d in used_domains if d}
        chosen: list[Candidate] = []
        # First as many different failure domains as there are, then any server.
        for spread in (True, False):
            for rank in self._ranks:
                while len(chosen) < copies + spares:
                    if spread and len(chosen) >= copies:
                        break
                    candidate = _draw(rank, servers, domains if spread else set(), draw)
                    if candidate is None:
                        break
                    chosen.append(candidate)
                    servers.add(candidate.server)
                    if candidate.failure_domain:
                        domains.add(candidate.failure_domain)
        if len(chosen) < copies:
            self._refuse(copies, exclude_servers)
        return Choice(tuple(chosen[:copies]), tuple(chosen[copies:]))

    def _refuse(self, copies: int, exclude_servers: frozenset[int]) -> None:
        if self.servers - len(exclude_servers) < copies:
            raise UnavailableError(
                f"{self.servers} object servers take new chunks"
                + (f", {len(exclude_servers)} of them excluded" if exclude_servers else "")
                + f"; {copies} copies need {copies}",
                code="not-enough-servers", servers=self.servers, copies=copies,
            )  # fmt: skip
        raise CapacityError(
            f"only {self.fitting_servers} object servers have room; {copies} copies need {copies}",
            code="cluster-full", servers=self.fitting_servers, copies=copies,
        )  # fmt: skip


def _draw(
    rank: _Rank, servers: set[int], domains: set[str], draw: Callable[[], float]
) -> Candidate | None:
    """One device of a server (and domain) not used yet, by weight. Two quick draws, then an exact one."""
    total = rank.sums[-1]
    last = len(rank.candidates) - 1
    for _ in range(2):
        candidate = rank.candidates[min(bisect_right(rank.sums, draw() * total), last)]
        if candidate.server not in servers and candidate.failure_domain not in domains:
            return candidate
    left = [c for c in rank.candidates if c.server not in servers and c.failure_domain not in domains]
    if not left:
        return None
    sums = list(accumulate(max(c.weight, 1.0) for c in left))
    return left[min(bisect_right(sums, draw() * sums[-1]), len(left) - 1)]
