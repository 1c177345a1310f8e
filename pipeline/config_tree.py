"""Text as the plain tree of a configuration: YAML files, presets and `key=value` arguments.

The type of a key decides how its text is read. A text key (`run`, `data.uri`) takes it as it is written: `01`, `yes` and
`my run #3` stay what they are. Any other value is YAML with the plain words of YAML 1.2: `1e-3` is a number, `off` is text.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Plain words as in YAML 1.2: `1e-3` is a number, `off` and `2024-10-01` are text, `010` is ten and `1:30` no number."""


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_WORDS = {f"tag:yaml.org,2002:{name}" for name in ("str", "bool", "float", "int")}
_OLD = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in _OLD] for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+(_[0-9]+)*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)

Tree = dict[str, Any]


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("pipeline.presets").iterdir() if p.name.endswith(".yaml")
    )


def read(source: str, root: type, above: tuple[str, ...] = ()) -> Tree:
    """Read a preset or YAML file, on top of the preset that it names; `root` is the dataclass whose keys it may have.

    `above` are the files that have led here. Raises ConfigError.
    """
    tree = parse(_text(source), root, source)
    base = tree.pop("preset", None)
    if not base:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{source}: preset: {base} is not a name: name one preset or file")
    if base in (way := (*above, source)):
        raise ConfigError(f"{source}: preset: {base} leads back to it ({' -> '.join((*way, base))}): name another preset")
    return merge(without_source(read(base, root, way), tree), tree)


def parse(text: bytes | str, root: type, source: str) -> Tree:
    """Read YAML text by the types of `root`; `source` names it in errors. Raises ConfigError, also for a key that is twice."""
    try:
        loader = _Loader(text)
        loader.name = source
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{source} must hold `key: value` lines")
        return _construct(loader, node, root, source)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None


def override(tree: Tree, arguments: Iterable[str], root: type) -> None:
    """Put `key=value` arguments on top of `tree`, in place; of two with one key the last counts. Raises ConfigError."""
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"argument {argument!r} must have the form key=value")
        if not _is_utf8(text):
            raise ConfigError(f"argument {argument!r} is not UTF-8: give files and folders names that are")
        *parents, last = key.split(".")
        section, hint = tree, root
        for parent in parents:
            section, hint = section.setdefault(parent, {}), _below(hint, parent)
            if not isinstance(section, dict):
                raise ConfigError(f"config key {key}: {parent} is a value and has no keys below it")
        hint = _below(hint, last)
        if not text and hint not in (str, None):  # an unset variable of a shell, say
            means = f"set {key}=null for none, or {key}=VALUE" if types.NoneType in _options(hint) else f"set {key}=VALUE"
            raise ConfigError(f"config key {key} is empty: {means}")
        value = _typed(text, hint, argument)
        in_part = section_in(hint) and isinstance(value, dict) and isinstance(section.get(last), dict)
        section[last] = merge(section[last], value) if in_part else value


def refuse_twice(arguments: Iterable[str]) -> None:
    """Raises ConfigError if a key of `key=value` arguments has two values."""
    given: dict[str, str] = {}
    for key, _, text in (argument.partition("=") for argument in arguments):
        if given.setdefault(key, text) != text:
            raise ConfigError(f"{key} is given twice, as {key}={given[key]} and as {key}={text}: leave one out")


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    """Return `base` with the values of `top` in place of its own, section by section."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def without_source(base: Tree, top: Mapping[str, Any]) -> Tree:
    """Return `base` without the data that `top` replaces: `data.mix` takes the place of `data.uri`, and the other way round."""
    data, given = base.get("data"), top.get("data")
    if not isinstance(data, dict) or not isinstance(given, Mapping) or bool(given.get("uri")) == bool(given.get("mix")):
        return base
    other = "uri" if given.get("mix") else "mix"
    return base | {"data": {key: value for key, value in data.items() if key != other}}


def section_in(hint: Any) -> Any:
    """Return the dataclass among the types of `hint`; None if it has none."""
    return next((option for option in _options(hint) if dataclasses.is_dataclass(option)), None)


def named_sections_in(hint: Any) -> Any:
    """Return the dataclass T of a `dict[str, T]`; None for other types."""
    return section_in(typing.get_args(hint)[1]) if typing.get_origin(hint) is dict else None


def _text(source: str) -> bytes:
    names, place = preset_names(), Path(source).expanduser()
    if source in names:
        return resources.files("pipeline.presets").joinpath(f"{source}.yaml").read_bytes()
    try:
        if place.is_file():
            return place.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the config file {source[:200]!r} cannot be read: {error}") from None
    near = difflib.get_close_matches(source, names, 1)
    near = [f"{source}/config.yaml"] if source and (place / "config.yaml").is_file() else near
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no config file or preset {source!r}: {hint}presets are {', '.join(names)}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _below(hint: Any, key: str) -> Any:
    """Return the type of `key` in a section of type `hint`; None if there is no such key."""
    if section := section_in(hint):
        return typing.get_type_hints(section).get(key)
    return _values_of(hint)


def _values_of(hint: Any) -> Any:
    """Return the type T of the values of a `dict[str, T]` or `Mapping[str, T]`; None for other types."""
    return typing.get_args(hint)[1] if typing.get_origin(hint) in (dict, Mapping) else None


def _is_text(hint: Any) -> bool:
    """Whether every value of this type but None is text."""
    words = [typing.get_args(option) if typing.get_origin(option) is Literal else (option,) for option in _options(hint)]
    return hint is not None and all(w is str or isinstance(w, str) or w is types.NoneType for group in words for w in group)


def _typed(text: str, hint: Any, argument: str) -> Any:
    """Read the value of one argument. `null` is None where a key may be without a value."""
    if _is_text(hint):
        return None if text == "null" and types.NoneType in _options(hint) else text
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        loader, word = _Loader(""), text.strip()  # what would be a comment in a file is none here
        tag = loader.resolve(yaml.ScalarNode, word, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, word))
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _construct(loader, node, hint, f"argument {argument}") if node else text
    except (yaml.YAMLError, ValueError):
        return text


def _construct(loader: _Loader, node: yaml.Node, hint: Any, source: str, place: str = "") -> Any:
    """Return a node's value, read by its type. Below a section no key may be there twice."""
    if isinstance(node, yaml.ScalarNode) and _is_text(hint) and node.tag in _WORDS:
        return node.value
    if isinstance(node, yaml.SequenceNode) and typing.get_origin(hint) is tuple:
        return [_construct(loader, part, typing.get_args(hint)[0], source, place) for part in node.value]
    if not isinstance(node, yaml.MappingNode) or not (section_in(hint) or _values_of(hint)):
        return loader.construct_object(node, deep=True)
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source}, line {line}: a key must be a word")
        if key.value in first:
            lines = f"line {first[key.value]} and line {line}"
            raise ConfigError(f"{source}: {place}{key.value} is given twice, in {lines}: leave one out")
        first[key.value] = line
    loader.flatten_mapping(node)  # `<<`: what is merged in comes first
    tree = {}
    for key, value in node.value:
        # A file may start from a preset; the configuration itself has no such key.
        below = str if not place and key.value == "preset" else _below(hint, key.value)
        tree[key.value] = _construct(loader, value, below, source, f"{place}{key.value}.")
    return tree
