"""A tracker's address as it may be shown and stored. Pure."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/?#\s]*@")
"""Also a password with an `@` in it; one with a `/` must be quoted as `%2F` in any address."""


def shown(text: str) -> str:
    """An address, or a text with addresses in it, without user names and passwords."""
    return _USER.sub("", text)
