"""schema.yaml: what is served, in the words of the people who trained it.

The file is parsed by pydantic with unknown keys forbidden, and becomes frozen dataclasses that the
rest of the program trusts. Every mistake is one line: the file, the key, what was expected, what
was found, and what to do. `yaml_text`, `document` and `reading` hold the three steps.
"""

from __future__ import annotations

from policy_server.schema.fields import (
    FLOAT32_MAX,
    ActionField,
    Kind,
    ObservationField,
    ServerSchema,
    public_schema,
)
from policy_server.schema.reading import parse_schema, read_schema

__all__ = [
    "FLOAT32_MAX",
    "ActionField",
    "Kind",
    "ObservationField",
    "ServerSchema",
    "parse_schema",
    "public_schema",
    "read_schema",
]
