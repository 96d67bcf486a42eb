"""PyYAML's findings in words, each with the remedy of that slip and of no other."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

__all__ = ["describe_slip"]

_BARE_LIST = re.compile(r"\{[^{]*:\s*[Ll]ist\[")
_QUOTED = re.compile(r" '[^'<]{2,}'.*")
_COLON = re.compile(r":(?:\s|$)")
_ONLY_SPACES = "YAML allows spaces only"


@dataclass(frozen=True)
class _Slip:
    """One way of getting YAML wrong.

    Attributes:
        pattern: PyYAML's text about it: its context, a colon, its problem.
        words: the mistake and its remedy.
        is_where_it_began: whether the message names the context's line, since PyYAML notices the
            slip some lines later.
    """

    pattern: re.Pattern[str]
    words: str
    is_where_it_began: bool = False


def _slip(pattern: str, words: str, *, is_where_it_began: bool = False) -> _Slip:
    return _Slip(re.compile(pattern, re.DOTALL), words, is_where_it_began)


# None of them quotes the file, since a text in it may be the key.
_SLIPS = (
    _slip(
        r".*'\\t' that cannot start",
        f"a tab stands outside quotes; {_ONLY_SPACES} there: replace it",
    ),
    _slip(
        r".*that cannot start any token", "text that starts with @, % or ` has to stand in quotes"
    ),
    _slip(
        r".*quoted scalar: found unexpected (end|document)",
        "a quote is not closed; close it at the end of the text",
        is_where_it_began=True,
    ),
    _slip(
        r".*double-quoted scalar: .*",
        "a backslash in double quotes starts an escape; put the text in single quotes",
    ),
    _slip(
        r".*flow (mapping|sequence): expected ',' .*got '(<stream end>|<document (start|end)>)'",
        "a bracket is not closed; close { by } and [ by ]",
        is_where_it_began=True,
    ),
    _slip(
        r".*flow (mapping|sequence): expected ','",
        "a comma is missing, a bracket is not closed, or text with a colon lacks its quotes; mend "
        "it",
        is_where_it_began=True,
    ),
    _slip(r".*found '[]}]'", "a bracket closes that was not opened; remove it"),
    _slip(
        r".*(sequence entries are not allowed|but found '-')",
        "a list item '- ...' stands where none can; put each on a line of its own below its name, "
        "or write [...]",
    ),
    _slip(
        r".*found '<scalar>'",
        "text goes on behind its closing quote; put the whole text in quotes, and write '' for a ' "
        "inside",
    ),
    _slip(
        r".*expected <block end>",
        "the indentation is that of no line above; give all lines of one level the same",
    ),
    _slip(
        r".*simple key: could not find expected ':'",
        "a line lacks its colon; write 'name: value'",
        is_where_it_began=True,
    ),
    _slip(
        r".*expected '<document start>'",
        "the line belongs to nothing above it; give all sections the same indentation",
    ),
    _slip(r".*another document", "a second document starts; remove the line '---'"),
    _slip(
        r".*(undefined alias|scanning an (alias|anchor)|constructor for the tag|tag handle|a tag:)",
        "put text that starts with * or ! or & in quotes",
    ),
    _slip(r".*block scalar", "put text that starts with > or | in quotes"),
    _slip(r".*directive", "put text that starts with % in quotes"),
    _slip(r".*mapping keys are not allowed", "put text that starts with ? in quotes"),
    _slip(
        r".*found unhashable key",
        "a name is a mapping or a list; put text in braces or brackets in quotes",
    ),
    _slip(
        r".*expected the node content",
        "a value is missing before a comma or bracket; add it, or put text that starts with one "
        "in quotes",
    ),
    _slip(r".*for merging", "'<<' merges a mapping; name one by its anchor, as in '<<: *name'"),
    _slip(r".*recursive node", "an anchor holds itself; write its values out"),
)


def describe_slip(error: yaml.MarkedYAMLError, text: str) -> tuple[int | None, str]:
    """Return PyYAML's finding in words, without the texts that it quotes: one may be the key.

    Args:
        error: PyYAML's error.
        text: the document.

    Returns:
        The number of the line, from 1, if it is known; and the slip with its remedy.
    """
    found = ": ".join(part for part in (error.context, error.problem) if part)
    slip = next((item for item in _SLIPS if item.pattern.match(found)), None)
    mark = error.problem_mark or error.context_mark
    if slip is not None and slip.is_where_it_began:
        mark = error.context_mark or mark
    if mark is None:
        return None, _in_words(found, slip)
    line = "".join(text.splitlines()[mark.line : mark.line + 1])
    return mark.line + 1, _in_line(found, line, mark.column) or _in_words(found, slip)


def _in_line(found: str, line: str, column: int) -> str | None:
    """Return the slips that the line itself shows best."""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"a tab indents the line; {_ONLY_SPACES}: replace it"
    if _BARE_LIST.search(line):
        return "List[...] inside {...} is no YAML; put it in quotes"
    if not found.startswith("mapping values"):
        return None
    if _COLON.search(line[:column]):
        return "is no YAML: text holds a colon followed by a space; put the text in quotes"
    return "is no YAML: the line is indented too far, or the one above lacks its colon; mend either"


def _in_words(found: str, slip: _Slip | None) -> str:
    if slip is not None:
        return f"is no YAML: {slip.words}"
    return f"is no YAML: {_QUOTED.sub('', ' '.join(found.split()))}"
