"""A partner's mirror as a source: what his list of a month names is what he has."""

from __future__ import annotations

from collections.abc import Collection

from dataflow.lib.names import Name
from dataflow.mirror import hash_lists, layout
from dataflow.mirror.mirror_lists import MirrorLists
from dataflow.mirror.sources import Answer, Offer
from dataflow.mirror.stores import Absent, raise_if_down


def offers(lists: MirrorLists, tree: str, wanted: Collection[Name]) -> Answer:
    """Which of some files a partner lists, with the hash that he lists.

    Raises:
        HostDown: he cannot be reached.
    """
    answer = Answer()
    by_month: dict[str, list[Name]] = {}
    for name in wanted:
        by_month.setdefault(layout.month_of(name), []).append(name)
    contents = lists.months_bytes(by_month)
    raise_if_down(contents.values())
    for month, content in contents.items():
        if isinstance(content, bytes):
            hashes = hash_lists.parse_month(content, month).hashes
            for name in (name for name in by_month[month] if name.text in hashes):
                answer.offers[name.text] = Offer(layout.data_path(tree, name), hashes[name.text])
        elif not isinstance(content, Absent):
            answer.unknown |= {name.text: str(content) for name in by_month[month]}
    return answer
