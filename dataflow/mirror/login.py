"""``dataflow mirror login``: a person lets this machine use Globus in their name; everything else only reads what that leaves."""

from __future__ import annotations

from globus_sdk import TransferAPIError, TransferClient, UserApp
from globus_sdk.gare import GARE, to_gare
from globus_sdk.login_flows import CommandLineLoginFlowEOFError
from globus_sdk.token_storage.validating_token_storage import IdentityMismatchError

from dataflow.lib.errors import BadConfig
from dataflow.mirror.job import Job
from dataflow.mirror.stores.globus_errors import asking
from dataflow.mirror.stores.globus_user import user_app


def login(job: Job) -> None:
    """Let a person log in for the mirror's store: print an address, read the code that its page shows, keep the tokens.

    Collections that want a consent of their own (``data_access`` of a mapped one), or a login of a special kind, say so when
    they are asked; then there is a second address.

    Raises:
        BadConfig: the store is none of Globus, there is no person at a terminal, the code is wrong, or it is another user.
        HostDown: Globus cannot be reached, or a collection; the login is kept if it came so far.
        TryLater: the login is kept, but a collection shows nothing.
    """
    settings = job.settings.store
    if settings.kind != "globus":
        raise BadConfig(f"mirror.store is of kind {settings.kind}: there is nothing to log in to")
    app = user_app(settings)
    client = TransferClient(app=app)
    try:
        with asking("log in"):
            _log_in(app, None)
            job.say(f"logged in; the tokens are in {settings.token_file}, which nobody else may read")
            for collection in (str(settings.collection_id), str(settings.local_collection_id)):
                if (wanted := _demand(client, collection)) is not None:
                    job.say(f"collection {collection} wants a consent of its own")
                    _log_in(app, wanted)
                    client.operation_ls(collection, limit=1)
    finally:
        client.close()
        app.close()


def _log_in(app: UserApp, wanted: GARE | None) -> None:
    try:
        app.login(auth_params=wanted.authorization_parameters if wanted else None, force=True)
    except CommandLineLoginFlowEOFError as error:
        raise BadConfig("no code was given: log in at a terminal, as the user whom the mirror runs as") from error
    except IdentityMismatchError as error:
        raise BadConfig("another user than before has logged in; if that is meant, remove the token file first") from error


def _demand(client: TransferClient, collection: str) -> GARE | None:
    """What a collection wants of a login before it shows anything."""
    try:
        client.operation_ls(collection, limit=1)
    except TransferAPIError as error:
        if (wanted := to_gare(error)) is None:
            raise
        return wanted
    return None
