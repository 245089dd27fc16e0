"""The error tree. Every error that leaves a process is one of these.

    TierstoreError(code, status, retryable, exit_code)
    ├── RequestError          4xx  the caller can mend it
    │   ├── NotFound          404  no-such-key, no-such-bucket, no-such-version, no-such-upload, no-such-server
    │   ├── AccessDenied      403
    │   ├── NotAuthenticated  401
    │   ├── PreconditionFailed 412
    │   ├── NotModified       304
    │   ├── RangeNotSatisfiable 416
    │   ├── TooLarge          413
    │   ├── TicketRefused     403  bad, expired or wrong ticket (retry with a new one)
    │   └── ChecksumMismatch  400  the body does not match the checksum sent with it
    ├── ConflictError         409  bucket-exists, bucket-not-empty, chunk-exists, upload-condemned, ...
    ├── UnavailableError      503  not-enough-servers, no-replica, metadata-unreachable, draining, outcome-unknown
    ├── CapacityError         507  device-full, cluster-full, catalog-full
    ├── IntegrityError        500  bad-block, bad-footer, catalog-corrupt
    └── ConfigError                a setting is wrong; names the setting and the nearest right one

`code` is stable and kebab-case; clients match on it. `detail` is for people: it names what is wrong and what to do.
Raise the most specific class; foreign exceptions are turned into these at the seam where they arise.
"""

from __future__ import annotations


class TierstoreError(Exception):
    """Base of all errors. `fields` are extra members of the problem+json answer (ids needed to act)."""

    code = "internal"
    status = 500
    retryable = False
    exit_code = 1
    retry_after_seconds: int | None = None

    def __init__(self, detail: str = "", *, code: str | None = None, **fields: object) -> None:
        super().__init__(detail or code or self.code)
        self.detail = detail
        if code is not None:
            self.code = code
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class RequestError(TierstoreError):
    code = "bad-request"
    status = 400
    exit_code = 2


class NotFound(RequestError):
    code = "no-such-key"
    status = 404
    exit_code = 3


class NotAuthenticated(RequestError):
    code = "not-authenticated"
    status = 401
    exit_code = 4


class AccessDenied(RequestError):
    code = "access-denied"
    status = 403
    exit_code = 4


class TicketRefused(RequestError):
    code = "ticket-refused"
    status = 403
    retryable = True


class PreconditionFailed(RequestError):
    code = "precondition-failed"
    status = 412
    exit_code = 5


class NotModified(RequestError):
    code = "not-modified"
    status = 304


class RangeNotSatisfiable(RequestError):
    code = "range-not-satisfiable"
    status = 416


class TooLarge(RequestError):
    code = "too-large"
    status = 413


class ChecksumMismatch(RequestError):
    code = "checksum-mismatch"
    status = 400


class ConflictError(TierstoreError):
    code = "conflict"
    status = 409
    exit_code = 5


class UnavailableError(TierstoreError):
    code = "unavailable"
    status = 503
    retryable = True
    exit_code = 6
    retry_after_seconds = 1


class CapacityError(TierstoreError):
    code = "device-full"
    status = 507
    exit_code = 7


class IntegrityError(TierstoreError):
    code = "integrity"
    status = 500
    retryable = True
    exit_code = 8


class ConfigError(TierstoreError):
    code = "config"
    status = 500
    exit_code = 2


#: The class that a status stands for when an answer of another process is turned back into an exception.
BY_STATUS: dict[int, type[TierstoreError]] = {
    400: RequestError,
    401: NotAuthenticated,
    403: AccessDenied,
    404: NotFound,
    409: ConflictError,
    412: PreconditionFailed,
    413: TooLarge,
    416: RangeNotSatisfiable,
    500: IntegrityError,
    503: UnavailableError,
    507: CapacityError,
}


def from_answer(status: int, code: str, detail: str = "", **fields: object) -> TierstoreError:
    """The exception for an error answer (status and problem+json members) of another process."""
    kind = BY_STATUS.get(status, RequestError if 400 <= status < 500 else UnavailableError)
    if code == TicketRefused.code:
        kind = TicketRefused
    elif code == ChecksumMismatch.code:
        kind = ChecksumMismatch
    elif status == 500 and code == "internal":
        kind = TierstoreError
    return kind(detail, code=code, **fields)


_CODES_OF: dict[type[TierstoreError], str] = {
    NotFound: "no-such-key no-such-bucket no-such-version no-such-upload no-such-server no-such-chunk no-such-file "
              "no-such-directory",
    ConflictError: "conflict bucket-exists bucket-not-empty chunk-exists upload-condemned upload-lapsed "
                   "upload-committed device-refused already-here body-not-here no-object-lock "
                   "object-lock-needs-versioning not-home-site file-changed hole stale-file",
    UnavailableError: "unavailable not-enough-servers no-replica metadata-unreachable draining outcome-unknown "
                      "body-unreachable too-late deadline unreachable catalog-unavailable busy site-comparing "
                      "name-parked",
    CapacityError: "device-full cluster-full catalog-full",
    AccessDenied: "object-locked quota-exceeded encrypted-object",
    IntegrityError: "integrity bad-block bad-footer catalog-corrupt",
    TierstoreError: "internal",
}  # fmt: skip
_OWN_CODE = (
    NotAuthenticated, AccessDenied, PreconditionFailed, NotModified, RangeNotSatisfiable, TooLarge, TicketRefused,
    ChecksumMismatch,
)  # fmt: skip
#: The class that the code of one item in a batch's answer stands for (a batch answers 200; its items have codes).
BY_CODE: dict[str, type[TierstoreError]] = {
    **{code: kind for kind, codes in _CODES_OF.items() for code in codes.split()},
    **{kind.code: kind for kind in _OWN_CODE},
}


def from_code(code: str, detail: str = "") -> TierstoreError:
    """The exception for an item's error code. A code that is not known here is the caller's mistake (400)."""
    return BY_CODE.get(code, RequestError)(detail, code=code)
