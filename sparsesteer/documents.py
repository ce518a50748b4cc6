"""YAML and JSON files as plain data: no tags, no aliases, no names twice, the scalars of YAML 1.2."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from sparsesteer.files import write_whole
from sparsesteer.storage import parse_json

MOST_BYTES = 4 << 20  # a spec of a hundred thousand features is smaller
JSON_SUFFIX = ".json"
_SCALARS = {
    "bool": (r"true|false", "tf"),
    "null": (r"null|~|", ["n", "~", ""]),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
}


def read_document(path: str | os.PathLike) -> dict:
    """The mapping in a JSON file (by its suffix) or a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, unreadable, no mapping; YAML with tags, aliases or a name twice in a mapping.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {MOST_BYTES} of a description")
    data = path.read_bytes()
    if path.suffix == JSON_SUFFIX:
        return parse_json(data, str(path))
    try:
        document = yaml.load(data.decode(), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} should hold a mapping of names to values, got {type(document).__name__}")
    return document


def write_document(path: str | os.PathLike, document: dict) -> Path:
    """Write a mapping as JSON or YAML, by the suffix; returns the path."""
    if Path(path).suffix == JSON_SUFFIX:
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    else:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return write_whole(path, text.encode())


class _Loader(yaml.SafeLoader):
    """Refuses what makes plain data more than it looks."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not taken", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "tags (!name) are not taken", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        mapping: dict = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a name should be text or a whole number, got {key!r}", key_node.start_mark
                )
            if key in mapping:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would read as something else than text, and never writes aliases."""

    yaml_implicit_resolvers = {first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first))
# YAML 1.1 reads 010 as octal
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
