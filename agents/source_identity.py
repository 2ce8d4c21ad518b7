"""Which bytes a URL gave: what must be the same for a download to go on in the middle.

Owns when a source can be held to its word: a length, and a validator that changes with every byte (a strong ETag, or a date
of change that was a minute old when it was told). Everything else begins again. Refuses to ask the source itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Self

OLD_S = 60
"""Seconds by which a date of change must be past: a younger file may be written twice within the date's one second."""
VALIDATOR_MAX = 512
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One state of what a URL gives."""

    what: str
    """Digest of the order's part of it: URL, store, key. The URL itself may hold a signature, which is kept nowhere."""
    total: int
    part: int
    """Bytes of a part of the object."""
    validator: str
    """An ETag in its quotes, or a date: as If-Range takes them."""

    @classmethod
    def of(cls, headers: Mapping[str, str], what: str, *, total: int, part: int) -> Self | None:
        """Of an answer with the whole; None when it cannot be gone on with."""
        validator = _validator(headers)
        ranges = headers.get("Accept-Ranges", "bytes").strip().lower()
        if not total or not validator or ranges != "bytes":
            return None
        return cls(what=what, total=total, part=part, validator=validator)

    @classmethod
    def parse(cls, text: str, what: str) -> Self | None:
        """What `text` said, when it is about the same."""
        try:
            said, total, part, validator = json.loads(text)
        except (ValueError, TypeError):
            return None
        if said != what or not isinstance(validator, str) or not (isinstance(total, int) and isinstance(part, int)):
            return None
        return cls(what=what, total=total, part=part, validator=validator) if total > 0 and part > 0 and validator else None

    def text(self) -> str:
        """As `parse` takes it."""
        return json.dumps([self.what, self.total, self.part, self.validator])

    def asking(self, first: int, last: int) -> dict[str, str]:
        """The headers that ask for these bytes of this state and of no other."""
        return {"Range": f"bytes={first}-{last}", "If-Range": self.validator}

    def gives(self, status: int, headers: Mapping[str, str], first: int, last: int) -> bool:
        """Whether an answer is those bytes of this state. 200 is another state: the server ignored what was asked."""
        said = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if status != 206 or said is None or (int(said[1]), int(said[2]), int(said[3])) != (first, last, self.total):
            return False
        name = "ETag" if self.validator.startswith('"') else "Last-Modified"
        return headers.get(name, "").strip() == self.validator  # 206 must repeat it; who does not is not believed


def _validator(headers: Mapping[str, str]) -> str:
    etag = headers.get("ETag", "").strip()
    if re.fullmatch(r'"[\x21\x23-\x7e]{1,500}"', etag):
        return etag
    changed = headers.get("Last-Modified", "").strip()
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(changed)
        return changed if age.total_seconds() >= OLD_S and len(changed) <= VALIDATOR_MAX else ""
    except (ValueError, TypeError):
        return ""


def described(*words: str) -> str:
    """A digest of what an order asks for."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


__all__ = ["Source", "described"]
