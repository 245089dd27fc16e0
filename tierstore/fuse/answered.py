"""Every handler ends in an answer.

pyfuse3 in asyncio mode answers only FUSEError and results; any other exception would leave the caller hanging. So
errors of the tree become their errno, a deadline EIO, anything unexpected EIO and a log line with its traceback.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pyfuse3 import FUSEError

from tierstore.errors import TierstoreError
from tierstore.files.errno import FileError, errno_of
from tierstore.telemetry.log import get_logger

log = get_logger("mount")
T = TypeVar("T")


def answered(handler: Callable[..., Awaitable[T]]) -> Any:
    """Turn whatever happens into an answer to the kernel."""

    @functools.wraps(handler)
    async def wrapper(*arguments: Any) -> T:
        try:
            return await handler(*arguments)
        except FUSEError:
            raise
        except FileError as error:
            raise FUSEError(error.number) from None
        except TierstoreError as error:
            number = errno_of(error)
            if number == errno.EIO or error.code == "encrypted-object":
                log.warning("operation failed", operation=handler.__name__, error=str(error))
            raise FUSEError(number) from None
        except TimeoutError:
            log.warning("operation took too long", operation=handler.__name__)
            raise FUSEError(errno.EIO) from None
        except Exception as error:  # whatever it is: a program waits for an answer
            log.exception("operation broke", operation=handler.__name__, error=str(error))
            raise FUSEError(errno.EIO) from None

    return wrapper
