"""Text of others on the page: names and descriptions of a schema.yaml, messages of a server.

Streamlit reads what it draws as Markdown, with formulas, emoji and colours.
"""

from __future__ import annotations

import re

__all__ = ["as_code", "as_text"]

# Nobody sees it, and what it parts is no sign of Markdown any more. A backslash is of no help
# there: emoji and arrows are put in after the backslashes are taken out.
_BREAK = "\N{ZERO WIDTH NON-JOINER}"
_SIGNS = re.compile(r"[\\`*\[\]<>#|$~&]")
# Between letters and digits, as in `is_open`, they are text.
_UNDERSCORES = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")
_FIRST = re.compile(r"^(\d*)([-+=.)])")
# Of a colour, such as `:red[x]`, or of an emoji.
_NAME = re.compile(r":(?=[^\W\d_]|:|[\w+-]+:)")
_ARROW = re.compile(r"(?<!\S)(<->|->|<-|--|>=|<=|~=)(?!\S)")


def as_text(text: str) -> str:
    r"""Return the Markdown that shows a text as it is, in one line.

    Example: `\$x\$` of `$x$`.

    Args:
        text: whatever somebody wrote.
    """
    line = " ".join(text.split())
    line = _NAME.sub(f":{_BREAK}", line)
    line = _ARROW.sub(lambda arrow: _BREAK.join(arrow[0]), line)
    line = _SIGNS.sub(r"\\\g<0>", line)
    line = _UNDERSCORES.sub(lambda signs: signs[0].replace("_", r"\_"), line)
    return _FIRST.sub(r"\1\\\2", line)


def as_code(text: str) -> str:
    """Return the Markdown that shows a text as code.

    Args:
        text: whatever somebody wrote.
    """
    line = " ".join(text.split())
    # CommonMark, 6.1: another number of backquotes inside is text.
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"
