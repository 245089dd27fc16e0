"""The gateway's place in the cluster: registration, its secret, a heartbeat.

Owns one small file in the state directory (0600): the identity that makes metadata give the same server id and secret
again. A gateway has no other state; two processes of one gateway may overlap during a restart, so the directory is
not locked. Invariant: requests are taken only after the first registration.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from tierstore import statefile
from tierstore.errors import AccessDenied, ConfigError, NotAuthenticated, TierstoreError
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.cluster import Heartbeat, Register, Registered

FILE_NAME: Final = "gateway.json"
_RETRY_SECONDS: Final = 0.25
#: After a refusal that only an operator can end (a wrong token, a name that is taken): often enough to come back soon
#: after it was mended.
_REFUSED_SECONDS: Final = 5.0
#: A gateway that was a member and is refused (an operator removed it) asks again after a heartbeat's interval, then
#: after twice as long each time, up to this.
_REFUSED_SECONDS_MAX: Final = 60.0
#: The same reason is told again this often.
_REMIND_SECONDS: Final = 60.0
_NAME_TAKEN: Final = "server-name-taken"
_log = logging.getLogger("tierstore.gateway")


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    instance: bytes
    incarnation: int = 0
    secret: str = ""


class Membership:
    """One per process. `on_secret` hears of the credential each time it is given."""

    def __init__(
        self, client: MetadataClient, *, directory: str, name: str, join_token: str,
        heartbeat_seconds: float, on_secret: Callable[[str], None], in_flight: Callable[[], int],
        is_leaving: Callable[[], bool], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._client = client
        self._path = os.path.join(directory, FILE_NAME) if directory else ""
        self._name = name
        self._url = ""
        self._join_token = join_token
        self._heartbeat_seconds = heartbeat_seconds
        self._on_secret = on_secret
        self._in_flight = in_flight
        self._is_leaving = is_leaving
        self._sleep = sleep
        self._identity = self._next_life(directory)
        self._task: asyncio.Task[None] | None = None
        self._sequence = 0
        self.registered: Registered | None = None
        #: Why it has not joined (again) yet, for people; "" once it has.
        self.waits_for = "metadata has not answered yet"
        self._told = ("", 0.0)

    def _next_life(self, directory: str) -> _Identity:
        """The identity as kept, or a new one, with the incarnation raised and written down. directory "": nothing is
        kept (simulation)."""
        if not directory:
            return _Identity(name=self._name, instance=secrets.token_bytes(16), incarnation=1)
        try:
            statefile.make_directory(directory)
            with open(self._path, "rb") as file:
                identity = msgspec.json.decode(file.read(), type=_Identity)
        except FileNotFoundError:
            identity = _Identity(name=self._name, instance=secrets.token_bytes(16))
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"membership.data: {self._path} cannot be read: {error}") from None
        identity = msgspec.structs.replace(identity, name=self._name, incarnation=identity.incarnation + 1)
        self._keep(identity)
        return identity

    def _keep(self, identity: _Identity) -> None:
        self._identity = identity
        if not self._path:
            return
        try:
            statefile.replace(self._path, msgspec.json.encode(identity))
        except OSError as error:
            raise ConfigError(f"membership.data: {self._path} cannot be written: {error.strerror}") from None

    async def join_whatever_comes(self, url: str) -> Registered:
        """join(), and again after every refusal: an operator may mend the token or free the name meanwhile."""
        while True:
            try:
                return await self.join(url)
            except TierstoreError as error:
                self._tell(f"the cluster refuses this gateway: {error}")
                await asyncio.sleep(_REFUSED_SECONDS)

    def _tell(self, why: str) -> None:
        """Note why it has to wait; into the log when that is news, and once a minute while it lasts."""
        self.waits_for = why
        told, at = self._told
        now = asyncio.get_running_loop().time()
        if why != told or now - at >= _REMIND_SECONDS:
            self._told = (why, now)
            _log.warning("not joined, trying on: %s", why)

    async def join(self, url: str = "") -> Registered:
        """Register as `url`, however long metadata takes to come up or to see that this gateway's last life, whose
        identity was lost with its disk, is dead. Raises the refusal of a wrong token or name."""
        self._url = url or self._url
        while True:
            if self._identity.secret:
                self._client.set_token(self._identity.secret)
            message = Register(
                "gateway", self._name, self._url, self._identity.instance, self._identity.incarnation,
                self._join_token,
            )  # fmt: skip
            try:
                registered = await self._client.register(message)
            except (NotAuthenticated, AccessDenied):
                if not (self._identity.secret and self._join_token):
                    raise
                # an attempt that was given up here was taken after the one that was answered and got another secret, or
                # the catalog was made anew: the operator's token holds
                self._identity = msgspec.structs.replace(self._identity, secret="")
                self._client.set_token("")
                continue
            except TierstoreError as error:
                if not error.retryable and error.code != _NAME_TAKEN:
                    raise
                self._tell(f"metadata does not take the registration yet: {error}")
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self.registered = registered
            # "" when it came back with the secret it has: that one stays
            secret = registered.secret or self._identity.secret
            if secret != self._identity.secret:
                self._keep(msgspec.structs.replace(self._identity, secret=secret))
            self._on_secret(secret)
            self.waits_for = ""
            return registered

    def start(self) -> None:
        """Begin the heartbeats; stop() ends them."""
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        pause = self._heartbeat_seconds
        while True:
            await self._sleep(pause)
            try:
                await self._beat_once()
            except (NotAuthenticated, AccessDenied) as error:
                self._tell(f"the cluster refuses this gateway: {error}")
                pause = min(pause * 2, max(_REFUSED_SECONDS_MAX, self._heartbeat_seconds))
                continue
            except TierstoreError as error:
                _log.warning("no heartbeat: %s", error)
            else:
                self.waits_for = ""
            pause = self._heartbeat_seconds

    async def _beat_once(self) -> None:
        assert self.registered is not None
        self._sequence += 1
        beat = Heartbeat(
            self.registered.server, self._identity.incarnation, self._sequence, in_flight=self._in_flight(),
            state="stopping" if self._is_leaving() else "up",
        )  # fmt: skip
        try:
            answer = await self._client.heartbeat(beat)
        except (NotAuthenticated, AccessDenied):
            if self._is_leaving():
                raise
            await self.join()       # by the join token, when the secret does not hold any more
            return
        if answer.reregister and not self._is_leaving():
            # metadata knows another life of this gateway: come back as the next one
            self._keep(msgspec.structs.replace(self._identity, incarnation=self._identity.incarnation + 1))
            await self.join()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
