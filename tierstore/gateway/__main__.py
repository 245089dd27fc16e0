"""`python -m tierstore.gateway --config FILE [--fd N]`: one gateway in this process.

Owns the process: settings, logs, exit code. What is done is run's.
"""

from __future__ import annotations

from tierstore.gateway.config import GatewayConfig
from tierstore.serving.daemon import loading, start


def main() -> None:
    """Serve until SIGTERM or SIGINT. Exit code of the error when the start fails."""
    start(GatewayConfig, "gateway", "A tierstore gateway: the door for clients.", _run)


def _run(config: GatewayConfig) -> None:
    # Imported here: a wrong setting is told at once, before the gateway's packages are loaded.
    with loading():
        from tierstore.gateway.run import run
    run(config)


if __name__ == "__main__":
    main()
