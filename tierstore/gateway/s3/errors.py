"""S3's errors: their codes, statuses and XML, and what our own errors are called there.

Owns the one place that builds an S3 error answer. Invariant: whatever is raised below the door leaves as S3's XML with
a code that AWS documents; what is not one of ours becomes InternalError without a word about its insides.
"""

from __future__ import annotations

import logging
from typing import Final
from xml.sax.saxutils import escape

from tierstore.auth.sigv4 import SignatureError
from tierstore.errors import TierstoreError

_log = logging.getLogger(__name__)
XML_LINE: Final = b"content-type: application/xml\r\n"


class S3Error(Exception):
    """An answer that is an error. lines: further header lines; fields: further elements of the XML."""

    def __init__(self, code: str, message: str = "", status: int = 0, *, lines: bytes = b"", **fields: str) -> None:
        super().__init__(code)
        self.code = code
        self.status = status or STATUS.get(code, 400)
        self.message = message or MESSAGES.get(code, code)
        self.lines = lines
        self.fields = fields


#: Statuses of the codes that are not 400.
STATUS: Final = {
    "AccessDenied": 403, "AccessControlListNotSupported": 400, "AllAccessDisabled": 403, "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409, "BucketNotEmpty": 409, "ConditionalRequestConflict": 409, "InternalError": 500,
    "InvalidAccessKeyId": 403, "InvalidBucketState": 409, "InvalidObjectState": 403, "InvalidRange": 416,
    "MethodNotAllowed": 405, "MissingContentLength": 411, "NoSuchBucket": 404, "NoSuchBucketPolicy": 404,
    "NoSuchCORSConfiguration": 404, "NoSuchKey": 404, "NoSuchLifecycleConfiguration": 404, "NoSuchTagSet": 404,
    "NoSuchObjectLockConfiguration": 404, "NoSuchPublicAccessBlockConfiguration": 404, "NoSuchUpload": 404,
    "NoSuchVersion": 404, "NoSuchWebsiteConfiguration": 404, "NotImplemented": 501, "NotModified": 304,
    "ObjectLockConfigurationNotFoundError": 404, "OwnershipControlsNotFoundError": 404, "PreconditionFailed": 412,
    "QuotaExceeded": 403, "ReplicationConfigurationNotFoundError": 404, "RequestTimeTooSkewed": 403,
    "ServerSideEncryptionConfigurationNotFoundError": 404, "ServiceUnavailable": 503, "SignatureDoesNotMatch": 403,
    "SlowDown": 503, "TemporaryRedirect": 307, "InsufficientStorage": 507,
}  # fmt: skip
MESSAGES: Final = {
    "AccessControlListNotSupported": "The bucket does not allow ACLs",
    "MalformedACLError": "The ACL that you provided was not well formed or did not validate against our schema.",
    "MaxMessageLengthExceeded": "Your request was too large.",
    "AccessDenied": "Access Denied",
    "BadDigest": "The Content-MD5 or checksum value that you specified did not match what the server received.",
    "BucketAlreadyExists": "The requested bucket name is not available.",
    "BucketAlreadyOwnedByYou": "The bucket that you tried to create already exists, and you own it.",
    "BucketNotEmpty": "The bucket that you tried to delete is not empty.",
    "EntityTooLarge": "Your proposed upload exceeds the maximum allowed object size.",
    "EntityTooSmall": "Your proposed upload is smaller than the minimum allowed object size.",
    "IncompleteBody": "You did not provide the number of bytes specified by the Content-Length HTTP header.",
    "InternalError": "An internal error occurred. Try again.",
    "InvalidAccessKeyId": "The AWS access key ID that you provided does not exist in our records.",
    "InvalidBucketName": "The specified bucket is not valid.",
    "InvalidDigest": "The Content-MD5 or checksum value that you specified is not valid.",
    "InvalidPart": "One or more of the specified parts could not be found.",
    "InvalidPartOrder": "The list of parts was not in ascending order.",
    "InvalidRange": "The requested range is not satisfiable.",
    "KeyTooLongError": "Your key is too long.",
    "MalformedXML": "The XML you provided was not well-formed or did not validate against our published schema.",
    "MetadataTooLarge": "Your metadata headers exceed the maximum allowed metadata size.",
    "MethodNotAllowed": "The specified method is not allowed against this resource.",
    "MissingContentLength": "You must provide the Content-Length HTTP header.",
    "NoSuchBucket": "The specified bucket does not exist.",
    "NoSuchKey": "The specified key does not exist.",
    "NoSuchUpload": "The specified multipart upload does not exist.",
    "NoSuchVersion": "The specified version does not exist.",
    "NotImplemented": "A header or request you provided implies functionality that is not implemented.",
    "PreconditionFailed": "At least one of the preconditions that you specified did not hold.",
    "ServiceUnavailable": "Service is unable to handle the request. Try again.",
    "XAmzContentSHA256Mismatch": "The provided x-amz-content-sha256 header does not match what was computed.",
}
#: Our codes -> S3's.
_OURS: Final = {
    "no-such-bucket": "NoSuchBucket", "no-such-key": "NoSuchKey", "no-such-version": "NoSuchVersion",
    "no-such-upload": "NoSuchUpload", "bucket-exists": "BucketAlreadyExists", "bucket-not-empty": "BucketNotEmpty",
    "bad-bucket-name": "InvalidBucketName", "precondition-failed": "PreconditionFailed",
    "not-modified": "NotModified", "range-not-satisfiable": "InvalidRange", "bad-range": "InvalidRange",
    "too-large": "EntityTooLarge", "access-denied": "AccessDenied", "not-authenticated": "AccessDenied",
    "checksum-mismatch": "BadDigest", "bad-checksum": "InvalidRequest", "body-length": "IncompleteBody",
    "bad-user-metadata": "MetadataTooLarge", "bad-meta": "MetadataTooLarge", "bad-version": "NoSuchVersion",
    "part-changed": "InvalidPart", "busy": "SlowDown", "bad-etag": "InvalidArgument",
    "object-locked": "AccessDenied", "quota-exceeded": "QuotaExceeded", "no-object-lock": "InvalidRequest",
    "object-lock-needs-versioning": "InvalidBucketState",
}  # fmt: skip


def s3_error(error: BaseException, request_id: str) -> S3Error:
    """The S3 form of any error. Foreign ones are logged."""
    if isinstance(error, S3Error):
        return error
    if isinstance(error, SignatureError):
        shown = S3Error(error.code, error.message, error.status)
        shown.fields.update(error.fields)
        return shown
    if not isinstance(error, TierstoreError):
        _log.error("request %s failed unexpectedly", request_id, exc_info=error)
        return S3Error("InternalError")
    if error.code == "bad-key":
        return S3Error("KeyTooLongError" if " bytes, this one has " in error.detail else "InvalidURI", error.detail)
    code = _OURS.get(error.code)
    if code is not None:
        return S3Error(code, MESSAGES.get(code, "") or error.detail)
    if error.status == 507:
        return S3Error("InsufficientStorage", error.detail)
    if error.status == 503:
        return S3Error("ServiceUnavailable", lines=b"retry-after: 1\r\n")
    if error.status >= 500:
        return S3Error("InternalError")
    if error.status == 409:
        return S3Error("ConditionalRequestConflict", error.detail)
    return S3Error("InvalidRequest", error.detail)


def error_body(error: S3Error, *, resource: str, request_id: str) -> bytes:
    """The XML of an error answer."""
    fields = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in error.fields.items())
    shown = escape("".join(c for c in resource if c.isprintable()))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{error.code}</Code>'
        f"<Message>{escape(error.message)}</Message>{fields}<Resource>{shown}</Resource>"
        f"<RequestId>{escape(request_id)}</RequestId></Error>"
    ).encode("utf-8", "replace")
