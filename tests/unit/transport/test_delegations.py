"""The page of delegations between two processes' ends: what holds, what was taken back, what ends with its process."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import uuid

import pytest

from metadata.routes.delegations import CONNECTIONS_MAX, DelegationDoor
from metadata.services.files.delegations import Delegations
from tests.contract.exchange_subjects import run
from tierstore.transport.delegations import DelegationPage
from tierstore.wire.delegations import PAGE_BYTES, socket_name


def test_what_was_given_holds_until_it_is_taken_back_or_its_process_ends() -> None:
    async def test() -> None:
        place = uuid.uuid4().hex
        door = DelegationDoor(place)
        given = Delegations(door.words, first=1 << 40, place=place)
        page = await DelegationPage.open(place)
        assert page is not None
        one, other = given.give(1, "d", "m1"), given.give(1, "e", "m1")
        assert page.holds(one) and page.holds(other) and not page.holds(other + 1) and not page.holds(0)
        given.came([(1, "d/x")], "")
        assert not page.holds(one) and page.holds(other)
        door.close()
        assert not page.holds(other), "nobody would take it back"
        page.close()
        door.close()

    run(test())


def test_who_is_not_on_this_machine_has_no_page() -> None:
    async def test() -> None:
        assert await DelegationPage.open(uuid.uuid4().hex) is None

    run(test())


@pytest.mark.parametrize("message", [b"", b"\x02", b"\x01"])
def test_a_door_that_says_something_else_gives_no_page(message: bytes) -> None:
    """Also one that ends, and one that sends no descriptor."""

    async def test() -> None:
        place = uuid.uuid4().hex
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(socket_name(place))
            listener.listen(1)
            opening = asyncio.create_task(DelegationPage.open(place))
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                if message:
                    connection.send(message)
                else:
                    connection.close()
                assert await opening is None

    run(test())


def test_who_gets_the_page_cannot_write_to_it_nor_cut_it() -> None:
    async def test() -> None:
        place = uuid.uuid4().hex
        door = DelegationDoor(place)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(socket_name(place))
            connection.setblocking(False)
            while True:
                try:
                    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
        with pytest.raises(OSError):
            mmap.mmap(fds[0], PAGE_BYTES)
        with pytest.raises(OSError):
            os.ftruncate(fds[0], 0)
        with pytest.raises(OSError):
            os.pwrite(fds[0], b"x", 0)
        os.close(fds[0])
        door.close()

    run(test())


def test_connections_are_bounded_and_those_that_go_make_room() -> None:
    async def test() -> None:
        place = uuid.uuid4().hex
        door = DelegationDoor(place)
        pages = [await DelegationPage.open(place) for _ in range(CONNECTIONS_MAX)]
        assert None not in pages
        assert await DelegationPage.open(place) is None
        assert pages[0] is not None
        pages[0].close()
        while (page := await DelegationPage.open(place)) is None:
            await asyncio.sleep(0)
        for one in (page, *pages[1:]):
            assert one is not None
            one.close()
        door.close()

    run(test())
