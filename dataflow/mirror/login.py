"""``dataflow mirror login``: a person lets this machine use Globus in their name, and the tokens that stand for it are kept.

A refresh token works until it was not used for six months; everything else that runs only reads the file and never asks.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from globus_sdk import GlobusAppConfig, TransferAPIError, TransferClient, UserApp
from globus_sdk.gare import GARE, to_gare
from globus_sdk.login_flows import CommandLineLoginFlowEOFError
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData
from globus_sdk.token_storage.validating_token_storage import IdentityMismatchError

from dataflow.lib import checksum
from dataflow.lib.errors import BadConfig
from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores.globus_errors import asking


class TokenFile(JSONTokenStorage):
    """Tokens in a file of mode 0600 that is replaced as a whole: who writes it may be killed, or two may at once."""

    def store_token_data_by_resource_server(self, token_data_by_resource_server: Mapping[str, TokenStorageData]) -> None:
        """Keep tokens beside those of other services."""
        path = Path(self.filepath)
        known = self.get_token_data_by_resource_server()
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            whole = JSONTokenStorage(Path(folder) / path.name)
            whole.store_token_data_by_resource_server({**known, **token_data_by_resource_server})
            checksum.sync_file(Path(whole.filepath))
            Path(whole.filepath).replace(path)


def user_app(settings: StoreSettings) -> UserApp:
    """The user in whose name the store is used, out of its token file; it never asks anybody for anything.

    Raises:
        BadConfig: others may read the token file, or it is damaged.
    """
    path = Path(str(settings.token_file)).expanduser()
    try:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise BadConfig(f"{path} can be read by others, and whoever reads it can use Globus as you: chmod 600 {path}")
        tokens = TokenFile(path)
        tokens.get_token_data_by_resource_server()
    except (OSError, ValueError, KeyError) as error:
        raise BadConfig(f"{path} cannot be used ({error}): remove it, then: dataflow mirror login") from error
    config = GlobusAppConfig(request_refresh_tokens=True, token_storage=tokens, token_validation_error_handler=None)
    return UserApp("dataflow", client_id=settings.client_id, config=config)


def login(settings: StoreSettings) -> Path:
    """Let a person log in: print an address, read the code that its page shows, and keep the tokens; returns their file.

    Collections that want a consent of their own (``data_access`` of a mapped one), or a login of a special kind, say so when
    they are asked; then there is a second address.

    Raises:
        BadConfig: there is no person at a terminal, the code is wrong, or it is another user than before.
        HostDown: Globus cannot be reached.
        TryLater: the login is kept, but a collection could not be asked.
    """
    app = user_app(settings)
    client = TransferClient(app=app)
    try:
        with asking("log in"):
            _log_in(app, None)
            for collection in (str(settings.collection_id), str(settings.local_collection_id)):
                if (wanted := _demand(client, collection)) is not None:
                    _log_in(app, wanted)
                    client.operation_ls(collection, limit=1)
    finally:
        client.close()
        app.close()
    return Path(str(settings.token_file)).expanduser()


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
