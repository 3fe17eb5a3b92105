"""Labels, ids and names of people: what they may be, by one rule wherever they enter.

A source that is ingested, a table that is imported, a correction and an enrolment take the same labels.
"""

import re
import unicodedata

from dml.errors import InvalidSetting
from dml.names import MAX_ID_LENGTH

MAX_NAME_BYTES = 4096
"""The longest id, label or name of a person."""
# Unicode white space and invisible characters: the byte order mark, zero-width spaces and joiners.
_INVISIBLE = r"[\s\u200b-\u200d\u2060\ufeff]+"
_OUTER_SPACE = re.compile(rf"\A{_INVISIBLE}|{_INVISIBLE}\Z")
_CONTROL_CATEGORIES = ("Cc", "Zl", "Zp")


def normalized(label: str) -> str:
    """A label without outer white space, in Unicode form NFC, so that equal-looking labels are equal."""
    return unicodedata.normalize("NFC", _OUTER_SPACE.sub("", label))


def checked_label(what: str, value: str) -> str:
    """A label as it is kept: `normalized`.

    Args:
        what: it is, for the message.
        value: as it came.

    Raises:
        InvalidSetting: as `require_name`, of what is kept.

    Example:
        >>> checked_label("A label", " red shoe\\n")
        'red shoe'
    """
    require_text(what, value)
    label = normalized(value)
    if not label:
        raise _blank(what, value)
    require_name(what, label)
    return label


def require_name(what: str, value: str) -> None:
    """Refuse a new id or label that nobody could read or type, too; raises as `require_text`."""
    require_text(what, value)
    if not value.strip():
        raise _blank(what, value)
    if len(value) > MAX_ID_LENGTH:
        raise InvalidSetting(
            f"{what} must be at most {MAX_ID_LENGTH} characters; got {len(value)}. Shorten it."
        )
    control = next((each for each in value if unicodedata.category(each) in _CONTROL_CATEGORIES), None)
    if control is not None:
        raise InvalidSetting(
            f"{what} must be without control characters and line breaks; got U+{ord(control):04X} in "
            f"{value[:100]!r}. Leave it out."
        )


def require_text(
    what: str, value: object, *, max_bytes: int = MAX_NAME_BYTES, or_empty: bool = False
) -> None:
    """Refuse what no file could hold, or would make every search carry it.

    Raises:
        InvalidSetting: it is no text, empty, too long, or has NUL or half a character in it.
    """
    if not isinstance(value, str) or not (value or or_empty):
        what_it_is = "a text" if or_empty else "a text that is not empty"
        raise InvalidSetting(f"{what} must be {what_it_is}; got {type(value).__name__} {value!r}.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0 or "\0" in value:
        raise InvalidSetting(f"{what} must be a text in Unicode without NUL; got {value[:100]!r}.")
    if size > max_bytes:
        raise InvalidSetting(f"{what} must be at most {max_bytes} bytes in UTF-8; got {size}. Shorten it.")


def _blank(what: str, value: str) -> InvalidSetting:
    return InvalidSetting(f"{what} must have a character that is no space; got {value!r}.")
