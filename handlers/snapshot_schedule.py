"""When a policy's next snapshot is due: a pure function of its schedule, its time zone and a moment.

Owns how schedules and time zones are read. Rules kept here: DAILY, WEEKLY and MONTHLY are due once on each of their dates,
whatever the zone's clock does on it: a time that the clock leaps over is due at the first moment after the leap, one that comes
twice is due the first time. HOURLY is due when the zone's clock shows its minute, so real hours lie between, also on days when
the clock is put back. Refuses to know what time it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from schema.failure import BadParameter
from schema.snapshot_policy import INTERVALS

MOST = 8
"""Snapshots that a policy may keep, of whatever interval: CloudStack's snapshot.max.hourly, daily, weekly and monthly."""
FORMS = {"HOURLY": ("MM", (60,)), "DAILY": ("MM:HH", (60, 24)), "WEEKLY": ("MM:HH:DD", (60, 24, 8)),
         "MONTHLY": ("MM:HH:DD", (60, 24, 29))}
"""Interval -> how its schedule is written, and what each number is below."""
JAVA = {
    "ACT": "Australia/Darwin", "AET": "Australia/Sydney", "AGT": "America/Argentina/Buenos_Aires", "ART": "Africa/Cairo",
    "AST": "America/Anchorage", "BET": "America/Sao_Paulo", "BST": "Asia/Dhaka", "CAT": "Africa/Harare",
    "CNT": "America/St_Johns", "CST": "America/Chicago", "CTT": "Asia/Shanghai", "EAT": "Africa/Addis_Ababa",
    "ECT": "Europe/Paris", "EST": "-05:00", "HST": "-10:00",
    "IET": "America/Indiana/Indianapolis", "IST": "Asia/Kolkata", "JST": "Asia/Tokyo",
    "MIT": "Pacific/Apia", "MST": "-07:00", "NET": "Asia/Yerevan", "NST": "Pacific/Auckland", "PLT": "Asia/Karachi",
    "PNT": "America/Phoenix", "PRT": "America/Puerto_Rico", "PST": "America/Los_Angeles", "SST": "Pacific/Guadalcanal",
    "VST": "Asia/Ho_Chi_Minh", "Z": "UTC", "GMT0": "UTC", "UTC": "UTC", "GMT": "UTC", "UT": "UTC",
}
"""Short names that Java's clients send, as Java reads them."""
_OFFSET = re.compile(r"(?:GMT|UTC|UT)?([+-])(\d{1,2})(?::?([0-5]\d))?")
_NAME = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+){0,3}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that was read: what it is due at, by the clock of its zone."""

    interval: str
    minute: int
    hour: int = 0
    day: int = 0
    """WEEKLY: 1 is Sunday, 7 is Saturday; MONTHLY: of the month."""


def parse(interval: str, text: str) -> Schedule:
    """The schedule. Raises BadParameter naming the parameter."""
    if interval not in INTERVALS:
        raise BadParameter(f"{interval[:32]!r} is not one of {', '.join(INTERVALS)}", field="intervaltype")
    form, bounds = FORMS[interval]
    parts = text.strip().split(":")
    wrong = BadParameter(f"{text[:32]!r} is no schedule of the interval {interval}", field="schedule", remedy=f"write {form}: "
                         "minute 0 to 59, hour 0 to 23, day 1 to 7 of the week (1 is Sunday) or 1 to 28 of the month")
    if len(parts) != len(bounds) or not all(re.fullmatch(r"[0-9]{1,2}", part) for part in parts):
        raise wrong
    numbers = [int(part) for part in parts]
    if not all(number < bound for number, bound in zip(numbers, bounds, strict=True)) or (len(numbers) == 3 and numbers[2] < 1):
        raise wrong
    return Schedule(interval, *numbers)


def zone(name: str) -> tzinfo:
    """The time zone of this name: IANA's, an offset (GMT+2, +05:30), or one of Java's short names. Raises BadParameter."""
    name = JAVA.get(name.strip(), name.strip())
    offset = _OFFSET.fullmatch(name)
    if offset is not None:
        shift = timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0))
        if shift <= timedelta(hours=14):
            return timezone(-shift if offset[1] == "-" else shift)
    elif len(name) <= 64 and _NAME.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise BadParameter(f"{name[:64]!r} is no time zone", field="timezone",
                       remedy="write a name of IANA's, as Europe/Zurich or UTC")


def next_due(schedule: Schedule, where: tzinfo, after: datetime) -> datetime:
    """The first moment later than `after` at which it is due, in UTC."""
    after = after.astimezone(UTC)
    if schedule.interval == "HOURLY":
        return _minute(schedule, where, after)
    for day in _dates(schedule, after.astimezone(where).date() - timedelta(days=1)):
        due = moment(datetime.combine(day, time(schedule.hour, schedule.minute)), where)
        if due > after:
            return due
    raise AssertionError("each of these comes again within a month")


def _minute(schedule: Schedule, where: tzinfo, after: datetime) -> datetime:
    """The next moment at which the zone's clock shows the minute; within two hours, whatever the clock does."""
    at = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while at.astimezone(where).minute != schedule.minute:
        at += timedelta(minutes=1)
    return at


def _dates(schedule: Schedule, first: date) -> Iterator[date]:
    """The dates of a schedule, for two months from the first one on."""
    for number in range(64):
        day = first + timedelta(days=number)
        if schedule.interval == "DAILY" or (
                schedule.interval == "WEEKLY" and day.isoweekday() % 7 + 1 == schedule.day) or (
                schedule.interval == "MONTHLY" and day.day == schedule.day):
            yield day


def moment(local: datetime, where: tzinfo) -> datetime:
    """When the zone's clock shows this, in UTC: the first time if twice; the moment of the leap if never."""
    at = local.replace(tzinfo=where, fold=0).astimezone(UTC)
    if at.astimezone(where).replace(tzinfo=None) == local:
        return at
    # The offset of before the leap was counted, so `at` lies after it; the one of after the leap gives a time before it.
    low, high = local.replace(tzinfo=where, fold=1).astimezone(UTC), at
    offset = high.astimezone(where).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        low, high = (low, middle) if middle.astimezone(where).utcoffset() == offset else (middle, high)
    return high


__all__ = ["FORMS", "MOST", "Schedule", "moment", "next_due", "parse", "zone"]
