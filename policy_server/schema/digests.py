"""The digest of what a policy's answers depend on in schema.yaml."""

from __future__ import annotations

import json
from hashlib import blake2b

from policy_server.schema.fields import ServerSchema, public_schema

__all__ = ["schema_digest"]

# Of an observation or action.
_WORDS = ("description", "example")


def schema_digest(schema: ServerSchema) -> str:
    """Return 32 letters that no schema has under which a policy would answer otherwise.

    The order of observations and actions counts, since rows and answers have it. Words for people
    do not, nor does the address.

    Args:
        schema: a whole schema.yaml.
    """
    document = public_schema(schema)
    del document["parameters"]["url_path"]
    for part in ("observations", "actions"):
        for item in document.get(part, {}).values():
            for word in _WORDS:
                item.pop(word, None)
    return blake2b(json.dumps(document).encode(), digest_size=16).hexdigest()
