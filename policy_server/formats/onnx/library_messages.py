"""Messages of onnx and onnxruntime without the places of their own sources."""

from __future__ import annotations

import re

__all__ = ["reason_of", "remedy_for"]

_LONGEST = 200
_NO_MEMORY = "it takes more memory than there is"
_ENDS_OF_MEMORY = re.compile(
    r"std::bad_alloc|Failed to allocate memory for requested buffer of size \d+"
)
# onnxruntime begins with its own codes, which say nothing more than the words behind them.
_CODES = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:")
# A file of the library's sources with the line, before the name of the function.
_PLACE = re.compile(r"\S+\.(?:cc|cpp|h):\d+ ")
# That of an assertion: `convert.h:96: check: Assertion 'x' failed: invalid version`.
_ASSERTION = re.compile(r"\S+\.(?:cc|cpp|h):\d+: \w+: Assertion .*? failed: ")
# A function with the types of its arguments; of another, its name alone.
_SIGNATURE = re.compile(r"[^()]*::[^()\s]*\(")
_QUALIFIERS = re.compile(r" const\b| \[with [^]]*\]")


def reason_of(error: Exception) -> str:
    """Return the words of an error of onnx or onnxruntime, in one line of some 200 characters.

    Example:
        `[ONNXRuntimeError] : 1 : FAIL : /src/graph.cc:13 onnxruntime::Graph::Graph(bool) Bad node.`
        becomes `Bad node.`

    Args:
        error: the library's error.
    """
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    words = _ASSERTION.sub("", _CODES.sub("", " ".join(str(error).split())))
    words = _ENDS_OF_MEMORY.sub(_NO_MEMORY, words)
    while (place := _PLACE.search(words)) is not None:
        words = words[: place.start()] + _without_function(words[place.end() :])
    words = words.strip() or type(error).__name__
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def remedy_for(reason: str) -> str:
    """Return the advice for a graph that can't be computed, in words.

    Args:
        reason: the words of `reason_of`.
    """
    if _NO_MEMORY in reason:
        return "export a smaller network, or start again with more memory"
    return "export it again"


def _without_function(words: str) -> str:
    """Return a message without the function that it begins with."""
    signature = _SIGNATURE.match(words)
    if signature is None:
        return words.partition(" ")[2]
    depth, end = 1, signature.end()
    while depth and end < len(words):
        depth += {"(": 1, ")": -1}.get(words[end], 0)
        end += 1
    behind = words[end:]
    while (qualifier := _QUALIFIERS.match(behind)) is not None:
        behind = behind[qualifier.end() :]
    return behind.lstrip()
