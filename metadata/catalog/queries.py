"""The type of the connection that services hand through to the catalog's functions, so that they need no SQL library
to name it."""

from __future__ import annotations

from sqlalchemy import Connection

__all__ = ["Connection"]
