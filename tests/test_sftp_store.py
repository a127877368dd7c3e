"""What is particular to a store behind SFTP: one connection, its sessions, host keys, dead lines, killed in between."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import sftp_server
from sftp_server import Server
from stores_under_test import opened

from dataflow.lib.errors import BadConfig, HostDown, TryLater
from dataflow.mirror.stores import Absent, sftp, sftp_session
from dataflow.mirror.stores.sftp import SftpStore

BIG = os.urandom(3_000_017)
SMALL = {f"{number:03}": os.urandom(number * 101) for number in range(150)}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with sftp_server.reachable_folder() as folder, sftp_server.running(folder / "root") as server:
        yield server


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.root.mkdir()
    yield running
    shutil.rmtree(running.root)


def put(server: Server, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (server.root / path).write_bytes(content)


def there(server: Server) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in server.root.iterdir()}


def wanted(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    return {path: folder / path for path in contents}


# -- one connection, several sessions


@pytest.mark.parametrize(("allowed", "channels", "sessions"), [(10, 4, 4), (10, 1, 1), (2, 4, 2), (1, 4, 1)])
def test_one_connection_with_as_many_sessions_as_are_wanted_and_allowed(tmp_path, allowed, channels, sessions):
    root = tmp_path / "root"
    root.mkdir()
    with sftp_server.running(root, MaxSessions=allowed) as server, opened(server.settings(channels=channels)) as store:
        put(server, {"big": BIG, **SMALL})
        files = wanted(tmp_path / "local", there(server))
        assert store.fetch(files) == {} and all(files[path].read_bytes() == content for path, content in there(server).items())
        assert store.store({f"{path}.back": local for path, local in files.items()}) == {}
        assert store.names("") == {name: len(content) for name, content in there(server).items()}
        digests = store.sha1(list(there(server)))
        assert digests == {name: hashlib.sha1(content).hexdigest() for name, content in there(server).items()}
        assert server.connections() == 1 and server.sessions("subsystem 'sftp'") == sessions


def test_hashes_are_taken_there_where_a_program_may_be_started_and_read_back_elsewhere(server):
    put(server, SMALL)
    expected = {path: hashlib.sha1(content).hexdigest() for path, content in SMALL.items()}
    with sftp_server.line(server) as way, opened(way.server.settings()) as store:
        assert store.sha1(list(SMALL)) == expected
        assert way.passed["back"] < sum(map(len, SMALL.values())) / 4, "only hashes came"
    with sftp_server.running(server.root, MaxSessions=1) as alone, opened(alone.settings()) as store:
        assert store.sha1(list(SMALL)) == expected
        assert store.sha1(["000"]) == {"000": expected["000"]}


@pytest.mark.parametrize(
    "xargs",
    [
        "printf 'Welcome to this machine\\n'; exec /usr/bin/xargs \"$@\"",
        "exit 127",
        "printf '%s  %s\\0' 0123 {root}/001 0123456789012345678901234567890123456789 /etc/passwd; head -c 3000000 /dev/zero",
        '/usr/bin/xargs "$@" | head -c 1000',
        "exec head -c 1000000000000 /dev/zero",
    ],
)
def test_what_is_no_hash_of_a_file_that_was_asked_for_is_none(tmp_path, xargs):
    """What a login script prints, no `sha1sum`, another program's answer, half an answer: the file is read instead."""
    root, programs = tmp_path / "root", tmp_path / "programs"
    root.mkdir()
    programs.mkdir()
    (programs / "env").symlink_to("/usr/bin/env")
    (programs / "head").symlink_to("/usr/bin/head")
    (programs / "xargs").write_text("#!/bin/sh\n" + xargs.replace("{root}", str(root)) + "\n")
    (programs / "xargs").chmod(0o755)
    with sftp_server.running(root, SetEnv=f"PATH={programs}") as server, opened(server.settings()) as store:
        put(server, SMALL)
        assert store.sha1([*SMALL, "none"]) | {"none": None} == {
            "none": None, **{path: hashlib.sha1(content).hexdigest() for path, content in SMALL.items()},
        }  # fmt: skip
        assert server.sessions("command") == 1


def test_what_reads_back_as_something_else_than_was_sent_is_no_success(tmp_path):
    """A disk there that damages what it is given: `sha1sum` there says so, and nothing gets the final name."""
    root, programs, local = tmp_path / "root", tmp_path / "programs", tmp_path / "local"
    root.mkdir()
    programs.mkdir()
    local.write_bytes(b"new")
    (programs / "env").symlink_to("/usr/bin/env")
    (programs / "xargs").write_text(f"#!/bin/sh\nprintf '%040d  %s\\0' 7 {root}/.list.part\n")
    (programs / "xargs").chmod(0o755)
    with sftp_server.running(root, SetEnv=f"PATH={programs}") as server, opened(server.settings()) as store:
        put(server, {"list": b"old"})
        failures = store.store({"list": local, "other": local})
        assert set(failures) == {"list"} and "reads back" in str(failures["list"])
        assert there(server) == {"list": b"old", "other": b"new"}


def test_keys_are_changed_in_the_middle_of_files(tmp_path):
    """A long session changes its keys now and then, and here after every MB, while many requests are on their way."""
    root = tmp_path / "root"
    root.mkdir()
    with sftp_server.running(root, RekeyLimit="1M") as server, opened(server.settings()) as store:
        put(server, {"big": BIG, **SMALL})
        files = wanted(tmp_path / "local", there(server))
        assert store.fetch(files) == {} and files["big"].read_bytes() == BIG
        assert store.store({"back": files["big"], "small": files["100"]}) == {}
        assert there(server)["back"] == BIG


def test_a_file_that_ends_before_its_size_is_no_success(server, tmp_path):
    """As one that is cut shorter while it is fetched; a file of the kernel says that it has 4096 bytes, whatever it has."""
    with opened(server.settings(root="/sys")) as store:
        failures = store.fetch({"kernel/mm/transparent_hugepage/enabled": tmp_path / "part"})
    assert "shorter" in str(failures["kernel/mm/transparent_hugepage/enabled"])


def test_close_ends_its_connection_and_its_threads(server):
    before = set(threading.enumerate())
    with opened(server.settings()) as store:
        made = set(threading.enumerate()) - before
    for thread in made:
        thread.join(10)
    assert made and not any(thread.is_alive() for thread in made)
    store.close()
    with pytest.raises(HostDown):
        store.names("")


# -- who it talks to


def test_a_host_whose_key_is_not_known_is_not_talked_to_and_how_to_add_it_is_said(server):
    (server.secrets / "empty").write_text("")
    for known, reason in (("empty", "is not in"), ("none", "cannot be read")):
        with pytest.raises(BadConfig) as told:
            SftpStore(server.settings(known_hosts=str(server.secrets / known)))
        assert reason in str(told.value)
        assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> {server.secrets / known}" in str(told.value)
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", server.secrets / "host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    with pytest.raises(BadConfig, match=fingerprint.replace("+", r"\+")):
        SftpStore(server.settings(known_hosts=str(server.secrets / "empty")))
    assert (server.secrets / "empty").read_text() == "", "nobody was asked and nothing was added"


def test_a_host_with_another_key_than_the_known_one_is_not_talked_to(server):
    other = f"[127.0.0.1]:{server.port} {(server.secrets / 'key.pub').read_text()}"
    (server.secrets / "other").write_text(other)
    before = server.connections()
    with pytest.raises(BadConfig) as told:
        SftpStore(server.settings(known_hosts=str(server.secrets / "other")))
    assert "another machine" in str(told.value) and f"-R '[127.0.0.1]:{server.port}'" in str(told.value)
    assert server.connections() == before and (server.secrets / "other").read_text() == other


def test_only_the_key_file_is_used_and_what_is_wrong_with_it_is_said(server, tmp_path, monkeypatch, request):
    made = {"none": None, "locked": "secret words", "stranger": ""}
    for name, words in made.items():
        if words is not None:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", words, "-f", tmp_path / name], check=True)
    (tmp_path / "garbage").write_text("no key\n")
    (tmp_path / ".ssh").mkdir()
    shutil.copy(server.secrets / "key", tmp_path / ".ssh/id_ed25519")
    monkeypatch.setenv("HOME", str(tmp_path))
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    request.addfinalizer(agent.kill)
    while subprocess.run(["ssh-add", "-q", server.secrets / "key"], stderr=subprocess.DEVNULL).returncode:
        assert agent.poll() is None
    reasons = {"none": "cannot be read", "locked": "pass phrase", "garbage": "cannot be used", "stranger": "authorized_keys"}
    for name, reason in reasons.items():
        with pytest.raises(BadConfig, match=reason) as told:
            SftpStore(server.settings(key_file=str(tmp_path / name)))
        assert str(tmp_path / name) in str(told.value)
    with pytest.raises(BadConfig, match="key_file"):
        SftpStore(server.settings(key_file=None))


def test_nothing_of_it_is_printed(server, capfd):
    with pytest.raises(HostDown), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen()
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"220 no SSH here\r\n" * 200), daemon=True).start()
        SftpStore(server.settings(port=listener.getsockname()[1], connect_timeout_s=0.5))
    with sftp_server.line(server, back=20_000) as way, opened(way.server.settings()) as store:
        put(server, {"big": BIG})
        store.fetch({"big": server.root / "copy"})
    assert capfd.readouterr() == ("", "")


# -- lines that are dead or cut


def test_m27_nothing_that_listens_and_something_that_never_answers_is_a_host_that_is_down(server):
    """M27: there was no time limit on connecting, so one dead session stopped a partner for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(HostDown, match="cannot be reached"):
            SftpStore(server.settings(port=port, connect_timeout_s=0.2))
    with pytest.raises(HostDown, match="cannot be reached"):
        SftpStore(server.settings(port=port))
    with pytest.raises(HostDown, match="cannot be reached"):
        SftpStore(server.settings(address="no-such-host.invalid"))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9])
def test_m27_a_host_that_falls_silent_while_it_lets_us_in_is_down(server, share):
    """M27: nor on what comes after connecting: the banner, the keys, the login, the first session."""
    with sftp_server.line(server) as way:
        SftpStore(way.server.settings()).close()
    with sftp_server.line(server, back=share * way.passed["back"], goes_silent=True) as way, pytest.raises(HostDown):
        SftpStore(way.server.settings(connect_timeout_s=0.3, keep_alive_s=0.1))


@pytest.mark.parametrize("goes_silent", [True, False])
def test_m27_a_line_that_dies_under_a_file_ends_the_batch_and_the_part_is_gone_on_with(server, tmp_path, goes_silent):
    """M27: there was no keep-alive, so a dead session was waited on for ever."""
    put(server, {"big": BIG, **SMALL})
    files = wanted(tmp_path / "local", there(server))
    with (
        sftp_server.line(server, back=2_500_000, goes_silent=goes_silent) as way,
        opened(way.server.settings(keep_alive_s=0.1)) as store,
    ):
        failures = store.fetch({"big": files["big"]})
        assert set(failures) == {"big"} and isinstance(failures["big"], HostDown)
        failures = store.fetch(files)
        assert set(failures) == set(files) and all(isinstance(failure, HostDown) for failure in failures.values())
        with pytest.raises(HostDown):
            store.names("")
        with pytest.raises(HostDown):
            store.size("none")
        assert len(way.open) == 2, "a store makes one connection and no other"
    have = files["big"].stat().st_size
    assert 1_000_000 < have < len(BIG) and files["big"].read_bytes() == BIG[:have]
    with sftp_server.line(server) as way, opened(way.server.settings()) as store:
        assert store.fetch({"big": files["big"]}) == {} and files["big"].read_bytes() == BIG
        assert way.passed["back"] < len(BIG) - have + 100_000


def test_m27_a_batch_has_a_time_limit_in_all(server, tmp_path):
    """M27: there was no limit for all of it, so callers queued behind one that went on for ever."""
    put(server, SMALL)
    with opened(server.settings(time_limit_s=0)) as store:
        failures = store.fetch(wanted(tmp_path / "local", SMALL))
    assert set(failures) == set(SMALL) and all(isinstance(failure, HostDown) for failure in failures.values())
    assert "time limit" in str(failures["001"])
    with (
        sftp_server.line(server, back=30_000, goes_silent=True) as way,
        opened(way.server.settings(time_limit_s=0.5, keep_alive_s=1000)) as store,
    ):
        assert store.fetch(wanted(tmp_path / "local", SMALL))


@pytest.mark.parametrize("slow", ["send", "recv"])
def test_m27_a_host_that_gives_or_takes_a_byte_now_and_then_has_the_same_time_limit(monkeypatch, slow):
    """A byte in 59 s is no silence: for one message of 1 MB that would be two years."""
    now, is_slow, told = [0.0], [""], []
    answers = bytearray(struct.pack(">IBI", 5, sftp_session.VERSION, 3))
    monkeypatch.setattr(sftp_session.time, "monotonic", lambda: now[0])

    class Dripping:
        def settimeout(self, seconds):
            assert seconds <= 60

        def send(self, content):
            return self.drip("send", len(content))

        def recv(self, most):
            count = self.drip("recv", most)
            piece = bytes(answers[:count])
            del answers[:count]
            return piece

        def drip(self, call, count):
            now[0] += 59 * (is_slow[0] == call)
            return 1 if is_slow[0] == call else count

        def close(self):
            pass

    def steps():
        try:
            yield [sftp_session.read(b"handle", 0, 1 << 15)]
        except HostDown as error:
            told.append(error)

    session = sftp_session.Session(Dripping(), 60)
    is_slow[0] = slow
    answers += struct.pack(">IBI", 1 << 20, sftp_session.DATA, 1) + bytes(1 << 20)
    error = session.run(deque([steps()]), deadline_s=1000)
    assert "time limit" in str(error) and told == [error] and 1000 <= now[0] < 1100


def test_a_login_that_prints_a_greeting_where_sftp_should_be_is_told_as_that(tmp_path):
    greeting = "sftp /bin/echo Welcome to the machine of the institute"
    with sftp_server.running(tmp_path, Subsystem=greeting) as server, pytest.raises(HostDown, match="login script"):
        SftpStore(server.settings())


def test_a_root_that_is_not_there_is_a_disk_that_is_not_mounted_and_not_an_empty_mirror(server):
    with opened(server.settings(root=str(server.root / "mnt/mirror"))) as store:
        for question in (lambda: store.names(""), lambda: store.size("raw/x"), lambda: store.names("raw")):
            with pytest.raises(TryLater, match="mounted") as told:
                question()
            assert not isinstance(told.value, Absent)


def test_a_folder_that_has_no_end_is_not_used_and_the_connection_goes_on(server, monkeypatch):
    """Names would be collected for the whole time limit, until the memory is used up."""
    put(server, {f"{number:04}": b"" for number in range(1000)})
    with opened(server.settings()) as store:
        monkeypatch.setattr(sftp, "MOST_ENTRIES", 500)
        with pytest.raises(TryLater, match="more than 500 entries"):
            store.names("")
        monkeypatch.setattr(sftp, "MOST_ENTRIES", 2000)
        assert len(store.names("")) == 1000


def test_the_root_may_be_that_of_the_machine_or_the_home_of_the_login(server):
    put(server, {"file": b"12345"})
    with opened(server.settings(root="/")) as store:
        assert store.size(str(server.root / "file").lstrip("/")) == 5
        assert store.names("").keys() >= {"etc", "tmp"}
    with opened(server.settings(root="")) as store:
        assert store.names("").keys() == {path.name for path in Path.home().iterdir()}


# -- killed in between


def test_a_transfer_to_the_store_that_ends_anywhere_leaves_no_part_under_a_final_name(server, tmp_path):
    """The line is cut after every 2500th byte that goes there, as when the process is killed; then it is done again."""
    old, new = {"list": b"old" * 4000, "other": b"old"}, {"list": b"new" * 3000, "other": b"new", "third": b"third" * 999}
    files = wanted(tmp_path / "local", new)
    for path, content in new.items():
        files[path].write_bytes(content)
    seen, limit = set(), 2000
    while limit:
        put(server, old)
        with sftp_server.line(server, there=limit) as way:
            limit += 2500
            try:
                with opened(way.server.settings(channels=2)) as store:
                    failures = store.store(files)
            except HostDown:
                continue
        found = {name: content for name, content in there(server).items() if not name.startswith(".")}
        for name, content in found.items():
            assert content in (old.get(name), new[name]), f"{name} is neither the old nor the new file"
            assert name in failures or content == new[name], f"{name} was told to be there"
        seen.add(tuple(sorted(name for name in found if found[name] == new[name])))
        if not failures:
            break
        with opened(server.settings()) as store:
            assert store.store(files) == {}
        assert there(server) == new, "and nothing hidden stays"
        (server.root / "third").unlink()
    assert {(), ("list", "other", "third")} <= seen


def test_a_transfer_from_the_store_that_ends_anywhere_is_gone_on_with(server, tmp_path):
    put(server, {"one": BIG[:40_000], "two": BIG[:70_000], **{path: SMALL[path] for path in ("010", "100")}})
    for limit in range(4000, 190_000, 20_000):
        files = wanted(tmp_path / str(limit), there(server))
        with sftp_server.line(server, back=limit) as way:
            try:
                with opened(way.server.settings(channels=2)) as store:
                    failures = store.fetch(files)
            except HostDown:
                failures = dict.fromkeys(files, HostDown())
        for path, content in there(server).items():
            have = files[path].read_bytes() if files[path].exists() else b""
            assert content.startswith(have) and (path in failures or have == content)
        if not failures:
            break
        with opened(server.settings()) as store:
            assert store.fetch(files) == {}
        assert {path: local.read_bytes() for path, local in files.items()} == there(server)
    assert not failures and limit > 50_000
