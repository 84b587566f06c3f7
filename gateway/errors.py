"""Everything the gateway answers that is not a success, and the one place that turns it to HTTP.

GatewayError
├── RequestError             400  the request is wrong; names the parameter and a stable code
├── UnauthenticatedError     401  no key, or a wrong one
├── ForbiddenError           403  a link whose signature is wrong or too old
├── ModelNotFoundError       404  no such model (param `model`)
├── MissingError             404  no such file or route
├── WrongMethodError         405  carries `Allow`
├── BodyTooLargeError        413
├── WrongMediaTypeError      415
├── KeyConflictError         422  the idempotency key belongs to another request
├── RangeError               416  no byte of the file is in the range that was asked for
├── JobCancelledError        499  its caller left, so nobody reads this answer
├── ServerFault              500  our failure; the answer names the request id and nothing else
│   └── GenerationFailedError     the job failed; asking again is unlikely to help
├── OverloadedError          503  try again after `retry_after_s`
│   ├── DeadlineError            it would be finished after its own hard deadline
│   └── ClosingError             this server stops; another one may answer
└── JobTimeoutError          504  the job was not finished in time

The body is OpenAI's envelope for every route: {"error": {message, type, param, code}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from engine import EngineBusyError, InvalidRequestError, RequestImpossibleError
from gateway.jobs.state import JobStatus
from gateway.request_id import request_id_of
from gateway.storage.blobs import StoreAwayError

if TYPE_CHECKING:
    from litestar.types import ExceptionHandlersMap

    from gateway.jobs.record import Job, JobId

_log = structlog.get_logger(__name__)
_NO_HEADERS: Mapping[str, str] = {}
PREDICTION_HEADER: Final = "x-predicted-finish-ms"  # from now on


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object: all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error envelope."""

    error: ErrorDetail


class GatewayError(Exception):
    """An answer that is not a success. `message` is written for the caller."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        """Take the sentence, and what a program can act on."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers


class RequestError(GatewayError):
    """The request cannot be honoured as it is."""

    status = 400


class UnauthenticatedError(GatewayError):
    """No key, or one that we do not know."""

    status = 401

    def __init__(self, message: str) -> None:
        """Say how to authenticate; the message must hold no key in clear."""
        super().__init__(message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


class ForbiddenError(GatewayError):
    """The caller may not see this."""

    status = 403


class MissingError(GatewayError):
    """What the caller asks for does not exist."""

    status = 404


class ModelNotFoundError(MissingError):
    """No model of this name is served."""

    def __init__(self, model: str) -> None:
        """Name the model that was asked for."""
        message = f"The model '{model}' does not exist. GET /v1/models lists those that do."
        super().__init__(message, code="model_not_found", param="model")


class WrongMethodError(GatewayError):
    """The route exists, but not for this method."""

    status = 405


class BodyTooLargeError(GatewayError):
    """The request body is larger than this route takes."""

    status = 413


class WrongMediaTypeError(GatewayError):
    """The body is declared as a type that this route does not take."""

    status = 415


class RangeError(GatewayError):
    """The range lies outside the file."""

    status = 416

    def __init__(self, message: str, *, size_bytes: int) -> None:
        """Say how long the file is, in the header that players read."""
        headers = {"content-range": f"bytes */{size_bytes}", "accept-ranges": "bytes"}
        super().__init__(message, code="range_not_satisfiable", headers=headers)


class JobCancelledError(GatewayError):
    """The job was stopped because its caller left; the status is for our own log."""

    status = 499

    def __init__(self, job: JobId) -> None:
        """Name the job."""
        super().__init__(f"Job {job} was cancelled.", code="cancelled")


class ServerFault(GatewayError):  # noqa: N818 - "fault" says whose it is
    """A failure of ours. Its message is ours, too; the caller only gets the request id."""

    status = 500
    type = "server_error"


class GenerationFailedError(ServerFault):
    """The engine gave the job up after its own retries."""

    def __init__(self, message: str) -> None:
        """Tell the SDKs not to send the request again by themselves."""
        super().__init__(message, headers={"x-should-retry": "false"})


class KeyConflictError(GatewayError):
    """The caller has used this idempotency key for another request.

    Not 409, which the SDKs would send again.
    """

    status = 422

    def __init__(self, key: str) -> None:
        """Name the key, which is the caller's own."""
        message = (
            f"The Idempotency-Key '{key[:64]}' was used for a request with another body in the last "
            "24 hours. Send the same body, or a new key."
        )
        super().__init__(message, code="idempotency_key_reused")


class OverloadedError(GatewayError):
    """There is no room for this request now."""

    status = 503
    type = "service_unavailable_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        finish_in_s: float | None = None,
        code: str = "server_is_overloaded",
        should_retry: bool = True,
    ) -> None:
        """Say when to come back, in the two headers that the SDKs read, and what is predicted."""
        headers = {
            "retry-after": str(max(1, round(retry_after_s))),
            "retry-after-ms": str(round(retry_after_s * 1000)),
        }
        if finish_in_s is not None:
            headers[PREDICTION_HEADER] = str(round(finish_in_s * 1000))
        if not should_retry:
            headers["x-should-retry"] = "false"
        super().__init__(message, code=code, headers=headers)


class DeadlineError(OverloadedError):
    """The request would be finished after its hard deadline, so it is not begun."""

    def __init__(
        self,
        *,
        finish_in_s: float,
        deadline_in_s: float,
        alone_s: float,
        least_steps: int | None = None,
    ) -> None:
        """Tell the prediction, for `least_steps` if the request allows so few.

        Waiting helps unless the request alone takes too long.
        """
        helps = alone_s <= deadline_in_s
        even = "" if least_steps is None else f", even with {least_steps} denoise steps"
        advice = "Please retry later," if helps else "Not even an idle server could meet it:"
        message = (
            f"This request would be finished in about {finish_in_s:.1f} seconds{even}, but its "
            f"'deadline_ms' allows {deadline_in_s:.1f}. {advice} allow more time, or ask for less."
        )
        super().__init__(
            message,
            retry_after_s=min(60.0, max(1.0, finish_in_s - deadline_in_s)),
            finish_in_s=finish_in_s,
            code="deadline_unmeetable",
            should_retry=helps,
        )


class UnreadableJobError(OverloadedError):
    """A job that another version of the server wrote, and that this one cannot read."""

    def __init__(self, job: JobId) -> None:
        """Name the job; another process may be able to read it."""
        message = (
            f"Job {job} was written by another version of the server, and this process cannot read "
            "it. It is not lost: ask again, or tell the operator to run one version everywhere."
        )
        super().__init__(message, retry_after_s=5.0, code="job_unreadable")


class ClosingError(OverloadedError):
    """The server stops while a caller waits."""

    def __init__(self, job: JobId) -> None:
        """Name the job that was given back to the queue."""
        message = f"The server is shutting down before job {job} is finished. Please retry."
        super().__init__(message, retry_after_s=2.0)


class JobTimeoutError(GatewayError):
    """A job took longer than callers may wait."""

    status = 504
    type = "server_error"

    def __init__(self, job: JobId) -> None:
        """Name the job; the SDKs should not try again by themselves."""
        message = f"Job {job} was not finished in time and was cancelled. Ask for less, or later."
        super().__init__(message, code="request_timeout", headers={"x-should-retry": "false"})


def failure_of(job: Job) -> GatewayError:
    """Return the answer for a job that is over and did not complete."""
    error = job.error
    if error is not None and error.caller_can_fix:
        return RequestError(error.message, code=error.code, param=error.param)
    if error is not None:
        return GenerationFailedError(f"Job {job.id} failed with {error.code}: {error.message}")
    if job.status is JobStatus.EXPIRED:
        return JobTimeoutError(job.id)
    return JobCancelledError(job.id)


def translate(error: Exception) -> GatewayError:
    """Return the answer for any exception."""
    match error:
        case GatewayError():
            return error
        case InvalidRequestError():
            return RequestError(str(error), code=error.code, param=error.param)
        case RequestImpossibleError():
            return RequestError(str(error), code=error.code)
        case EngineBusyError() | StoreAwayError():
            return _come_again(error)
        case HTTPException():
            return _translate_http(error)
        case _:
            return ServerFault(f"{type(error).__name__}: {error}")


def _come_again(error: EngineBusyError | StoreAwayError) -> OverloadedError:
    if isinstance(error, EngineBusyError):
        return OverloadedError("The server is overloaded. Please retry.", retry_after_s=2.0)
    message = "The artifact store does not answer. Nothing is lost; please retry."
    return OverloadedError(message, retry_after_s=5.0, code="artifact_store_unavailable")


def _translate_http(error: HTTPException) -> GatewayError:
    headers = error.headers or {}
    match error.status_code:
        case 404:
            return MissingError("Not found.")
        case 405:
            allowed = headers.get("allow", "")
            message = f"This method is not supported here; use {allowed or 'another one'}."
            return WrongMethodError(message, code="method_not_supported", headers=headers)
        case 413:
            return BodyTooLargeError("The request body is too large.", code="request_too_large")
        case status if status < ServerFault.status:
            return RequestError(error.detail, code="invalid_value", param=_first_key(error.extra))
        case _:
            return ServerFault(error.detail)


def _first_key(extra: object) -> str | None:
    """Return the first parameter that litestar's validation names."""
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        key = extra[0].get("key")
        return key if isinstance(key, str) else None
    return None


def error_body(request: Request[Any, Any, Any], error: Exception) -> tuple[ErrorBody, GatewayError]:
    """Turn any exception into what a caller may know of it, and log those that are our fault."""
    translated = translate(error)
    request_id = request_id_of(request.scope)
    message = translated.message
    if isinstance(translated, ServerFault) or isinstance(error, StoreAwayError):
        _log.error(
            "request_failed",
            request_id=request_id,
            reason=message,
            exc_info=error if translated is not error else None,
        )
    if isinstance(translated, ServerFault):
        message = (
            "The server had an error while processing your request. If it happens again, tell "
            f"the operator the request id {request_id}."
        )
    elif isinstance(error, HTTPException) and isinstance(translated, MissingError):
        message = f"Invalid URL ({request.method} {request.url.path})"
    detail = ErrorDetail(message, translated.type, translated.param, translated.code)
    return ErrorBody(detail), translated


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    """Turn any exception into a response."""
    body, translated = error_body(request, error)
    return Response(
        body,
        status_code=translated.status,
        headers=dict(translated.headers),
        media_type="application/json",
    )


EXCEPTION_HANDLERS: ExceptionHandlersMap = {Exception: answer, HTTPException: answer}
