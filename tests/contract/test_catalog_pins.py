"""Long reads of replaced versions: their chunks stay, and their tickets are renewed, up to a limit (rule 14)."""

from __future__ import annotations

from metadata.catalog import operations
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.names import ServerId
from tierstore.ticket import RENEWALS_MAX, TICKET_SECONDS_MAX, open_read
from tierstore.wire.names import Renew

__all__ = ["postgres", "run", "url_of"]
#: How often a reader comes (sdk.limits.pin_seconds).
INTERVAL = 240


def test_a_reader_of_a_replaced_object_keeps_its_chunks_and_tickets_for_hours_and_not_for_ever(run: Run) -> None:
    """A slow client must be able to finish what it began; a ticket must not become a right for life."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", chunks=[w.chunk(100)])
        [view] = (await w.look("k")).chunks
        tickets = [replica.ticket for replica in view.replicas]
        servers = [replica.server for replica in view.replicas]
        await w.put("k", chunks=[w.chunk(50)])
        for turn in range(RENEWALS_MAX):
            w.clock.advance(INTERVAL)
            tickets = await w.uploads.renew(Renew(pins=[view.id], tickets=tickets), ADMIN)
            now = w.clock.now_ms() / 1000
            for ticket, server in zip(tickets, servers, strict=True):
                opened = open_read(ticket, w.view.ticket_keys[server], server=ServerId(server), now_seconds=now)
                assert (opened.chunk, opened.expires_at) == (view.id, int(now) + TICKET_SECONDS_MAX), turn
            pinned = await w.database.read(lambda c: operations.pinned(c, [view.id], now_ms=w.clock.now_ms()))
            assert pinned == {view.id}
        assert RENEWALS_MAX * INTERVAL == 6 * 3600, "docs/howto and docs/adr/0111 say 6 hours"
        assert await w.uploads.renew(Renew(tickets=tickets), ADMIN) == [b"", b""]

    run(check)


def test_what_is_no_ticket_or_is_long_expired_is_not_renewed_and_the_others_are(run: Run) -> None:
    """One reader's stale tickets must not end the reads that share its message, nor come back to life."""

    async def check(w: NamesWorld) -> None:
        await w.put("k", chunks=[w.chunk(100)])
        old = (await w.look("k")).chunks[0].replicas[0].ticket
        w.clock.advance(TICKET_SECONDS_MAX + 599)
        assert all(await w.uploads.renew(Renew(tickets=[old]), ADMIN))
        w.clock.advance(2)
        await w.put("k2", chunks=[w.chunk(100)])
        good = (await w.look("k2")).chunks[0].replicas[0].ticket
        forged = good[:-4] + b"AAAA"
        renewed = await w.uploads.renew(Renew(tickets=[old, forged, b"x", b"", good]), ADMIN)
        assert renewed[:4] == [b""] * 4 and renewed[4]

    run(check)
