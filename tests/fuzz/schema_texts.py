"""Texts of schema.yaml that nobody means: each is served, or refused in one clear line.

They are the shipped files with changes in their structure, their text and their bytes, and bombs.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from policy_server.errors import SchemaError
from policy_server.observations import ObservationSpace
from policy_server.schema import ServerSchema, public_schema, read_schema_file
from tests.fuzz.watching import resident_bytes
from tests.support.folders import ROOT

__all__ = ["BOMBS", "read_texts", "refusal_of"]

# A file of some hundred lines takes a tenth of this.
_LONGEST_S = 3.0
_MOST_GROWTH = 256 << 20
_LONGEST_LINE = 900
SHIPPED = sorted([*ROOT.glob("examples/*/schema.yaml"), *ROOT.glob("tests/data/*/*/schema*.yaml")])
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 5.5, 1e308, -0.0, 10**30, 2**63, 1 << 20, float("nan")),
    *("", " ", "x", "None", "0", "float", "List[float]", "list[ int ]", "List[bool", "inf"),
    *(
        "a" * 5000,
        "\x1b[31m",
        "\u2028",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ),
    *([], {}, [[]], {"": ""}, [None], [1, 2, 3], {"a": 1}, [True, "b"], [{}], {1: 2}, {None: None}),
    *(
        {"type": "int"},
        {"mean": 0, "std": 0},
        {"model": "../x.zip"},
        {"low": 3, "high": 1},
        b"\xff",
    ),
]
_KEYS: list[Any] = [
    *("observations", "actions", "parameters", "policies", "default", "multi_agent", "module"),
    *("type", "min_items", "max_items", "minimum", "maximum", "example", "description", "shape"),
    *("one_hot", "normalize", "mean", "std", "clip", "epsilon", "labels", "choices", "low", "high"),
    *("dimensions", "normalized", "values", "discrete", "tuple", "api_key", "api_keys", "url_path"),
    *("normalization", "versions", "model", "traffic", "shadow", "num_replicas", "name", "hash"),
    *("scopes", "", "class", "obs", "__init__", "x" * 300, "a b", "é", 5, None, True, 1.5, "<<"),
]
_TOKENS = [
    *("\t", " ", "\n", "\r", "\r\n", "\x00", "\x07", "\x1b", "\x7f", "\x85", "\xa0", "\u2028"),
    *("\ufeff", "\ufffe", "\U0001f600", "---", "...", "- ", "? ", ": ", "::", ", ", "[", "]", "{"),
    *("}", "#", "&a ", "*a", "*undefined", "!x ", "!!int ", "!!python/object/apply:os.system [x]"),
    *("!!binary ", "!!timestamp 2020-13-45", "!!set ", "!!omap ", "!!pairs ", "!!float x", "!<!>"),
    *("!!python/name:os.system ", "%YAML 9.9\n", "%TAG ! x\n", "|\n", ">-\n", "'", '"', '"\\x"'),
    *(
        '"\\ud800"',
        '"\\0"',
        "@",
        "`",
        "%",
        "<<: ",
        "<<: *a",
        "~",
        "0x",
        "1e999",
        "9" * 5000,
        ".nan",
    ),
    *("-.inf", "2024-01-01", "14:30", "0b2", "1_0", "=", "yes", "null", "&a [*a]", "&a {a: *a}"),
]
_ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "cp037"]
_OBSERVED = "observations: {{x: {{type: float, {}}}}}\nparameters: {{api_key: k}}\n"


def _laughs(first: str, level: str, count: int) -> str:
    """Return anchors that hold the one before nine times over."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, count):
        before = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {level.format(before)}")
    return "\n".join(lines)


BOMBS: dict[str, str] = {
    "lists": _laughs("[x]", "[{}]", 40),
    "mappings": _laughs("{x: 1}", "{{a: [{}]}}", 40),
    "merges": _laughs("{x: 1}", "{{<<: [{}]}}", 12),
    "example": _laughs("[1]", "[{}]", 30)
    .replace("\n", "\n  ")
    .replace("a0:", "observations:\n  a0:", 1),
    "labels": "l: &l\n  "
    + _laughs("[1]", "[{}]", 30).replace("\n", "\n  ")
    + "\nactions: {m: {labels: [*a29]}}\nparameters: {api_key: k}\n",
    "keys": _laughs("[x]", "{{? [{}] : 1}}", 30),
    "nested lists": _OBSERVED.format("example: " + "[" * 300 + "]" * 300),
    "nested mappings": "".join("\n" + " " * n + "a:" for n in range(3000)),
    "open brackets": "[" * 300,
    "open braces": "{" * 300,
    "dashes": "- " * 100_000,
    "questions": "? " * 50_000,
    "itself": _OBSERVED.format("example: &a [*a]"),
    "itself as a mapping": "observations: &a {x: *a}\nparameters: {api_key: k}\n",
    "many keys": "observations:\n" + "".join(f"  x{n}: {{type: int}}\n" for n in range(60_000)),
    "long line": "observations: {x: {type: float, description: " + "x" * 5_000_000 + "}}",
    "long key": "observations: {" + "x" * 1_000_000 + ": {type: float}}",
    "long number": _OBSERVED.format("minimum: " + "9" * 900_000),
    "long fraction": _OBSERVED.format("minimum: 0." + "9" * 900_000),
    "almost a number": _OBSERVED.format("minimum: " + "1" * 900_000 + "x"),
    "almost a type": "observations: {x: {type: " + "1" * 900_000 + "x}}",
    "number of sixties by its tag": _OBSERVED.format("minimum: !!int '" + "1:" * 400_000 + "1'"),
    "fraction of sixties by its tag": _OBSERVED.format("minimum: !!float " + "1:" * 400_000 + "1"),
    "many braces": "observations: " + "{" * 100 + "\n" + "{x: " * 100_000,
    "many patterns": "multi_agent:\n"
    + "".join(f"  a{n:05}*: default\n" for n in range(8_000))
    + "policies: {default: {model: x.zip}}\nparameters: {api_key: k}\n",
    "long exponent": _OBSERVED.format("minimum: 1e" + "9" * 100_000),
    "sexagesimal": _OBSERVED.format("minimum: " + "1:" * 100_000 + "1"),
    "many items": _OBSERVED.format("example: [" + "1," * 500_000 + "1]"),
    "many anchors": "".join(f"a{n}: &a{n} x\n" for n in range(3_000)),
    "many documents": "---\n" * 100_000,
    "comments": "#" + "x" * 10_000_000,
    "blank lines": "\n" * 3_000_000,
    "wide": _OBSERVED.format("").replace(
        "float, ", "'List[float]', min_items: 99999999999, max_items: 99999999999"
    ),
    "one of many": _OBSERVED.format("").replace("float, ", "int, one_hot: 99999999999"),
    "image": _OBSERVED.format("").replace("float, ", "'List[float]', shape: [99999, 99999, 99999]"),
    "choices": "actions: {m: {choices: 99999999999}}\nparameters: {api_key: k}\n",
    "dimensions": "actions: {m: {dimensions: 99999999999}}\nparameters: {api_key: k}\n",
    "binary": _OBSERVED.format("example: !!binary " + "A" * 4_000_000),
}


def refusal_of(content: bytes, path: Path) -> str | None:
    """Return the line that refuses a schema.yaml; None where it is taken, and all of it works.

    Args:
        content: of the file.
        path: where it is written.
    """
    path.write_bytes(content)
    try:
        file = read_schema_file(path)
    except SchemaError as error:
        return error.message
    for section in file:
        _use(section.schema)
    return None


def _use(schema: ServerSchema) -> None:
    """Hold that what is taken can be told, and takes its own example."""
    json.dumps(public_schema(schema), allow_nan=False)
    if schema.observations is not None:
        space = ObservationSpace(schema.observations)
        space.parse_named(json.dumps(space.example).encode())


def is_clear(line: str) -> bool:
    """Return whether a refusal is one short line that any terminal shows."""
    return 10 < len(line) < _LONGEST_LINE and line.isprintable()


def _structure(text: str, choose: random.Random) -> str:
    """Return a file with other keys or values in its structure."""
    document = copy.deepcopy(yaml.safe_load(text))
    for _ in range(choose.choice([1, 1, 2, 4])):
        places = list(_places(document))
        if not places:
            break
        holder, key = choose.choice(places)
        match choose.randrange(4):
            case 0 if isinstance(holder, dict):
                holder[choose.choice(_KEYS)] = holder.pop(key)
            case 1 if isinstance(holder, dict):
                holder[choose.choice(_KEYS)] = copy.deepcopy(choose.choice(_VALUES))
            case 2:
                other, place = choose.choice(places)
                holder[key] = copy.deepcopy(other[place])
            case _:
                holder[key] = copy.deepcopy(choose.choice(_VALUES))
    return yaml.safe_dump(
        document,
        sort_keys=False,
        allow_unicode=choose.random() < 0.5,
        default_flow_style=choose.choice([None, True, False]),
        default_style=choose.choice([None, None, None, None, "'", '"', "|"]),
        width=choose.choice([20, 80, 10_000]),
    )


def _places(found: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 -- anything of YAML
    items: list[tuple[Any, Any]] = []
    keys = list(found) if isinstance(found, dict) else range(len(found))
    for key in keys:
        items.append((found, key))
        if isinstance(found[key], dict | list):
            items.extend(_places(found[key]))
    return items


def _text(text: str, choose: random.Random) -> str:
    """Return a file with changes that an editor makes, or nobody."""
    for _ in range(choose.choice([1, 1, 2, 5])):
        at, lines = choose.randrange(len(text) + 1), text.split("\n")
        line = choose.randrange(len(lines))
        match choose.randrange(6):
            case 0 | 1:
                text = text[:at] + choose.choice(_TOKENS) + text[at:]
            case 2:
                text = text[:at] + choose.choice(_TOKENS) + text[at + choose.choice([1, 3, 9]) :]
            case 3:
                lines.insert(choose.randrange(len(lines)), lines[line])
                text = "\n".join(lines)
            case 4:
                lines[line] = choose.choice(["", " ", "   ", "\t"]) + lines[line].lstrip()
                text = "\n".join(lines)
            case _:
                del lines[line]
                text = "\n".join(lines)
    return text


def _bytes(content: bytes, choose: random.Random) -> bytes:
    """Return a file in another encoding, cut, or with changed bytes."""
    match choose.randrange(6):
        case 0:
            return content.decode().encode(choose.choice(_ENCODINGS), "replace")
        case 1:
            return choose.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00"]) + content
        case 2:
            return content.replace(b"\n", choose.choice([b"\r\n", b"\r", b"\n\r", b"\x00\n"]))
        case 3:
            return content[: choose.randrange(len(content) + 1)]
        case _:
            changed = bytearray(content)
            for _ in range(choose.choice([1, 2, 8]) if changed else 0):
                changed[choose.randrange(len(changed))] = choose.randrange(256)
            return bytes(changed)


def content_of(choose: random.Random) -> bytes:
    """Return a schema.yaml with a few changes of one or two kinds."""
    text = choose.choice(SHIPPED).read_text(encoding="utf-8")
    kinds: list[Callable[[str, random.Random], str]] = [_structure, _structure, _text]
    content = choose.choice(kinds)(text, choose).encode("utf-8", "surrogatepass")
    return _bytes(content, choose) if choose.random() < 0.25 else content


def read_texts(cases: int, seed: int) -> Counter[str]:
    """Read the texts of many files.

    Returns:
        How many were taken and refused.
    """
    choose = random.Random(seed)  # noqa: S311 -- reproducible texts, no secret
    ends: Counter[str] = Counter()
    before = resident_bytes()
    with TemporaryDirectory(prefix="schemas-") as folder:
        path = Path(folder) / "schema.yaml"
        for number in range(cases):
            content = content_of(choose)
            began = time.process_time()
            line = refusal_of(content, path)
            took = time.process_time() - began
            where = (seed, number, content[:3000], line)
            assert took < _LONGEST_S, (took, where)
            assert line is None or is_clear(line), where
            ends["taken" if line is None else "refused"] += 1
    assert resident_bytes() - before < _MOST_GROWTH
    return ends
