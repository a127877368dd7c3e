"""Binds a YAML document to frozen dataclasses, strictly, and says where it is wrong.

Every finding names the file and line; an unknown key is answered with the key that was probably meant. The dataclasses
are the schema: a field's type is what the key must be, a field with a default may be left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from dataflow.lib.errors import BadConfig

T = TypeVar("T")
Key = tuple[str | int, ...]
"""The way to a value: keys of mappings, numbers of list entries."""
NESTED_MAX = 2000
"""A document that is nested a hundred thousand deep makes libyaml crash."""
_ORIGIN_OF_OVERRIDES = "--set "
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def parse(text: str, source: str) -> yaml.Node:
    """The node tree of a YAML text; every node remembers its source and line.

    Raises:
        BadConfig: it is not YAML, or is empty.
    """
    if any(text.count(opening) > NESTED_MAX for opening in ("[", "{", "- ", "? ")):
        raise BadConfig(f"{source}: more than {NESTED_MAX} lists or mappings: is it a configuration of dataflow?")
    try:
        node = yaml.compose(_Named(text, source), Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadConfig(f"{source}: not YAML: {error}") from error
    if node is None:
        raise BadConfig(f"{source}: it is empty")
    return node


class _Named(io.StringIO):
    """A text whose nodes are marked with the name of its source."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def where(node: yaml.Node, key: Key) -> str:
    """``file:line`` of a key of a node tree, or of its nearest parent that is there; ``--set KEY`` where that set it."""
    at = node
    for word in key:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == word), None)
        else:
            pair = (node.value[word], node.value[word]) if isinstance(node, yaml.SequenceNode) else None
        if pair is None:
            break
        at, node = pair
    return _place(at)


def dotted(key: Key) -> str:
    """A key as a person writes it: ``hosts.campus.steps[1]``."""
    return "".join(f"[{word}]" if isinstance(word, int) else f".{word}" for word in key).removeprefix(".")


def likely(word: str, choices: Iterable[str]) -> str:
    """The question that names the choice that was probably meant; empty where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def _place(node: yaml.Node) -> str:
    mark = node.start_mark
    return str(mark.name) if mark.name.startswith(_ORIGIN_OF_OVERRIDES) else f"{mark.name}:{mark.line + 1}"


def override(node: yaml.Node, key: str, value: str) -> None:
    """Set one dotted key of a node tree to a YAML value, in place.

    Raises:
        BadConfig: the value is not YAML, or the key leads through something that is not a mapping.
    """
    origin = f"{_ORIGIN_OF_OVERRIDES}{key}"
    words = key.split(".")
    for word in words[:-1]:
        node = _child(node, word, origin)
    if not isinstance(node, yaml.MappingNode):
        raise BadConfig(f"{origin}: {words[-1]!r} lies in something that has no keys")
    new = parse(value, origin)
    node.value = [(k, v) for k, v in node.value if k.value != words[-1]]
    node.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", words[-1], new.start_mark, new.end_mark), new))


def _child(node: yaml.Node, word: str, origin: str) -> yaml.Node:
    if isinstance(node, yaml.MappingNode):
        for index, (key, value) in enumerate(node.value):
            if key.value == word:
                if isinstance(value, yaml.MappingNode):  # an alias must not change its other users
                    value = yaml.MappingNode(value.tag, list(value.value), value.start_mark, value.end_mark)
                    node.value[index] = (key, value)
                return typing.cast(yaml.Node, value)
    choices = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    raise BadConfig(f"{origin}: there is no {word!r} in the configuration{likely(word, choices)}")


def bind(node: yaml.Node, target: type[T]) -> T:
    """The node tree as an instance of the dataclass ``target``.

    Raises:
        BadConfig: with every finding, one a line, each with file and line.
    """
    findings: list[str] = []

    def complain(at: yaml.Node, message: str) -> None:
        findings.append(f"{_place(at)}: {message}")

    value = _bind(node, target, "", complain)
    if findings:
        raise BadConfig("\n".join(findings))
    return typing.cast(T, value)


_Complain = Callable[[yaml.Node, str], None]


def _bind(node: yaml.Node, kind: Any, path: str, complain: _Complain) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _bind_dataclass(node, kind, path, complain)
    if origin in (Union, types.UnionType):
        return _bind_optional(node, kind, path, complain)
    if origin in (dict, Mapping):
        items = _pairs(node, path, complain)
        return {key: _bind(value, get_args(kind)[1], f"{path}.{key}", complain) for key, (_, value) in items.items()}
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode):
            complain(node, f"{path} must be a list")
            return ()
        return tuple(_bind(value, get_args(kind)[0], f"{path}[{n}]", complain) for n, value in enumerate(node.value))
    if origin is Literal:
        return _bind_choice(node, get_args(kind), path, complain)
    return _bind_scalar(node, kind, path, complain)


def _bind_dataclass(node: yaml.Node, kind: type, path: str, complain: _Complain) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for key, (key_node, value) in _pairs(node, path, complain).items():
        if key not in fields:
            complain(key_node, f"unknown key {_join(path, key)!r}{likely(key, fields)}")
            continue
        values[key] = _bind(value, hints[key], _join(path, key), complain)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            complain(node, f"{_join(path, name)} is missing")
            return None
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields: evaluated from their texts, which takes longer than all the rest, once a process."""
    return typing.get_type_hints(kind)


def _bind_optional(node: yaml.Node, kind: Any, path: str, complain: _Complain) -> Any:
    if node.tag == "tag:yaml.org,2002:null":
        return None
    (inner,) = (option for option in get_args(kind) if option is not type(None))
    return _bind(node, inner, path, complain)


def _bind_choice(node: yaml.Node, choices: tuple[Any, ...], path: str, complain: _Complain) -> Any:
    if node.value not in choices:
        complain(node, f"{path} is {node.value!r}; it must be one of {', '.join(choices)}")
    return node.value


def _bind_scalar(node: yaml.Node, kind: type, path: str, complain: _Complain) -> Any:
    value = _scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        complain(node, f"{path} must be {_SCALARS[kind]}, not {_shown(node)}")
    elif isinstance(value, str) and not value.isprintable():
        complain(node, f"{path} has characters that cannot be printed: {_shown(node)}")
    return value


def _scalar(node: yaml.ScalarNode) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError):  # a tag that the text is not of
        return None


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"


def _pairs(node: yaml.Node, path: str, complain: _Complain) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        complain(node, f"{path or 'the file'} must be a mapping of keys to values")
        return {}
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            complain(key, f"a key of {path or 'the file'} is a list or mapping; it must be a word")
            continue
        if key.value in pairs:
            complain(key, f"{_join(path, key.value)} is given twice")
        pairs[str(key.value)] = (key, value)
    return pairs


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
