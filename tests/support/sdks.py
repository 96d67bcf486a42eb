"""SDKs of one document, all generated once: a run of the generator takes 3 s of a processor."""

from __future__ import annotations

from policy_server.sdk import LANGUAGES, Document, LanguageName, prepare_document
from policy_server.sdk.generator import Files, generate
from tests.support.web import document_of

__all__ = ["ALIKE", "OF_ANOTHER", "SPECIAL", "URL", "generated", "names_document"]

URL = "http://localhost:1234/app/v1"
# Names that a language spells alike, and names that one reserves.
ALIKE = ("T", "t", "a_b", "aB", "a__b", "_a_b", "hasUp", "set_t", "_", "__", "_1")
SPECIAL = (
    *("true", "False", "None", "nil", "NULL", "if", "class", "from", "self", "type", "object"),
    *("default", "fun", "val", "in", "func", "this", "observation", "Actions", "probability"),
    *("copy", "to_dict", "toString", "ToJson", "hashCode", "toJSON", "MarshalJSON", "wait", "int"),
    *("property", "print", "field", "equals", "initialize", "team_", "com", "client", "__proto__"),
)
# Of another policy of the server.
OF_ANOTHER = ("t", "T", "wait", "ab", "aB", "copy", "probability", "hasup", "lift")
# Values of every kind; the other names have an integer each.
_VALUES = {
    "class": "{type: int, example: 3}",
    "_id": "{type: float, example: -1.5}",
    "hasUp": "{type: bool, example: true}",
    "in": '{type: "List[float]", min_items: 1, max_items: 2, example: [0.5, 2]}',
    "team_0": '{type: "List[bool]", min_items: 1, max_items: 1, example: [false]}',
    "self": '{type: "List[int]", min_items: 1, max_items: 1, example: [7]}',
    "grid": '{type: "List[int]", shape: [2, 1], example: [[3], [4]]}',
}
_generated: dict[LanguageName, Files] = {}


async def names_document() -> Document:
    """Return the document that `generated` takes: of values of every kind, and of all names."""
    kinds = dict.fromkeys((*ALIKE, *SPECIAL), "{type: int, example: 1}") | _VALUES
    fields = "".join(f'  "{field}": {kind}\n' for field, kind in kinds.items())
    schema = f"observations:\n{fields}parameters: {{api_key: key}}\n"
    document = prepare_document(await document_of(schema), url=URL)
    schemas = document["components"]["schemas"]
    properties = dict.fromkeys(OF_ANOTHER, schemas["Observation"]["properties"]["t"])
    lift = {**schemas["Observation"], "title": "LiftObservation", "properties": properties}
    schemas["LiftObservation"] = {**lift, "required": list(OF_ANOTHER), "examples": []}
    return document


async def generated(name: LanguageName) -> Files:
    """Return the files of the document's SDK, which tests only read."""
    if not _generated:
        _generated.update(await generate(await names_document(), list(LANGUAGES.values())))
    return _generated[name]
