"""Times of day: 4:30 p.m., 16:30, 20:34:00."""

import re

CLOCK = re.compile(
    r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))? ?(?:\\text ?\{ ?)?(?:([ap])\.? ?m\.?|(noon|midnight))? ?\}?(?: ?o'clock)?",
    re.I,
)
NOON = 12


def read_clock(text: str) -> tuple[int, bool] | None:
    """Seconds since midnight, and whether the half of the day is known; None for what is no time of day.

    Without a colon it is one where the half is named. A ratio such as 3:8 has no second digit after the colon.
    """
    match = CLOCK.fullmatch(text)
    if match is None:
        return None
    hour, minute, second, half, named = match.groups()
    hours, minutes, seconds = int(hour), int(minute or 0), int(second or 0)
    if (minute is None and not half and not named) or hours > 24 or minutes > 59 or seconds > 59:
        return None
    if half or named:
        if not 1 <= hours <= NOON:
            return None
        late = (half or "").lower() == "p" or (named or "").lower() == "noon"
        hours = hours % NOON + (NOON if late else 0)
    known = bool(half or named) or hours > NOON or hours == 0
    return hours * 3600 + minutes * 60 + seconds, known


def same_time(gold: tuple[int, bool], answer: tuple[int, bool]) -> bool:
    """Equal times; where one side leaves the half of the day out, either half will do."""
    half_day = NOON * 3600
    if gold[1] and answer[1]:
        return gold[0] == answer[0]
    return gold[0] % half_day == answer[0] % half_day
