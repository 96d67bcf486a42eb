"""The text of a schema.yaml: safe YAML without YAML's traps, and a mistake in it as one line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from policy_server.errors import SchemaError

__all__ = ["load_yaml"]

_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_MERGE_TAG = "tag:yaml.org,2002:merge"
_BARE_LIST = re.compile(r"\{.*:\s*[Ll]ist\[")
_QUOTED = re.compile(r" '[^'<]{2,}'.*")
# What PyYAML's constructors let through for values such as 2020-13-45.
_PYYAML_ERRORS = (ValueError, ArithmeticError, LookupError, AttributeError)


class _DuplicateKeyError(yaml.MarkedYAMLError):
    """A key stands twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error, and that 1e6 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 -- PyYAML's own signature
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE_TAG:
                if key_node.value in seen:
                    problem = f"the key '{key_node.value}' is given twice; remove one"
                    raise _DuplicateKeyError(problem=problem, problem_mark=key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def load_yaml(text: str, source: str) -> object:
    """Parse YAML.

    Args:
        text: the document.
        source: the file's name, for messages.

    Returns:
        Mappings, lists, texts, numbers, truth values, dates and None.

    Raises:
        SchemaError: if it is no YAML or gives a key twice; it shows no values.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = (text.splitlines() or [""])[mark.line : mark.line + 1] if mark else []
        where = f"{source} line {mark.line + 1}" if mark else source
        raise SchemaError(f"{where}: {_yaml_problem(error, ''.join(line))}") from error
    except yaml.reader.ReaderError as error:
        raise SchemaError(
            f"{source}: is no YAML: holds the control character {error.character!r}; remove it"
        ) from error
    except _PYYAML_ERRORS as error:
        raise SchemaError(
            f"{source}: is no YAML: holds a number or date that can't be read; put text in quotes"
        ) from error
    except RecursionError as error:
        raise SchemaError(f"{source}: is nested too deeply; expected three levels") from error


def _yaml_problem(error: yaml.MarkedYAMLError, line: str) -> str:
    """Say what PyYAML found, without the texts that it quotes: one may be the key."""
    if isinstance(error, _DuplicateKeyError):
        return str(error.problem)
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "a tab indents the line; YAML allows spaces only: replace it"
    if _BARE_LIST.search(line):
        return "List[...] inside {...} is no YAML; put it in quotes"
    problem = ": ".join(part for part in (error.context, error.problem) if part)
    safe = _QUOTED.sub("", " ".join(problem.split()))
    remedy = "; put text that starts with * or ! in quotes" if safe != problem else ""
    return f"is no YAML: {safe}{remedy}"
