"""The user in whose name Globus is used: an app that reads the tokens of ``dataflow mirror login`` and never asks anybody.

Access tokens last two days and are renewed with the refresh token beside them, which lapses when it was not used for six months.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from globus_sdk import GlobusAppConfig, UserApp
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from dataflow.lib import checksum
from dataflow.lib.errors import BadConfig
from dataflow.lib.mirror_settings import StoreSettings


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
    """The user whose tokens are in the store's token file, if there is one.

    Raises:
        BadConfig: others may read the token file, or it is damaged.
    """
    path = Path(str(settings.token_file))
    try:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise BadConfig(f"{path} can be read by others, and whoever reads it can use Globus as you: chmod 600 {path}")
        tokens = TokenFile(path)
        tokens.get_token_data_by_resource_server()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfig(f"{path} cannot be used ({error}): remove it, then: dataflow mirror login") from error
    config = GlobusAppConfig(request_refresh_tokens=True, token_storage=tokens, token_validation_error_handler=None)
    return UserApp("dataflow", client_id=settings.client_id, config=config)
