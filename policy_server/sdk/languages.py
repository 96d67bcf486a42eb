"""The languages of SDKs: openapi-generator's options for each, and names in the code it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

__all__ = [
    "BUNDLE",
    "CLIENT_MARK",
    "JVM_FOLDER",
    "LANGUAGES",
    "SDK_NAME",
    "Language",
    "LanguageName",
]

LanguageName = Literal["python", "java", "scala", "r", "typescript", "csharp", "go", "kotlin"]
SDK_NAME = "policy-client"
_JVM_PACKAGE = "com.policyserver.client"
JVM_FOLDER = _JVM_PACKAGE.replace(".", "/")
_MAVEN = {"groupId": "com.policyserver", "artifactId": SDK_NAME}


@dataclass(frozen=True)
class Language:
    """How openapi-generator is called for a language, and how its result is read.

    Attributes:
        name: as it stands in the route.
        title: the language's own name.
        generator: openapi-generator's name for it.
        options: its `--additional-properties`; see docs/generators of its repository.
        version_option: the option that takes the version.
        model: the file of the model `{name}`.
        dropped: patterns of files that its users don't need.
        raw: the ending of the names of methods for flat observations.
    """

    name: LanguageName
    title: str
    generator: str
    options: Mapping[str, str]
    version_option: str
    model: str
    dropped: tuple[str, ...] = ()
    raw: str = "raw"

    def keeps(self, file: PurePosixPath) -> bool:
        """Return whether a generated file belongs into the SDK.

        Args:
            file: its path in the SDK.
        """
        return not any(file.match(pattern) for pattern in (*_DROPPED, *self.dropped))


# Files for the continuous integration and publishing of a project.
_DROPPED = (
    "git_push.*",
    ".travis.yml",
    ".gitlab-ci.yml",
    "appveyor.yml",
    ".github/*/*",
    ".openapi-generator-ignore",
    ".openapi-generator/FILES",
    "api/openapi.yaml",
    "gradlew*",
    "gradle/wrapper/*",
)

_ALL = (
    Language(
        "python",
        "Python",
        "python",
        {"packageName": "policy_client", "projectName": SDK_NAME},
        "packageVersion",
        "policy_client/models/{snake}.py",
        dropped=("setup.py", "setup.cfg", "tox.ini", "requirements.txt", "test-requirements.txt"),
    ),
    Language(
        "java",
        "Java",
        "java",
        {
            **_MAVEN,
            "library": "native",
            "invokerPackage": _JVM_PACKAGE,
            "apiPackage": f"{_JVM_PACKAGE}.api",
            "modelPackage": f"{_JVM_PACKAGE}.model",
            "openApiNullable": "false",
            "annotationLibrary": "none",
            "documentationProvider": "none",
            "useJakartaEe": "true",
        },
        "artifactVersion",
        f"src/main/java/{JVM_FOLDER}/model/{{name}}.java",
        dropped=("build.*", "settings.gradle", "gradle.properties", "AndroidManifest.xml"),
    ),
    Language(
        "scala",
        "Scala",
        "scala-sttp4",
        # Its code for json4s has no way to send a property under another name.
        {**_MAVEN, "mainPackage": _JVM_PACKAGE, "modelPropertyNaming": "original"},
        "artifactVersion",
        f"src/main/scala/{JVM_FOLDER}/model/{{name}}.scala",
    ),
    Language(
        "r",
        "R",
        "r",
        {"packageName": "policyclient", "library": "httr2", "returnExceptionOnFailure": "true"},
        "packageVersion",
        "R/{snake}.R",
        dropped=("tests/*", "tests/*/*", ".lintr"),
    ),
    Language(
        "typescript",
        "TypeScript",
        "typescript-fetch",
        {"npmName": SDK_NAME, "modelPropertyNaming": "original"},
        "npmVersion",
        "src/models/{name}.ts",
        # Of each method there is a twin that ends in Raw already: it gives the response itself.
        raw="flat",
    ),
    Language(
        "csharp",
        "C#",
        "csharp",
        {
            "packageName": "PolicyClient",
            "packageGuid": "{5B1A29B9-6A0B-4C5B-9E57-0C1D7E1F7C11}",
            "library": "httpclient",
            "targetFramework": "net8.0",
        },
        "packageVersion",
        "src/PolicyClient/Model/{name}.cs",
        dropped=("src/PolicyClient.Test/*",),
    ),
    Language(
        "go",
        "Go",
        "go",
        {"packageName": "policyclient"},
        "packageVersion",
        "model_{snake}.go",
    ),
    Language(
        "kotlin",
        "Kotlin",
        "kotlin",
        {**_MAVEN, "packageName": _JVM_PACKAGE},
        "artifactVersion",
        f"src/main/kotlin/{JVM_FOLDER}/models/{{name}}.kt",
    ),
)
LANGUAGES: Mapping[LanguageName, Language] = {language.name: language for language in _ALL}
CLIENT_MARK = PurePosixPath(".openapi-generator/VERSION")
"""A file that is in each client library: no folder without it is ever replaced or removed."""

BUNDLE: tuple[LanguageName, ...] = ("python", "java", "scala", "r")
