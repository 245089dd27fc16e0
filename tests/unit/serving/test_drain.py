"""Restarts: a real process on an inherited socket hands over to its successor while clients keep asking."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import closing

from tests.contract.exchange_subjects import QUICK, run, subject
from tests.kit.waits import until
from tierstore.serving.drain import Drain
from tierstore.serving.run import inherited, listen
from tierstore.transport.pool import PooledTransport

CHILD = """
import asyncio, os, sys
from fastapi import FastAPI
from tierstore.serving.limits import Limits
from tierstore.serving.run import serve
from tierstore.serving.table import Route

async def slow(exchange):
    print("slow", flush=True)
    await asyncio.sleep(float(exchange.query(b"seconds")))
    exchange.reply(200, b"%d" % os.getpid())

routes = [
    Route(b"GET", b"/pid", lambda e: e.reply(200, b"%d" % os.getpid())),
    Route(b"GET", b"/slow", lambda e: e.spawn(slow(e))),
]

async def on_start(serving):
    print("started", flush=True)

async def on_stop():
    print("stopped", flush=True)

limits = Limits(drain_idle_seconds=int(sys.argv[2]), drain_seconds=int(sys.argv[3]))
serve(FastAPI(), routes, fd=int(sys.argv[1]), limits=limits, on_start=on_start, on_stop=on_stop)
"""


async def child(sock: socket.socket, idle_seconds: int = 1, seconds: int = 30) -> asyncio.subprocess.Process:
    words = ["-c", CHILD, str(sock.fileno()), str(idle_seconds), str(seconds)]
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, pass_fds=[sock.fileno()], stdout=asyncio.subprocess.PIPE
    )


def test_a_successor_on_the_same_socket_takes_over_without_a_failed_request() -> None:
    """R13: restarts are routine; plain uvicorn broke 4 and refused 72 requests of 4 clients."""

    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as sock:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            transport = PooledTransport()
            first = await child(sock)
            pids: list[bytes] = []
            failed: list[Exception] = []
            is_over = False

            async def ask() -> None:
                while not is_over:
                    try:
                        pids.append((await transport.call(url, b"GET", b"/pid", seconds=120)).body)
                    except Exception as error:
                        failed.append(error)

            askers = [asyncio.create_task(ask()) for _ in range(4)]
            for _ in range(3):
                await until(lambda p=first: pids and pids[-1] == b"%d" % p.pid)
                slow = asyncio.create_task(transport.call(url, b"GET", b"/slow?seconds=0.5", seconds=120))
                second = await child(sock)
                assert second.stdout is not None
                assert await second.stdout.readline() == b"started\n"
                first.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(first.wait(), 120) == 0
                assert (await slow).status == 200
                first = second
            is_over = True
            await asyncio.gather(*askers)
            first.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(first.wait(), 120) == 0
            await transport.close()
            assert not failed and len(pids) > 10 and len(set(pids)) >= 3

    run(main(), 600)


def test_requests_made_while_nobody_accepts_wait_for_the_successor() -> None:
    """The supervisor holds the socket: a gap between two processes delays, it never refuses."""

    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as sock:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            transport = PooledTransport()
            first = await child(sock)
            assert (await transport.call(url, b"GET", b"/pid", seconds=120)).status == 200
            first.send_signal(signal.SIGTERM)
            await first.wait()
            asked = asyncio.create_task(transport.call(url, b"GET", b"/pid", seconds=120))
            second = await child(sock)
            assert (await asked).body == b"%d" % second.pid
            second.send_signal(signal.SIGTERM)
            await second.wait()
            await transport.close()

    run(main(), 600)


def test_sigint_waits_for_running_requests_and_not_for_idle_connections() -> None:
    """Nobody serves after it: who only stays connected would hold up the end of a whole cluster."""

    async def main() -> None:
        with closing(listen("127.0.0.1", 0)) as sock:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            transport = PooledTransport()
            only = await child(sock, idle_seconds=1000, seconds=1000)
            asked = [transport.call(url, b"GET", b"/pid", seconds=120) for _ in range(4)]
            assert {reply.status for reply in await asyncio.gather(*asked)} == {200}    # four connections stay
            slow = asyncio.create_task(transport.call(url, b"GET", b"/slow?seconds=0.5", seconds=120))
            assert only.stdout is not None
            assert [await only.stdout.readline() for _ in range(2)] == [b"started\n", b"slow\n"]
            only.send_signal(signal.SIGINT)
            assert (await slow).status == 200
            assert await asyncio.wait_for(only.wait(), 120) == 0
            await transport.close()

    run(main(), 600)


def test_draining_answers_say_so_and_a_stuck_request_is_bounded() -> None:
    """drain_seconds is a promise to the supervisor: it will not have to kill."""

    async def main() -> None:
        async with subject("protocol", QUICK) as s:
            assert s.serving is not None
            waiting = asyncio.create_task(s.transport.call(s.url, b"GET", b"/hot/waits", seconds=120))
            await until(lambda: s.seen.open_exchange is not None)
            upload = await s.transport.upload(s.url, b"PUT", b"/hot/count/x", length=10, seconds=120)
            await upload.write(b"12345")
            await until(lambda: s.seen.bytes_taken == 5)
            s.serving.stop()
            await until(lambda: s.serving.state.is_draining)
            assert s.serving.drain.is_stopping and s.serving.drain.is_announced
            await upload.write(b"67890")
            reply = await upload.finish()
            assert (reply.status, reply.body, reply.header(b"connection")) == (200, b"10", b"close")
            await until(lambda: s.seen.cancelled == 1)
            results = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(results[0], Exception)

    run(main())


def test_an_announcement_can_be_withdrawn_and_is_told_once() -> None:
    """Readiness follows the announcement, not the stop."""
    drain = Drain()
    told: list[bool] = []
    drain.on_announce(lambda: told.append(drain.is_announced))
    drain.announce()
    drain.announce()
    assert told == [True]
    drain.withdraw()
    assert not drain.is_announced
    drain.announce()
    drain.is_stopping = True
    drain.withdraw()
    assert drain.is_announced and told == [True, True]


def test_an_inherited_descriptor_must_be_a_bound_socket_and_stays_open() -> None:
    """A wrong --fd must say so; the supervisor's descriptor is not ours to close."""
    with closing(listen("127.0.0.1", 0)) as sock:
        ours = inherited(sock.fileno())
        assert ours.fileno() != sock.fileno()
        ours.close()
        assert os.fstat(sock.fileno())
    with closing(socket.socket()) as plain:
        try:
            inherited(plain.fileno())
        except Exception as error:
            assert "not a socket bound to a port" in str(error)
        else:
            raise AssertionError("a socket without an address was accepted")
