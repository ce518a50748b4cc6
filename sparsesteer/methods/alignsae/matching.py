"""When an answer counts as the wanted one."""

import re

_MONTH = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_DATES = (  # as the released code reads them: "3,May,1971", "May 3, 1971", "3 May 1971"
    (re.compile(r"(\d{1,2}),\s*([a-z]+),\s*(\d{4})"), (0, 1, 2)),
    (re.compile(r"([a-z]+)\s+(\d{1,2}),?\s+(\d{4})"), (1, 0, 2)),
    (re.compile(r"(\d{1,2})\s+([a-z]+)\s+(\d{4})"), (0, 1, 2)),
)


def strict_match(wanted: str, answer: str) -> bool:
    """Both texts equal, but for spaces around them."""
    return wanted.strip() == answer.strip()


def lenient_match(wanted: str, answer: str) -> bool:
    """The rule of the released code: one stands in the other, letters' case aside; two dates are the same day.

    An answer that is a part of the wanted one counts: "Red" for "Redcliff College".
    """
    wanted, answer = wanted.strip().lower(), answer.strip().lower()
    if not answer:
        return False
    days = _day(wanted), _day(answer)
    if None not in days:
        return days[0] == days[1]
    return wanted in answer or answer in wanted


def _day(text: str) -> tuple[int, str, int] | None:
    for pattern, order in _DATES:
        found = pattern.match(text)
        if found and found[order[1] + 1] in _MONTH:
            day, month, year = (found[place + 1] for place in order)
            return int(day), month, int(year)
    return None
