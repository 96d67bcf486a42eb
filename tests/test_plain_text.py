"""Text of others on the demo page."""

from __future__ import annotations

import pytest

from demo.plain_text import as_code, as_text

BREAK = "\N{ZERO WIDTH NON-JOINER}"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("In m/s: number from -1 to 30, e.g. 12.5", "In m/s: number from -1 to 30, e.g. 12.5"),
        ("$x$", r"\$x\$"),
        ("which *gear* <b>x</b>", r"which \*gear\* \<b\>x\</b\>"),
        (
            "has_up `code` a|b ~~c~~ [d](e) &amp;",
            r"has_up \`code\` a\|b \~\~c\~\~ \[d\](e) \&amp;",
        ),
        (r"a\b", r"a\\b"),
        (":smile: at 12:30", f":{BREAK}smile: at 12:30"),
        (":red[x] ::leaf", rf":{BREAK}red\[x\] :{BREAK}:{BREAK}leaf"),
        ("left -> right, a>=b", rf"left -{BREAK}\> right, a\>=b"),
        ("a -- b <= c", rf"a -{BREAK}- b \<{BREAK}= c"),
        ("1. first", r"1\. first"),
        ("- one", r"\- one"),
        ("-0.5", r"\-0.5"),
        ("# one\n\ntwo", r"\# one two"),
        ("_a_ __init__ a_", r"\_a\_ \_\_init\_\_ a\_"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("", ""),
    ],
)
def test_text_is_shown_as_it_is(text: str, markdown: str) -> None:
    assert as_text(text) == markdown


@pytest.mark.parametrize(
    ("text", "markdown"),
    [("speed", "`speed`"), ("a`b", "`` a`b ``"), ("`` ` ``", "``` `` ` `` ```")],
)
def test_text_is_shown_as_code(text: str, markdown: str) -> None:
    assert as_code(text) == markdown
