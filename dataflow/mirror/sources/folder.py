"""A source without lists: what lies in its folders, ours of a month (``raw/YYYY/MM``) or all in one, is what it has.

So our own mirror is one too: it may hold files that it does not list.
"""

from __future__ import annotations

from collections.abc import Collection

from dataflow.lib.errors import TryLater
from dataflow.lib.names import Name
from dataflow.mirror import layout
from dataflow.mirror.sources import Answer, Offer
from dataflow.mirror.stores import Absent, Store


def offers(store: Store, tree: str, wanted: Collection[Name]) -> Answer:
    """Which of some files lie in their month's folder below ``tree``, or in ``tree`` itself."""
    answer = Answer()
    by_folder: dict[str, set[str]] = {}
    for name in wanted:
        for folder in (layout.data_folder(tree, layout.month_of(name)), tree):
            by_folder.setdefault(folder, set()).add(name.text)
    for folder, asked in by_folder.items():
        try:
            lying = {name for name, size in store.names(folder).items() if size is not None}
        except Absent:
            continue
        except TryLater as error:
            answer.unknown |= dict.fromkeys(asked, str(error))
            continue
        for text in sorted(asked & lying):
            answer.offers.setdefault(text, Offer(f"{folder}/{text}" if folder else text))
    return answer
