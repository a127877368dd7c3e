"""A Globus for tests: its Transfer API and its login, over real folders, on loopback, with every fault that a test asks for.

The SDK finds it through ``GLOBUS_SDK_SERVICE_URL_TRANSFER`` and ``..._AUTH``, as it would find another Globus. A collection is a
folder; the local one is ``/``. A transfer writes straight to the final name, as GridFTP does, and a rename replaces what is in
its way, which is the worst that is known of any collection.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import pwd
import shutil
import signal
import sys
import threading
import time
import traceback
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import sftp_server
import stores_under_test
from cryptography.hazmat.primitives.asymmetric import rsa
from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from dataflow.lib.mirror_settings import StoreSettings
from dataflow.mirror.stores.globus import GlobusStore

TRANSFER = "transfer.api.globus.org"
LOCAL = "00000000-0000-0000-0000-00000000000a"
MIRROR = "00000000-0000-0000-0000-00000000000b"
CLIENT = "00000000-0000-0000-0000-00000000000c"
USER = "00000000-0000-0000-0000-00000000000d"
SCOPE = f"urn:globus:auth:scope:{TRANSFER}:all"
PAGE = 2
"""How many tasks, or files of a task, the server gives at a time: every list has several pages."""


@dataclass
class Fate:
    """What becomes of a task: its files beyond the first ``moves`` are not moved; those that end with ``skips`` are skipped,
    with ``code``; of those that end with ``halves`` only half arrives, and nobody notices. With ``looks`` it is active until it
    was looked at so often, and has moved ``speed`` bytes more each time. ``is_stubborn``: it does not let itself be cancelled."""

    status: str = "SUCCEEDED"
    moves: int = 1_000_000
    skips: str = "\0"
    code: str = "PERMISSION_DENIED"
    halves: str = "\0"
    looks: int = 0
    speed: int = 0
    is_stubborn: bool = False


@dataclass
class Task:
    """A task, as the service knows it."""

    document: dict[str, Any]
    fate: Fate
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "ACTIVE"
    moved: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    refused: str = "DISK_FULL"
    bytes: int = 0

    def told(self) -> dict[str, Any]:
        error = {"code": "CANCELED", "description": "the task was canceled or a file failed"} if self.status == "FAILED" else None
        return {
            "DATA_TYPE": "task", "task_id": self.task_id, "status": self.status, "label": self.document["label"],
            "type": self.document["DATA_TYPE"].upper(), "fatal_error": error, "nice_status_short_description": None,
            "bytes_transferred": self.bytes,
        }  # fmt: skip


@dataclass
class Fault:
    """What goes wrong with a call. ``act``: "403 EndpointPermissionDenied" and the like, or "drop before", "drop after",
    "cut" (half an answer). ``times``: how often, after the call was made ``later`` times in peace."""

    call: str
    act: str
    path: str = ""
    times: int = 1_000_000
    later: int = 0


@dataclass
class Kill:
    """SIGKILL for a process, before or after the server has done what its call of that number asks for."""

    pid: int
    number: int
    moment: str


class Refusal(Exception):
    def __init__(self, status: int, code: str, **more: Any) -> None:
        super().__init__(code)
        self.status, self.document = status, {"code": code, "message": f"it is said\nthat: {code}", "request_id": "r1", **more}


class GlobusServer:
    """The state of it all; a test changes it as it likes, before or while somebody calls."""

    def __init__(self, mirror: Path) -> None:
        """``wanting``: collections that show nothing without a consent of their own."""
        self.collections = {LOCAL: Path("/"), MIRROR: mirror}
        self.tasks: list[Task] = []
        self.submissions: dict[str, Task] = {}
        self.fates: list[Fate] = []
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        self.kill: Kill | None = None
        self.wanting: set[str] = set()
        self.consents: set[str] = set()
        self.tokens = {"good"}
        self.refresh_tokens = {"refresh"}
        self.user = USER
        self.url = ""
        self.lock = threading.RLock()

    def fail(self, call: str, act: str, **where: Any) -> None:
        """From now on a call (`ls`, `stat`, `mkdir`, `rename`, `transfer`, `delete`, `task` ...) goes wrong."""
        self.faults.append(Fault(call, act, **where))

    def settings(self, folder: Path, root: str = "/", time_limit_s: float = 30.0) -> StoreSettings:
        """The settings of a store that is the mirror's collection, of a user who has logged in."""
        path = folder / "tokens" / "globus.json"
        path.parent.mkdir(exist_ok=True)
        token = TokenStorageData(TRANSFER, USER, SCOPE, "good", "refresh", int(time.time()) + 172800, "Bearer")
        JSONTokenStorage(path).store_token_data_by_resource_server({TRANSFER: token})
        return StoreSettings(
            "globus", root, collection_id=MIRROR, local_collection_id=LOCAL, client_id=CLIENT, token_file=str(path),
            time_limit_s=time_limit_s,
        )  # fmt: skip

    def file(self, collection: str, path: str) -> Path:
        if collection not in self.collections:
            raise Refusal(404, "EndpointNotFound")
        return self.collections[collection] / path.lstrip("/")

    def hit(self, call: str, path: str) -> str:
        """What goes wrong with this call."""
        for fault in self.faults:
            if fault.call == call and fault.times > 0 and path.endswith(fault.path):
                if fault.later > 0:
                    fault.later -= 1
                    continue
                fault.times -= 1
                return fault.act
        return ""

    def take(self, document: dict[str, Any]) -> dict[str, Any]:
        """A task is submitted: carried out at once, or as its fate has it; once for each id of a submission."""
        known = self.submissions.get(document["submission_id"])
        if known is None:
            task = Task(document, self.fates.pop(0) if self.fates else Fate())
            self.tasks.append(task)
            self.submissions[document["submission_id"]] = task
            if not task.fate.looks:
                self.carry_out(task)
        task = self.submissions[document["submission_id"]]
        return {"code": "Duplicate" if known else "Accepted", "task_id": task.task_id, "submission_id": document["submission_id"]}

    def carry_out(self, task: Task) -> None:
        if task.status != "ACTIVE":
            return
        task.status = task.fate.status
        for item in task.document["DATA"][: task.fate.moves]:
            try:
                if task.document["DATA_TYPE"] == "delete":
                    self.delete(task.document, item["path"])
                else:
                    self.copy(task, item["source_path"], item["destination_path"])
            except OSError as error:
                task.status = "FAILED"
                task.refused = "PERMISSION_DENIED" if isinstance(error, PermissionError) else "FILE_SYSTEM_ERROR"

    def delete(self, document: dict[str, Any], text: str) -> None:
        self.file(document["endpoint"], text).unlink(missing_ok=bool(document.get("ignore_missing")))

    def copy(self, task: Task, whence: str, whither: str) -> None:
        source, fate = self.file(task.document["source_endpoint"], whence), task.fate
        assert source.is_file() or not source.exists(), "a pipe would hang it, and a folder is not moved like that"
        if whence.endswith(fate.skips) or not os.access(source, os.R_OK, effective_ids=True):
            assert task.document["skip_source_errors"], "it would be tried until the deadline"
            code = fate.code if source.exists() else "FILE_NOT_FOUND"
            task.skipped.append({"source_path": whence, "destination_path": whither, "error_code": code})
            return
        destination = self.file(task.document["destination_endpoint"], whither)
        shutil.copyfile(source, destination)
        if whence.endswith(fate.halves):
            os.truncate(destination, source.stat().st_size // 2)
        task.moved.append({"source_path": whence, "destination_path": whither})

    def look(self, task: Task) -> dict[str, Any]:
        if task.fate.looks:
            task.fate.looks -= 1
            task.bytes += task.fate.speed
            if not task.fate.looks:
                self.carry_out(task)
        return task.told()

    def cancel(self, task: Task) -> dict[str, Any]:
        if task.status in ("ACTIVE", "INACTIVE") and not task.fate.is_stubborn:
            task.status, task.fate.looks = "FAILED", 0
        return {"code": "Canceled"}

    def of(self, kind: str) -> list[Task]:
        """The tasks of a kind, `transfer` or `delete`."""
        return [task for task in self.tasks if task.document["DATA_TYPE"] == kind]


@contextlib.contextmanager
def running(mirror: Path) -> Iterator[GlobusServer]:
    """A server, and an environment in which the SDK uses it."""
    state = GlobusServer(mirror)
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, state))
    state.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    variables = {"GLOBUS_SDK_SERVICE_URL_TRANSFER": state.url, "GLOBUS_SDK_SERVICE_URL_AUTH": state.url}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def under_test() -> Iterator[stores_under_test.UnderTest]:
    """The mirror's collection, for the contract suite; the server works as whoever the tests work as."""
    with sftp_server.reachable_folder() as folder, running(folder / "mirror") as state:
        work = folder / "work"
        for made in (folder / "mirror", work):
            made.mkdir()
            made.chmod(0o777)
        store = GlobusStore(state.settings(folder), work)
        try:
            if os.geteuid() == 0:
                os.chown(store._tasks.folder, pwd.getpwnam(sftp_server.NOBODY).pw_uid, -1)
            yield stores_under_test.UnderTest(
                store, folder / "mirror", lambda: stores_under_test._as_nobody(store), resumes=False, writes_beside=False,
                any_bytes=False,
            )  # fmt: skip
        finally:
            store.close()


def killed(work: Callable[[], Any], state: GlobusServer, number: int, moment: str) -> bool:
    """Run some work in a process of its own, which is killed at its N-th call; False when it ended before that."""
    state.calls.clear()
    ready, go = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.read(ready, 1)
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    state.kill = Kill(pid, number, moment)
    os.write(go, b"!")
    _, status = os.waitpid(pid, 0)
    state.kill = None
    os.close(ready)
    os.close(go)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return os.WIFSIGNALED(status)


def visit(url: str) -> str:
    """Be the person at the browser: log in at the address that was printed, and read the code."""
    with urllib.request.urlopen(url) as page:
        return str(page.read().decode())


def _ls(state: GlobusServer, query: dict[str, str], collection: str) -> dict[str, Any]:
    folder = state.file(collection, query.get("path", "/"))
    if not folder.exists():
        raise Refusal(404, "ClientError.NotFound")
    if not folder.is_dir():
        raise Refusal(502, "ExternalError.DirListingFailed.NotDirectory")
    entries = [_entry(path) for path in sorted(folder.iterdir())]
    if query.get("show_hidden") == "0":
        entries = [entry for entry in entries if not entry["name"].startswith(".")]
    return {"DATA_TYPE": "file_list", "path": query.get("path"), "DATA": entries[: int(query["limit"])], "total": len(entries)}


def _stat(state: GlobusServer, query: dict[str, str], collection: str) -> dict[str, Any]:
    path = state.file(collection, query["path"])
    if not path.exists() and not path.is_symlink():
        raise Refusal(404, "NotFound")
    return _entry(path)


def _entry(path: Path) -> dict[str, Any]:
    """What the service tells of a path: of a link what it leads to, and where that is."""
    link = {"link_target": os.readlink(path) if path.is_symlink() else None}
    if not path.exists():
        return {"name": path.name, "type": "invalid_symlink", "size": 0, "last_modified": str(datetime.now(UTC)), **link}
    status = path.stat()
    kind = "dir" if path.is_dir() else "file" if path.is_file() else "pipe"
    changed = str(datetime.fromtimestamp(int(status.st_mtime), UTC))
    return {"name": path.name, "type": kind, "size": status.st_size, "last_modified": changed, **link}


def _mkdir(state: GlobusServer, body: dict[str, Any], collection: str) -> dict[str, Any]:
    try:
        state.file(collection, body["path"]).mkdir()
    except FileExistsError as error:
        raise Refusal(502, "ExternalError.MkdirFailed.Exists") from error
    except FileNotFoundError as error:
        raise Refusal(502, "ExternalError.MkdirFailed") from error
    return {"code": "DirectoryCreated"}


def _rename(state: GlobusServer, body: dict[str, Any], collection: str) -> dict[str, Any]:
    try:
        state.file(collection, body["old_path"]).rename(state.file(collection, body["new_path"]))
    except FileNotFoundError as error:
        raise Refusal(404, "ClientError.NotFound") from error
    return {"code": "FileRenamed"}


def _task_list(state: GlobusServer, query: dict[str, str]) -> dict[str, Any]:
    wanted = query["filter"].removeprefix("status:").split(",")
    found = [task.told() for task in state.tasks if task.status in wanted]
    offset = int(query.get("offset", 0))
    return {"DATA": found[offset : offset + min(PAGE, int(query["limit"]))], "offset": offset, "total": len(found)}


def _page(items: list[dict[str, str]], query: dict[str, str]) -> dict[str, Any]:
    first = int(query.get("marker", 0))
    more = first + PAGE if first + PAGE < len(items) else None
    return {"DATA": items[first : first + PAGE], "next_marker": more}


def _task(state: GlobusServer, query: dict[str, str], task_id: str, what: str) -> dict[str, Any]:
    task = next((task for task in state.tasks if task.task_id == task_id), None)
    if task is None:
        raise Refusal(404, "TaskNotFound")
    match what:
        case "cancel":
            return state.cancel(task)
        case "successful_transfers":
            return _page(task.moved, query)
        case "skipped_errors":
            return _page(task.skipped, query)
        case "event_list":
            told = {"code": task.refused, "description": "no space", "details": "on the device", "is_error": True}
            return {"DATA": [{"code": "PROGRESS", "is_error": False}, told], "total": 2}
    return state.look(task)


def _token(state: GlobusServer, form: dict[str, str]) -> dict[str, Any]:
    """The token endpoint of the login: for the code of a visit, or for a refresh token."""
    if form["grant_type"] == "refresh_token":
        if form["refresh_token"] not in state.refresh_tokens:
            raise Refusal(401, "invalid_grant", error="invalid_grant")
        return {**_token_of(state, TRANSFER, SCOPE), "other_tokens": []}
    if form["code"] != "the-code":
        raise Refusal(401, "invalid_grant", error="invalid_grant")
    claims = {"sub": state.user, "aud": CLIENT, "iss": state.url, "exp": int(time.time()) + 600, "iat": int(time.time())}
    id_token = jwt.encode(claims, _key(), algorithm="RS256")
    first = {**_token_of(state, "auth.globus.org", "openid"), "id_token": id_token}
    return {**first, "other_tokens": [_token_of(state, TRANSFER, SCOPE)]}


def _token_of(state: GlobusServer, resource_server: str, scope: str) -> dict[str, Any]:
    access, refresh = f"access {uuid.uuid4()}", f"refresh {uuid.uuid4()}"
    state.tokens.add(access)
    state.refresh_tokens.add(refresh)
    return {
        "access_token": access, "refresh_token": refresh, "scope": scope, "expires_in": 172800, "token_type": "Bearer",
        "resource_server": resource_server,
    }  # fmt: skip


@functools.cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _jwk() -> dict[str, Any]:
    numbers = _key().public_key().public_numbers()
    return {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "e": _base64(numbers.e), "n": _base64(numbers.n)}]}


def _base64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news; anything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, state: GlobusServer, *arguments: Any) -> None:
        self.state = state
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        is_form = "form" in self.headers.get("Content-Type", "")
        self._answer(dict(urllib.parse.parse_qsl(body)) if is_form else json.loads(body or "{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        words = url.path.strip("/").split("/")
        with self.state.lock:
            if words[0] == "v0.10":
                self._transfer_api(words[1:], {**query, **body})
            else:
                self._login(words, query, body)

    def _login(self, words: list[str], query: dict[str, str], body: dict[str, Any]) -> None:
        match words:
            case ["v2", "oauth2", "authorize"]:
                self.state.consents |= {query["scope"]}
                self._send(200, b"the-code")
            case ["v2", "oauth2", "token"]:
                try:
                    self._send(200, json.dumps(_token(self.state, body)).encode())
                except Refusal as refusal:
                    self._send(refusal.status, json.dumps(refusal.document).encode())
            case [".well-known", "openid-configuration"]:
                told = {"jwks_uri": f"{self.state.url}jwk.json", "id_token_signing_alg_values_supported": ["RS256"]}
                self._send(200, json.dumps(told).encode())
            case _:
                self._send(200, json.dumps(_jwk()).encode())

    def _transfer_api(self, words: list[str], what: dict[str, Any]) -> None:
        state, call = self.state, words[-1] if words[0] != "task" or len(words) > 2 else "task"
        path = str(what.get("path") or what.get("old_path") or "")
        state.calls.append((call, path))
        fatal = state.kill if state.kill is not None and state.kill.number == len(state.calls) else None
        act = state.hit(call, path)
        if fatal is not None and fatal.moment == "before":
            os.kill(fatal.pid, signal.SIGKILL)
        if (fatal is not None and fatal.moment == "before") or act == "drop before":
            self.close_connection = True
            return
        try:
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in state.tokens:
                raise Refusal(401, "AuthenticationFailed")
            if act[:1].isdigit():
                raise Refusal(int(act.split()[0]), act.split()[1])
            status, document = 200, self._called(words, what)
        except Refusal as refusal:
            status, document = refusal.status, refusal.document
        except PermissionError:
            status, document = 403, {"code": "EndpointPermissionDenied", "message": "Denied by endpoint"}
        if fatal is not None:
            os.kill(fatal.pid, signal.SIGKILL)
        self._send(status, json.dumps(document).encode(), act)

    def _called(self, words: list[str], what: dict[str, Any]) -> dict[str, Any]:
        state = self.state
        match words:
            case ["operation", "endpoint", collection, operation]:
                wanted = f"https://auth.globus.org/scopes/{collection}/data_access"
                if collection in state.wanting and not any(wanted in consent for consent in state.consents):
                    raise Refusal(403, "ConsentRequired", required_scopes=[f"{SCOPE}[*{wanted}]"])
                return {"ls": _ls, "stat": _stat, "mkdir": _mkdir, "rename": _rename}[operation](state, what, collection)
            case ["submission_id"]:
                return {"value": str(uuid.uuid4())}
            case ["transfer" | "delete"]:
                return state.take(what)
            case ["task_list"]:
                return _task_list(state, what)
            case ["task", task_id]:
                return _task(state, what, task_id, "")
            case ["task", task_id, part]:
                return _task(state, what, task_id, part)
        raise Refusal(404, "NoSuchResource")

    def _send(self, status: int, document: bytes, act: str = "") -> None:
        if act == "drop after":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        self.wfile.write(document if act != "cut" else document[: len(document) // 2])
        self.close_connection = self.close_connection or act == "cut"
