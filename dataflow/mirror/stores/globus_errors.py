"""What Globus says when something goes wrong, named by what is to be done about it.

A path that is not there is a 404 of one of two codes (``stat`` and ``ls`` differ); a 404 of any other code says that something
else is unknown, for instance the collection. A refusal is a 403, unless it asks for a consent that a login would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from globus_sdk import AuthAPIError, GlobusAPIError, NetworkError, TransferAPIError
from globus_sdk.gare import to_gare
from globus_sdk.token_storage import TokenValidationError

from dataflow.lib.errors import BadConfig, DataflowError, HostDown, TryLater
from dataflow.mirror.stores import Absent, Refused

PATH_NOT_FOUND = ("NotFound", "ClientError.NotFound")
FOLDER_EXISTS = "ExternalError.MkdirFailed.Exists"
DISCONNECTED = ".GCDisconnected"
"""How the codes end that mean: Globus Connect Personal does not run on the machine of that collection."""
NOT_DIRECTORY = ".NotDirectory"
"""How the code of a listing ends where there is a file of that name and no folder."""
LOGIN = "a person has to log in again: dataflow mirror login"


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Around calls of the SDK; ``what`` is being done, for the message.

    Raises:
        Absent, Refused: said of a path.
        BadConfig: nobody is logged in, the login has lapsed, or it lacks a consent.
        HostDown: the service or the collection cannot be reached.
        TryLater: anything else that the service answers.
    """
    try:
        yield
    except TokenValidationError as error:
        raise BadConfig(f"{what}: {error}; {LOGIN}") from error
    except AuthAPIError as error:
        if error.http_status < 500:
            raise BadConfig(f"{what}: the login is not accepted any more ({said(error)}); {LOGIN}") from error
        raise HostDown(f"{what}: the login service of Globus does not work ({said(error)})") from error
    except TransferAPIError as error:
        raise _named(what, error) from error
    except NetworkError as error:
        raise HostDown(f"{what}: Globus cannot be reached ({error})") from error


def said(error: GlobusAPIError) -> str:
    """What the service said, on one line."""
    return f"{error.http_status} {error.code}: {' '.join((error.message or '').split())[:300]}"


def error_of(code: str, text: str) -> TryLater:
    """What a task says of one file: its codes are others than those of a call."""
    return Refused(text) if code == "PERMISSION_DENIED" else TryLater(text)


def _named(what: str, error: TransferAPIError) -> DataflowError:
    text, code = f"{what}: {said(error)}", error.code or ""
    if error.http_status == 401 or to_gare(error) is not None:
        return BadConfig(f"{text}; {LOGIN}")
    if error.http_status == 403:
        return Refused(text)
    if (error.http_status == 404 and code in PATH_NOT_FOUND) or code.endswith(NOT_DIRECTORY):
        return Absent(text)
    if error.http_status == 503 or code.endswith(DISCONNECTED):
        return HostDown(text)
    return TryLater(text)
