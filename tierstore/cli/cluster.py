"""Which cluster a command talks to, and the two ways of talking: the SDK for objects, httpx for names and admin.

Found in this order: --endpoint/--token, TIERSTORE_ENDPOINT/TIERSTORE_TOKEN, the profile file. The profile file is
--profile, else TIERSTORE_PROFILE, else profile.toml under ~/.config/tierstore; `up` writes one into its data directory.

The SDK and httpx are imported where they are used: together they take longer to import than `tierstore --help` takes,
and `tierstore up` must not wait for them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote, urlsplit

import typer

from tierstore.auth.access import sendable_token
from tierstore.errors import ConfigError, RequestError, UnavailableError, from_answer
from tierstore.names import check_bucket_name, check_key

if TYPE_CHECKING:
    import httpx

    from tierstore.sdk import Store

SCHEME: Final = "ts://"
_DEFAULT_PROFILE: Final = Path("~/.config/tierstore/profile.toml")
REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
#: For each of several endpoints.
READY_SECONDS: Final = 1.0

Endpoint = Annotated[
    str | None, typer.Option(help="URL of a gateway, or several with commas (the nearest). [env: TIERSTORE_ENDPOINT]")
]
Token = Annotated[str | None, typer.Option(help="Bearer token; better in the environment: TIERSTORE_TOKEN.")]
Profile = Annotated[Path | None, typer.Option(help="Profile file. [env: TIERSTORE_PROFILE]")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the cluster is and how to get in. endpoint: a gateway, or several of one or more sites, with commas. data:
    its data directory, when `up` runs it on this machine."""

    endpoint: str
    token: str = field(repr=False)
    data: str = ""


def find(endpoint: str | None = None, token: str | None = None, profile: Path | None = None) -> Address:
    """The cluster that the options, the environment or the profile file name. Raises ConfigError."""
    held = _read_profile(profile)
    address = Address(
        endpoint=(endpoint or os.environ.get("TIERSTORE_ENDPOINT") or held.get("endpoint", "")).rstrip("/"),
        token=sendable_token(token or os.environ.get("TIERSTORE_TOKEN") or held.get("token", "")),
        data=held.get("data", ""),
    )
    if not address.endpoint:
        raise ConfigError("which cluster? Set TIERSTORE_ENDPOINT and TIERSTORE_TOKEN (`tierstore up` prints them)")
    for url in address.endpoint.split(","):
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not an endpoint; write it like http://127.0.0.1:7480")
    if not address.token:
        raise ConfigError("with which token? Set TIERSTORE_TOKEN (`tierstore up` prints it)")
    return address


def _read_profile(named: Path | None) -> dict[str, str]:
    """The [cluster] table of the profile file; {} when none was named and the default one is not there."""
    text = os.environ.get("TIERSTORE_PROFILE")
    path = named or (Path(text) if text else None)
    try:
        tree = tomllib.loads((path or _DEFAULT_PROFILE.expanduser()).read_text())
    except FileNotFoundError:
        if path is not None:
            raise ConfigError(f"{path} does not exist") from None
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path or _DEFAULT_PROFILE}: {error}") from None
    cluster = tree.get("cluster", {})
    return {name: str(value) for name, value in cluster.items()} if isinstance(cluster, dict) else {}


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket, and a key or a prefix in it ("" for the bucket itself)."""

    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"


def is_place(text: str) -> bool:
    return text.startswith(SCHEME)


def parse_place(text: str, *, needs_key: bool = False) -> Place:
    """ts://bucket/key. Raises RequestError when it is not that, or has no key where one is needed."""
    if not is_place(text):
        raise RequestError(f"{text!r} is not in the store; write it like ts://bucket/key")
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    check_bucket_name(bucket)
    if key:
        check_key(key)
    elif needs_key:
        raise RequestError(f"{text!r} names a bucket; add a key: ts://{bucket}/key")
    return Place(bucket, key)


@asynccontextmanager
async def open_store(address: Address) -> AsyncIterator[Store]:
    """The SDK's store for a command. Raises UnavailableError, NotAuthenticated."""
    from tierstore.sdk import connect

    store = await connect(address.endpoint, address.token)
    try:
        yield store
    finally:
        await store.close()


class Http:
    """JSON requests to the gateway: buckets, admin, explain. Errors come back as the classes of tierstore.errors."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params={name: value for name, value in params.items() if value is not None})

    def text(self, path: str, **params: Any) -> str:
        """A text answer (CSV)."""
        text: str = self._answer("GET", path, params=params).text
        return text

    def call(self, method: str, path: str, *, params: dict[str, Any] | None = None, body: Any = None) -> Any:
        """The decoded JSON answer; None when it has no body."""
        answer = self._answer(method, path, params=params, body=body)
        return answer.json() if answer.content else None

    def _answer(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, body: Any = None
    ) -> httpx.Response:
        """A successful answer. Raises what the service or the network says."""
        import httpx

        try:
            answer = self._client.request(method, path, params=params, json=body)
        except httpx.TimeoutException:
            raise UnavailableError(f"{self._client.base_url} did not answer in time; try again") from None
        except httpx.TransportError as error:
            raise UnavailableError(f"{self._client.base_url} cannot be reached ({error}); is the cluster up?") from None
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
            code, detail = str(problem["code"]), str(problem.get("detail") or problem.get("title") or "")
            fields = {"problems": problem["problems"]} if isinstance(problem.get("problems"), list) else {}
        except (ValueError, KeyError, TypeError):
            code, detail = "internal", f"{method} {path}: answered {answer.status_code} without a reason"
            fields = {}
        raise from_answer(answer.status_code, code, detail, **fields)


@contextmanager
def open_http(address: Address) -> Iterator[Http]:
    import httpx

    from tierstore.transport.tls import client_context, from_environment

    timeout = httpx.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
    headers = {"authorization": f"Bearer {address.token}", "accept": "application/json"}
    context = client_context(from_environment())
    with httpx.Client(
        base_url=_answering(address.endpoint), headers=headers, timeout=timeout, trust_env=False,
        verify=True if context is None else context,
    ) as client:  # fmt: skip
        yield Http(client)


def _answering(endpoint: str) -> str:
    """The first of several endpoints that is ready: names and administration belong to a site, so their order counts
    and not their distance."""
    import httpx

    urls = [url.strip().rstrip("/") for url in endpoint.split(",")]
    for url in urls[:-1]:
        try:
            if httpx.get(f"{url}/-/readyz", timeout=READY_SECONDS, trust_env=False).is_success:
                return url
        except httpx.TransportError:
            continue
    return urls[-1]


def bucket_path(bucket: str) -> str:
    return f"/v1/buckets/{quote(bucket, safe='')}"
