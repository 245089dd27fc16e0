"""Posts notifications to the webhooks that the operator configured. HTTP only; what to say is names/notify's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from metadata.services.names.notify import POST_SECONDS

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)


class Webhooks:
    """One per process; the client is opened with the first message, and goes to configured addresses only."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def post(self, url: str, body: bytes) -> bool:
        """Whether the webhook took it (2xx). Redirects are not followed."""
        import httpx  # a twentieth of the service's start, for what most clusters never do

        if self._client is None:
            limits = httpx.Limits(max_connections=8)
            self._client = httpx.AsyncClient(timeout=POST_SECONDS, limits=limits, trust_env=False)
        try:
            answer = await self._client.post(url, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            log.warning("a webhook cannot be reached: %s", type(error).__name__)
            return False
        if not answer.is_success:
            log.warning("a webhook answered %d", answer.status_code)
        return answer.is_success

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
