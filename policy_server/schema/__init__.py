"""schema.yaml: the observations and actions of a policy, by the names that its trainers use.

The file is parsed by pydantic with unknown keys forbidden, and becomes frozen dataclasses that the
rest of the program trusts. Every mistake is one line: the file, the key, the value expected, the
value found, and the remedy. `yaml_text`, `yaml_document`, `sections` and `schema_file` hold the
steps.
`scalars` reads a value without quotes as its key means it, `yaml_slips` words mistakes in YAML,
`shipped` knows the examples' files, `number_range` says which numbers a policy's type of
observation holds, and `field_parts` which of them each field gives.
"""

from __future__ import annotations

from policy_server.schema.agent_policies import LONGEST_AGENT_ID, AgentPolicies
from policy_server.schema.digests import schema_digest
from policy_server.schema.field_parts import are_held, check_fields, narrowed
from policy_server.schema.fields import (
    FLOAT32_MAX,
    ActionField,
    ActionValues,
    Kind,
    Normalization,
    Number,
    ObservationField,
    ServerSchema,
    public_schema,
)
from policy_server.schema.number_range import EXACT_INTEGER_MAX, NumberRange, number_range
from policy_server.schema.schema_file import (
    DEFAULT_POLICY,
    PolicySection,
    SchemaFile,
    VersionSection,
    can_stand_in_an_address,
    parse_schema,
    parse_schema_file,
    read_schema,
    read_schema_file,
)
from policy_server.schema.shipped import find_example_of, named_as_example
from policy_server.schema.yaml_text import load_foreign_yaml

__all__ = [
    "DEFAULT_POLICY",
    "EXACT_INTEGER_MAX",
    "FLOAT32_MAX",
    "LONGEST_AGENT_ID",
    "ActionField",
    "ActionValues",
    "AgentPolicies",
    "Kind",
    "Normalization",
    "Number",
    "NumberRange",
    "ObservationField",
    "PolicySection",
    "SchemaFile",
    "ServerSchema",
    "VersionSection",
    "are_held",
    "can_stand_in_an_address",
    "check_fields",
    "find_example_of",
    "load_foreign_yaml",
    "named_as_example",
    "narrowed",
    "number_range",
    "parse_schema",
    "parse_schema_file",
    "public_schema",
    "read_schema",
    "read_schema_file",
    "schema_digest",
]
