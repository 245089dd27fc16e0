"""Making the sites of one `up` known to each other, at every start: what is known already is left as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tierstore.errors import UnavailableError

if TYPE_CHECKING:
    import httpx

_SECONDS: Final = 15.0
_ATTEMPTS_MAX: Final = 20
_PAUSE_SECONDS: Final = 0.25


async def join_all(gateways: Mapping[str, str], token: str) -> None:
    """Each pair of sites (name -> gateway) once. Raises UnavailableError when one does not take part."""
    if len(gateways) < 2:
        return
    import httpx  # half of what the supervisor's import costs, and one site needs none of it

    names = list(gateways)
    async with httpx.AsyncClient(
        timeout=_SECONDS, trust_env=False, headers={"authorization": f"Bearer {token}"}
    ) as client:
        for place, name in enumerate(names):
            for other in names[place + 1 :]:
                await _join(client, gateways[name], other, gateways[other], token)


async def _join(client: httpx.AsyncClient, gateway: str, other: str, url: str, token: str) -> None:
    import httpx

    said = ""
    for _ in range(_ATTEMPTS_MAX):
        try:
            answer = await client.post(
                f"{gateway}/v1/admin/sites", json={"name": other, "gateway": url, "token": token}
            )
        except httpx.HTTPError as error:
            said = type(error).__name__
        else:
            said = answer.text
            if answer.status_code == 201 or (answer.status_code == 409 and "site-exists" in said):
                return
        await asyncio.sleep(_PAUSE_SECONDS)
    raise UnavailableError(f"{gateway} and {other} do not get to know each other: {said}")
