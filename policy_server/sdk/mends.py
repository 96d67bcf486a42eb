"""Corrections to the files that openapi-generator 7.26.0 writes: its faults, its placeholders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

__all__ = ["mend"]

_PLACEHOLDER = b"GIT_USER_ID"
# Calls itself for each list in a list, and makes a list of the innermost vectors.
_NESTED_LISTS = b"(function(x, n) if (n == 1) as.list(x) else lapply(x, sys.function(), n - 1))"
_PATTERNS = (
    ("go.mod", rb"(?m)^module .*$", b"module policyclient"),
    # It holds every item of a list to be text, numbers too, a list in a list to be an object, and
    # refuses an empty list.
    (
        "*.R",
        rb"(?m)^ *(?:\w+ <- )?sapply\(.*stopifnot\((?:is\.character|R6::is\.R6)\(x\)\)\)\n",
        b"",
    ),
    ("*.R", rb"stopifnot\(is\.vector\((\S+)\), length\(\S+\) != 0\)", rb"stopifnot(is.vector(\1))"),
    # It makes a list of one number a number, and leaves a list of anything empty.
    (
        "*.R",
        rb"(jsonlite::fromJSON\((?:input_json|input|raw_response))\)",
        rb"\1, simplifyVector = FALSE)",
    ),
    (
        "api_client.R",
        rb" *if \(c\(inner_return_type\) %in% primitive_types\) \{\n(?:.*\n)+?"
        rb"(?=      \} else if \(exists)",
        b"        return_obj <- lapply(obj, function(item) {\n"
        b"          self$deserializeObj(item, inner_return_type, pkg_env)\n"
        b"        })\n",
    ),
    (
        "api_client.R",
        rb"jsonlite::toJSON\(obj, digits = NA, auto_unbox = TRUE\)",
        b'jsonlite::toJSON(obj, digits = NA, auto_unbox = TRUE, null = "null")',
    ),
    # It refuses NULL, which is the default of the very argument.
    ("*.R", rb"      if \(!missing\(`\w+`\) && is\.null\(`\w+`\)\) \{\n.*\n      \}\n", b""),
    # It stops at the header of an argument that is left out, and writes 100000 as 1e+05.
    (
        "*_api.R",
        rb'(?m)^( +)header_params\["([\w-]+)"\] <- (`\w+`)$',
        rb"\1if (!is.null(\3)) {\n"
        rb'\1  header_params["\2"] <- format(\3, digits = 15, scientific = FALSE)\n\1}',
    ),
    # Its errors don't tell the status, and its retries call functions that no package has. httr2
    # itself would sleep as long as an answer names: for hours where it is 429.
    (
        "*_api.R",
        rb"stop\(local_var_error_msg\)",
        b"stop(paste(local_var_resp$status_code, local_var_error_msg), call. = FALSE)",
    ),
    (
        "api_client.R",
        rb" *req <- req %>% retry_max_tries\(.*\n *req <- req %>% retry_max_seconds\(.*\n",
        b"        retry <- list(\n"
        b"          req = req,\n"
        b"          max_tries = self$max_retry_attempts,\n"
        b"          is_transient = function(resp) resp_status(resp) == 503,\n"
        b"          after = function(resp) min(resp_retry_after(resp), 5)\n"
        b"        )\n"
        b"        # From httr2 1.1.0 on a lost connection is tried again on demand only.\n"
        b'        if ("retry_on_failure" %in% names(formals(req_retry))) {\n'
        b"          retry$retry_on_failure <- TRUE\n"
        b"        }\n"
        b"        req <- do.call(req_retry, retry)\n",
    ),
    # Its headers may be numbers, which http.client refuses.
    (
        "*_api.py",
        rb"(?m)^( +_header_params\['x-[\w-]+'\] = )(\w+)$",
        rb"\1str(\2)",
    ),
    # Java's client asks for HTTP/2 at first, and uvicorn loses the body of a request that does.
    (
        "ApiClient.java",
        rb"HttpClient\.newBuilder\(\)",
        b"HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1)",
    ),
    # It sends an empty list for one that is left out.
    (
        "*Observation.java",
        rb"(@jakarta\.annotation\.Nullable\s+private List<\w+> \w+) = new ArrayList<>\(\);",
        rb"\1;",
    ),
    (
        "api/*.scala",
        rb"(?m)^( +)basicRequest$",
        rb"\1basicRequest\n\1  .httpVersion(sttp.model.HttpVersion.HTTP_1_1)",
    ),
    # sttp takes a header's text, or an Option of that.
    (
        "api/*.scala",
        rb'(?m)^( +\.header\("x-[\w-]+", \w+)\)$',
        rb"\1.map(_.toString))",
    ),
    # It would refuse an answer that has a field more, which a later server may give.
    ("model_*.go", rb"(?m)^\tdecoder\.DisallowUnknownFields\(\)\n", b""),
    # Without brackets it would set the object's prototype.
    ("*.ts", rb"'__proto__':", b"['__proto__']:"),
)


def mend(file: PurePosixPath, content: bytes, names: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return a generated file, corrected.

    Args:
        file: its path in the SDK.
        content: the file as the generator wrote it.
        names: by model, the name of each observation in the SDK's language.
    """
    if file.name == "package.json":
        package = json.loads(content)
        package.pop("repository", None)
        return json.dumps(package | {"license": "Apache-2.0"}, indent=2).encode() + b"\n"
    for name, pattern, replacement in _PATTERNS:
        if file.match(name):
            content = re.sub(pattern, replacement, content)
    if file.name == "JsonSupport.scala":
        content = _rename_in_scala(content, names)
    elif file.suffix == ".R":
        content = _send_lists_as_lists(content)
    if _PLACEHOLDER in content:
        lines = content.splitlines(keepends=True)
        return b"".join(line for line in lines if _PLACEHOLDER not in line)
    return content


def _rename_in_scala(content: bytes, names: Mapping[str, Mapping[str, str]]) -> bytes:
    """Send each observation under its own name; json4s takes that of the class."""
    serializers = ""
    for model, chosen_names in names.items():
        renamed = [
            f'FieldSerializer.renameTo("{chosen}", "{name}")'
            for name, chosen in chosen_names.items()
            if chosen.strip("`") != name
        ]
        if renamed:
            joined = " orElse\n    ".join(renamed)
            serializers += f" +\n  FieldSerializer[{model}](\n    {joined}\n  )"
    return re.sub(
        rb"(?m)^  implicit val format: .*$",
        lambda line: line[0] + serializers.encode(),
        content,
    )


def _send_lists_as_lists(content: bytes) -> bytes:
    """Make lists of R's vectors, since jsonlite writes a vector of one number as a number."""
    for name in set(re.findall(rb"stopifnot\(is\.vector\((`\w+`)\)\)", content)):
        own = rb"self$" + name
        content = re.sub(
            rb"(?m)(?<=<-\n)( +)(" + re.escape(own) + rb")$", rb"\1as.list(\2)", content
        )
        levels = _levels_in_r(content, name)
        if levels > 1:
            content = content.replace(
                b"self$extractSimpleType(" + own + b")",
                b"%s(%s, %d)" % (_NESTED_LISTS, own, levels),
            )
    return content


def _levels_in_r(content: bytes, name: bytes) -> int:
    """Return how many levels the lists of a property have, whose items are no objects."""
    kind = rb"_object\$" + re.escape(name) + rb', "((?:array\[)+)(?:integer|numeric|character)\]'
    found = re.search(kind, content)
    return 0 if found is None else found[1].count(b"[")
