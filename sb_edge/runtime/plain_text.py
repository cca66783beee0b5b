"""Marks in the text of messages, so that control tokens in it stay text when a chat template has placed it.

U+FDD0, a noncharacter, breaks up a control token that stands in a message. A U+FDD0 of the message itself is
followed by U+FDD1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARK, _OWN = "\ufdd0", "\ufdd0\ufdd1"


def marked(text: str, control_texts: Iterable[str]) -> str:
    """A message's text with marks in the control tokens that it spells out.

    >>> marked("a<s>", ["<s>"]) == "a<" + chr(0xFDD0) + "s>"
    True
    """
    text = text.replace(_MARK, _OWN)
    for control in control_texts:
        text = text.replace(control, control[:1] + _MARK + control[1:])
    return text


def unmarked(text: str) -> str:
    """The text without its marks.

    >>> unmarked(marked("a<s>" + chr(0xFDD0), ["<s>"])) == "a<s>" + chr(0xFDD0)
    True
    """
    return re.sub(f"{_MARK}(\ufdd1?)", lambda match: _MARK if match[1] else "", text)
