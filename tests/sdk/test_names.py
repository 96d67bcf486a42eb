"""Names of observations in client libraries: all different, and none that a language can't take."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from policy_server.sdk import LANGUAGES, LanguageName
from policy_server.sdk.names import NAMINGS, observation_names, property_names
from tests.support.sdks import ALIKE, OF_ANOTHER, SPECIAL, generated, names_document

# How a model's code says which name on the wire is whose.
WIRES = {
    "python": r'(?m)^    {name}: .*alias="{wire}"|^    {wire}: ',
    "java": r'JSON_PROPERTY_\w+ = "{wire}";\n.*\n  private \S+ {name}\b',
    "scala": r"(?m)^  {name}: ",
    "r": r'\[\["{wire}"\]\] <-\n +(?:as\.list\()?self\$`{name}`',
    "typescript": r"(?m)^ +\[?'{wire}'\]?: value\['{name}'\]",
    "csharp": r'Name = "{wire}", .*\n +public \S+ {name} ',
    "go": r'\t{name} \S+ `json:"{wire}"`',
    "kotlin": r'@Json\(name = "{wire}"\)\n    val {name}: ',
}


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", "t_2 t a_b a_b_2 a_b_3 a_b_4 has_up set_t field_ field_2 field_1"),
        ("java", "t2 t aB2 aB aB3 aB4 hasUp setT3 field field2 field1"),
        ("scala", "T t a_b aB a__b _a_b hasUp set_t `_` `__` _1"),
        ("r", " ".join(ALIKE)),
        ("typescript", " ".join(ALIKE)),
        ("csharp", "T T2 AB AB2 AB3 AB4 HasUp SetT Field Field2 Field1"),
        ("go", "T T2 AB AB2 AB3 AB4 HasUp SetT3 Field Field2 Field1"),
        ("kotlin", "t2 t aB2 aB aB3 aB4 hasUp setT field field2 field1"),
    ],
)
def test_names_that_a_language_spells_alike_stay_apart(language: str, expected: str) -> None:
    names = property_names(ALIKE, NAMINGS[language])

    assert list(names) == list(ALIKE)
    assert list(names.values()) == expected.split()


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", {"class": "class_", "self": "self_", "print": "print_", "copy": "copy_"}),
        ("java", {"class": "classValue", "com": "comValue", "self": "self"}),
        ("scala", {"class": "`class`", "wait": "wait_value", "type": "`type`", "self": "self"}),
        ("r", {"class": "class", "self": "self_value", "toJSON": "toJSON_value"}),
        ("typescript", {"class": "class", "__proto__": "proto_value"}),
        ("csharp", {"class": "ClassValue", "observation": "ObservationValue", "self": "Self"}),
        ("go", {"class": "Class", "this": "ThisValue"}),
        ("kotlin", {"class": "classValue", "fun": "funValue", "type": "type"}),
    ],
)
def test_words_of_the_language_get_a_name_that_can_be_used(
    language: str, expected: dict[str, str]
) -> None:
    assert property_names(list(expected), NAMINGS[language]) == expected


@pytest.mark.parametrize("language", NAMINGS)
def test_names_of_answers_stay_what_they_are(language: str) -> None:
    answers = property_names(["actions", "probability"], NAMINGS[language])

    names = property_names(
        ["Actions", "ACTIONS", "Probability", "probability"],
        NAMINGS[language],
        others=["actions", "probability"],
    )

    assert names["probability"] == answers["probability"]
    assert answers["actions"] not in names.values()
    assert len(set(names.values())) == 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LANGUAGES)
async def test_generated_model_sends_each_observation_by_its_own_name(name: LanguageName) -> None:
    document, language = await names_document(), LANGUAGES[name]

    files = await generated(name)

    names = observation_names(document, name)
    assert len(set(names.values())) == len(names)
    assert names.keys() >= {*ALIKE, *SPECIAL, *OF_ANOTHER}
    for model, snake, wires in (
        ("Observation", "observation", (*ALIKE, *SPECIAL)),
        ("LiftObservation", "lift_observation", OF_ANOTHER),
    ):
        path = language.model.format(name=model, snake=snake)
        source = files[PurePosixPath(path)].decode()
        for wire in wires:
            pattern = WIRES[name].format(wire=re.escape(wire), name=re.escape(names[wire]))
            assert len(re.findall(pattern, source)) == 1, (model, wire, names[wire])
    if name == "scala":
        support = next(text for file, text in files.items() if file.name == "JsonSupport.scala")
        assert b'FieldSerializer.renameTo("wait_value", "wait")' in support
        assert b"FieldSerializer[LiftObservation](" in support
        assert support.count(b"renameTo") == sum(
            names[wire].strip("`") != wire for wire in (*ALIKE, *SPECIAL, *OF_ANOTHER)
        )
