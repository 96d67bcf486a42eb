"""The words of each README: how the SDK is installed, and how it reports errors.

`policy_server.sdk.readme` replaces each `%name%`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EXAMPLES", "Example"]


@dataclass(frozen=True)
class Example:
    """One language's part of its README.

    Attributes:
        install: how to install the SDK, in Markdown.
        fence: the program's language in Markdown.
        error: how a method reports an error of the server, in Markdown.
        headers: where the headers of an answer are, in Markdown.
        intro: a sentence about the program's file, with a space behind it.
    """

    install: str
    fence: str
    error: str
    headers: str
    intro: str = ""


def _shell(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```"])


EXAMPLES = {
    "python": Example(
        _shell("pip install ."),
        "python",
        "raises `ApiException` with `status` and `body`",
        "`predict_with_http_info(observation, x_state=...)` has `headers` and `data`",
    ),
    "java": Example(
        _shell("mvn install")
        + "\n\nIt runs on Java 11 and later. What it needs stands in pom.xml: Jackson, and Jakarta "
        "Annotations.",
        "java",
        "throws `ApiException` with `getCode()` and `getResponseBody()`",
        "`predictWithHttpInfo` has `getHeaders()` and `getData()`",
        "Save this as `Example.java` in your project. ",
    ),
    "scala": Example(
        _shell("sbt publishLocal") + "\n\nThen, in your build.sbt:\n\n```scala\n"
        'libraryDependencies += "com.policyserver" %% "policy-client" % "%version%"\n```',
        "scala",
        "gives a `Left`, whose message has the status and the body",
        "An answer of sttp has `header(...)` beside its `body`",
    ),
    "r": Example(
        _shell(
            'Rscript -e \'install.packages(c("base64enc", "httr2", "jsonlite", "R6", "stringr"))\'',
            "R CMD INSTALL .",
        ),
        "r",
        "stops; `tryCatch` gets the status and the body as the message",
        "`PredictWithHttpInfo` has `headers` and `content`",
    ),
    "typescript": Example(
        _shell("npm install")
        + "\n\nThat compiles it, too. Then, in your project: `npm install` and this folder's path.",
        "typescript",
        "throws `ResponseError`; its `response` has `status` and `json()`",
        "`predictRaw` has `raw.headers` and `value()`",
        "Save this as `example.mjs` in your project, for Node 18 and later. ",
    ),
    "csharp": Example(
        "Add a reference to your project, with the path of this folder:\n\n"
        + _shell("dotnet add reference csharp/src/PolicyClient/PolicyClient.csproj"),
        "csharp",
        "throws `ApiException` with `ErrorCode` and `ErrorContent`",
        "`PredictWithHttpInfo` has `Headers` and `Data`",
    ),
    "go": Example(
        "In your module, with the path of this folder:\n\n"
        + _shell("go mod edit -require=policyclient@v0.0.0 -replace=policyclient=../go"),
        "go",
        "returns an error; as a `*policyclient.GenericOpenAPIError` it has `Body()`",
        "A call gives the `*http.Response` beside the answer",
    ),
    "kotlin": Example(
        _shell("gradle publishToMavenLocal") + "\n\nWhat it needs stands in build.gradle.",
        "kotlin",
        "throws `ClientException` or `ServerException` with `statusCode` and `response`",
        "`predictWithHttpInfo` has `headers`, and as a `Success` `data`",
    ),
}
