"""Whom this process believes under TLS: a given CA, or those of the system."""

from __future__ import annotations

import os
import ssl
from typing import Final

from tierstore.errors import ConfigError

#: For clients: PEM of the CA that signs the gateways' certificates.
CA_VARIABLE: Final = "TIERSTORE_CA_FILE"


def client_context(ca_file: str = "") -> ssl.SSLContext | None:
    """For PooledTransport; None: the system's CAs. Raises ConfigError when the file is not a PEM of certificates."""
    if not ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca_file!r} cannot be used: {error}") from None


def from_environment() -> str:
    """The CA file that clients were told of; "" without one."""
    return os.environ.get(CA_VARIABLE, "")
