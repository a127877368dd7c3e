"""One SSH connection with paramiko: to a host whose key is known beforehand, with one key file and nothing else."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import paramiko

from dataflow.lib.errors import BadConfig, HostDown
from dataflow.lib.mirror_settings import STORE_NEEDS, StoreSettings

KEEP_ALIVES_LOST = 4
"""So many intervals without any sign of the other machine, and the connection is lost."""

NOT_LET_IN = ("Authentication failed.",)
"""What paramiko says when a server has answered; it has the same exception for one that says nothing or hangs up."""


def silence_s(settings: StoreSettings) -> float:
    """How long the other side may say nothing while an answer is waited for."""
    return KEEP_ALIVES_LOST * settings.keep_alive_s


def connected(settings: StoreSettings) -> paramiko.SSHClient:
    """A connection on which sessions can be opened.

    Raises:
        BadConfig: the host key is not the known one, the key file cannot be used, or it is not let in.
        HostDown: there is no answer, or none that is SSH.
    """
    if missing := [name for name in STORE_NEEDS["sftp"] if getattr(settings, name) is None]:
        raise BadConfig(f"a store of the kind sftp needs {', '.join(missing)}")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it would print, its exceptions say
    client = paramiko.SSHClient()
    _load_known_hosts(client, settings)
    where = f"{settings.user}@{settings.address} port {settings.port}"
    try:
        _connect(client, settings)
    except paramiko.BadHostKeyException as error:
        client.close()
        raise _changed(settings, error) from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        client.close()
        if isinstance(error, paramiko.AuthenticationException) and str(error) in NOT_LET_IN:
            raise BadConfig(
                f"{where} does not let in the key {settings.key_file}: is {settings.key_file}.pub in its authorized_keys?"
            ) from error
        raise HostDown(f"{where} cannot be reached: {error or type(error).__name__}") from error
    except BadConfig:
        client.close()
        raise
    return client


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    """Nobody is asked: what is not known beforehand is not talked to."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise BadConfig(
            f"the host key of {hostname} is not in {self._settings.known_hosts}. It shows {key.get_name()} {key.fingerprint}: "
            f"ask the people there whether that is theirs, and only then: {_to_add(self._settings)}"
        )


def _changed(settings: StoreSettings, error: paramiko.BadHostKeyException) -> BadConfig:
    return BadConfig(
        f"the host key of {settings.address} is not the one in {settings.known_hosts}, so this may be another machine: it shows "
        f"{error.key.get_name()} {error.key.fingerprint}, and {error.expected_key.fingerprint} is known. Nothing was sent. "
        f"If the people there say that they have a new key: ssh-keygen -f {settings.known_hosts} -R '{_name(settings)}', "
        f"then {_to_add(settings)}"
    )


def _to_add(settings: StoreSettings) -> str:
    return f"ssh-keyscan -p {settings.port} {settings.address} >> {settings.known_hosts}"


def _name(settings: StoreSettings) -> str:
    return str(settings.address) if settings.port == paramiko.config.SSH_PORT else f"[{settings.address}]:{settings.port}"


def _load_known_hosts(client: paramiko.SSHClient, settings: StoreSettings) -> None:
    try:
        client.load_host_keys(str(settings.known_hosts))
    except OSError as error:
        raise BadConfig(
            f"{settings.known_hosts}, which has to hold the host key of {settings.address}, cannot be read: {error.strerror}. "
            f"Once the people there have confirmed the fingerprint: {_to_add(settings)}"
        ) from error
    client.set_missing_host_key_policy(_RefuseUnknown(settings))


def _connect(client: paramiko.SSHClient, settings: StoreSettings) -> None:
    limit_s = settings.connect_timeout_s
    client.connect(
        str(settings.address), settings.port, settings.user, pkey=_key(Path(str(settings.key_file))),
        allow_agent=False, look_for_keys=False,
        timeout=limit_s, banner_timeout=limit_s, auth_timeout=limit_s, channel_timeout=limit_s, transport_factory=_transport,
    )  # fmt: skip
    transport = client.get_transport()
    assert transport is not None and isinstance(transport.sock, socket.socket)
    transport.set_keepalive(max(1, round(settings.keep_alive_s)))
    transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(silence_s(settings) * 1000))


def _transport(*arguments: object, **options: object) -> paramiko.Transport:
    """With the ciphers first that need no MAC of their own, which costs Python as much as the cipher."""
    transport = paramiko.Transport(*arguments, **options)  # type: ignore[arg-type]
    security = transport.get_security_options()
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)
    return transport


def _key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise BadConfig(f"the key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise BadConfig(f"the key {path} cannot be used; it must be a private key without a pass phrase: {error}") from error
