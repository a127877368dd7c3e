"""Durable requests: what is written is what is read, whatever kills the writer, and a person's word stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta

import mirror_world
import pytest
from mirror_world import NOW, world

from dataflow.lib.errors import Exit
from dataflow.mirror import requests
from dataflow.mirror.gaps import Expected
from dataflow.mirror.requests import CANCELLED, DONE, GIVEN_UP, OPEN, Book

A, B, C = (f"20261001.{hour:02}00.01.sas.a.rawacf.bz2" for hour in (0, 2, 4))
ONE, TWO = "1" * 40, "2" * 40
LATER = NOW + timedelta(days=1)


@pytest.fixture
def loaded(tmp_path):
    return world(tmp_path)


@pytest.fixture
def here(loaded):
    return loaded.mirror()[1]


def book_of(here, **states) -> Book:
    """A book with requests A, B and C in the states that are given."""
    book = Book()
    wanted = {"a": A, "b": B, "c": C}
    requests.ask(book, {wanted[key]: Expected({ONE: ("bas",)}) for key in states}, NOW)
    for key, state in states.items():
        request = book.requests[wanted[key]]
        book.requests[request.name] = replace(request, state=state, tries={"bas": 5}, error="bas: no good")
    requests.save(here, book)
    return book


def states(here) -> dict[str, str]:
    return {name: request.state for name, request in requests.load(here).requests.items()}


def test_what_was_saved_is_loaded(here):
    book = Book()
    requests.ask(book, {A: Expected({ONE: ("bas", "nssc"), TWO: ("hub",)}, "c" * 64), B: Expected()}, NOW)
    book.requests[B] = replace(book.requests[B], tries={"bas": 2}, error="ö / bas")
    requests.save(here, book)
    assert requests.load(here) == book
    assert requests.load(here).open().keys() == {A, B}


def test_without_a_file_there_are_no_requests(here):
    assert requests.load(here) == Book()


def test_cut_off_while_it_is_written_the_requests_are_as_they_were(here, monkeypatch):
    book = book_of(here, a=OPEN, b=OPEN)
    before = requests.load(here)
    requests.ask(book, {C: Expected({ONE: ("bas",)})}, LATER)
    for call in ("write", "fsync"):

        def killed(*_, call=call):
            raise KeyboardInterrupt(call)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, call, killed)
            requests.save(here, book)
        assert requests.load(here) == before
    requests.save(here, book)
    assert requests.load(here) == book


def written(**fields: object) -> str:
    """A line that is a request, but for these fields."""
    return json.dumps({"name": A, "made": "2026-11-20T12:00:00.000000Z", "changed": "2026-11-20T12:00:00.000000Z", **fields})


ODD = [
    "not JSON",
    "[]",
    json.dumps({"name": A}),
    written(name="../../etc/passwd"),
    written(name="20261001.0000.01.sas.0.rawacf.h5"),
    written(made="yesterday"),
    written(state="lost"),
    written(tries=[1]),
    written(sha256=7),
    written(sha1s={"a": 1}),
    written(sha1s={"../../x": ["bas"]}),
    written(of="a later version"),
    "[" * 100_000,
    "caf\udce9",
]


def test_what_is_odd_is_so_for_one_reason_only(here):
    (here.state / "requests.jsonl").write_text(f"{written()}\n")
    assert requests.load(here).requests.keys() == {A}


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_a_line_that_is_no_request_is_never_used_and_never_lost(here, line):
    book_of(here, b=OPEN)
    file = here.state / "requests.jsonl"
    file.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n" + file.read_bytes())
    book = requests.load(here)
    assert book.requests.keys() == {B} and book.odd == [line]
    requests.save(here, book)
    assert requests.load(here) == book and line.encode("utf-8", "surrogateescape") in file.read_bytes().split(b"\n")


def test_asking_again_tells_an_open_request_what_is_known_by_now(here):
    book = book_of(here, a=OPEN)
    assert requests.ask(book, {A: Expected({ONE: ("bas",), TWO: ("nssc",)}, "c" * 64)}, LATER) == []
    request = book.requests[A]
    assert request.sha1s == {ONE: ("bas",), TWO: ("nssc",)} and request.sha256 == "c" * 64
    assert request.made.startswith("2026-11-20") and request.tries == {"bas": 5}, "its age and its tries count on"


def test_what_came_and_is_missing_again_is_asked_for_anew(here):
    book = book_of(here, a=DONE)
    assert requests.ask(book, {A: Expected({ONE: ("bas",)})}, LATER) == [A]
    assert book.requests[A].made.startswith("2026-11-21") and book.requests[A].tries == {}


@pytest.mark.parametrize("state", [GIVEN_UP, CANCELLED])
def test_what_was_given_up_or_cancelled_stays_so(here, state):
    book = book_of(here, a=state)
    assert requests.ask(book, {A: Expected({ONE: ("bas",)})}, LATER) == []
    assert book.requests[A].state == state


def run(loaded, verb, *names):
    return mirror_world.run(loaded, "backfill", lambda job: verb(job, names), clock=lambda: LATER)


def test_cancel_ends_what_is_open_or_given_up(loaded, here):
    book_of(here, a=OPEN, b=GIVEN_UP, c=DONE)
    code, job = run(loaded, requests.cancel, A, B, C, A)
    assert states(here) == {A: CANCELLED, B: CANCELLED, C: DONE}
    assert code == Exit.ACCOUNTED and job.counts == {"done": 2, "skipped": 1}


def test_retry_opens_with_all_tries_and_a_new_age(loaded, here):
    book_of(here, a=CANCELLED, b=GIVEN_UP, c=OPEN)
    run(loaded, requests.retry, A, B, C)
    found = requests.load(here).requests
    assert [found[name].state for name in (A, B, C)] == [OPEN, OPEN, OPEN]
    assert [found[name].tries for name in (A, B, C)] == [{}, {}, {"bas": 5}]
    assert [found[name].made[:10] for name in (A, B, C)] == ["2026-11-21", "2026-11-21", "2026-11-20"]


def test_retry_without_names_is_for_all_that_were_given_up(loaded, here):
    book_of(here, a=CANCELLED, b=GIVEN_UP)
    run(loaded, requests.retry)
    assert states(here) == {A: CANCELLED, B: OPEN}


def test_cancel_without_names_is_refused(loaded, here):
    book_of(here, a=OPEN)
    code, job = run(loaded, requests.cancel)
    assert code == Exit.CONFIG and "which?" in job.problems[0]
    assert states(here) == {A: OPEN}


@pytest.mark.parametrize("verb", [requests.cancel, requests.retry])
def test_an_unknown_name_is_refused_and_nothing_is_changed(loaded, here, verb):
    book_of(here, a=OPEN, b=GIVEN_UP)
    code, job = run(loaded, verb, A, B, "../../\x1b[2Jetc")
    assert code == Exit.CONFIG and states(here) == {A: OPEN, B: GIVEN_UP}
    assert job.problems[0].isprintable()


def test_a_line_tells_a_person_what_is_known(here):
    book = book_of(here, a=OPEN, b=OPEN)
    book.requests[B] = replace(book.requests[B], sha1s={ONE: ("bas",), TWO: ("nssc", "hub")}, tries={}, error=None)
    requests.ask(book, {C: Expected({}, "c" * 64)}, NOW)
    lines = [requests.line(request) for request in book.requests.values()]
    assert lines[0] == f"open       {A}  2026-11-20  1111111111 (bas); bas 5x: bas: no good"
    assert lines[1] == f"open       {B}  2026-11-20  1111111111 (bas) or 2222222222 (nssc, hub); no try failed"
    assert lines[2] == f"open       {C}  2026-11-20  no mirror lists it; no try failed"
