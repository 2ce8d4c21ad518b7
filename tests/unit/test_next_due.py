"""When a snapshot is due: laws over every zone, most of all on the days when its clock is changed. Seeded, so that a failure comes
again."""

from __future__ import annotations

import itertools
import random
import zoneinfo
from datetime import UTC, date, datetime, time, timedelta, tzinfo

import pytest

from handlers.snapshot_schedule import Schedule, moment, next_due, parse, zone
from schema.failure import BadParameter

ZONES = ["America/New_York", "Europe/Zurich", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns", "Pacific/Apia",
         "Africa/Casablanca", "America/Santiago", "Asia/Tehran", "Antarctica/Troll", "Asia/Kathmandu", "UTC", "GMT+05:30",
         "America/Havana", "Africa/Cairo", "Atlantic/Azores", "Pacific/Chatham"]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def changes(where: tzinfo, year: int) -> list[datetime]:
    """Hours of a year in which a zone's clock is changed."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(366 * 24)]
    return [one for one, other in itertools.pairwise(hours)
            if one.astimezone(where).utcoffset() != other.astimezone(where).utcoffset()]


def test_a_time_that_the_clock_leaps_over_is_due_right_after_the_leap() -> None:
    ny = zone("America/New_York")
    assert next_due(parse("DAILY", "30:02"), ny, at("2026-03-07T12:00:00Z")) == at("2026-03-08T07:00:00Z")  # 3:00, not 3:30
    assert next_due(parse("DAILY", "30:02"), ny, at("2026-03-08T07:00:00Z")) == at("2026-03-09T06:30:00Z")
    assert next_due(parse("DAILY", "0:02"), ny, at("2026-03-08T00:00:00Z")) == at("2026-03-08T07:00:00Z")


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    ny = zone("America/New_York")
    assert next_due(parse("DAILY", "30:01"), ny, at("2026-11-01T00:00:00Z")) == at("2026-11-01T05:30:00Z")
    assert next_due(parse("DAILY", "30:01"), ny, at("2026-11-01T05:30:00Z")) == at("2026-11-02T06:30:00Z")


def test_a_day_that_a_zone_leaps_over_has_its_snapshot_all_the_same() -> None:
    apia = zone("Pacific/Apia")  # 2011-12-30 was not
    assert next_due(parse("DAILY", "0:10"), apia, at("2011-12-29T20:00:00Z")) == at("2011-12-30T10:00:00Z")
    assert next_due(parse("DAILY", "0:10"), apia, at("2011-12-30T10:00:00Z")) == at("2011-12-30T20:00:00Z")


def test_hours_are_real_ones_when_the_clock_is_put_back() -> None:
    zurich, due, found = zone("Europe/Zurich"), at("2026-10-24T22:59:00Z"), []
    for _ in range(6):
        due = next_due(parse("HOURLY", "15"), zurich, due)
        found.append(due.strftime("%H:%M"))
    assert found == ["23:15", "00:15", "01:15", "02:15", "03:15", "04:15"]


def test_weeks_begin_on_sunday_and_months_have_28_days() -> None:
    assert next_due(parse("WEEKLY", "5:4:1"), zone("UTC"), at("2026-11-28T00:00:00Z")) == at("2026-11-29T04:05:00Z")
    assert next_due(parse("WEEKLY", "5:4:7"), zone("UTC"), at("2026-11-28T05:00:00Z")) == at("2026-12-05T04:05:00Z")
    assert next_due(parse("MONTHLY", "0:0:28"), zone("UTC"), at("2026-01-28T00:00:00Z")) == at("2026-02-28T00:00:00Z")


def _dates_of(schedule: Schedule, first: date, count: int) -> list[date]:
    days = [first + timedelta(days=n) for n in range(count)]
    return [day for day in days if schedule.interval == "DAILY"
            or (schedule.interval == "WEEKLY" and (day.weekday() + 1) % 7 + 1 == schedule.day)
            or (schedule.interval == "MONTHLY" and day.day == schedule.day)]


@pytest.mark.parametrize("name", ZONES)
def test_there_is_one_due_time_for_each_date_over_two_years_of_changes(name: str) -> None:
    """Every date of the schedule has its one moment, in order, and asking from any moment in between gives the next of them."""
    dice, where = random.Random(name), zone(name)
    for interval in ("DAILY", "WEEKLY", "MONTHLY"):
        for _ in range(3):
            text = f"{dice.randrange(60)}:{dice.choice([0, 1, 2, 3, dice.randrange(24)])}"
            schedule = parse(interval, text if interval == "DAILY" else f"{text}:{dice.randint(1, 7)}")
            dates = _dates_of(schedule, date(2026, 1, 1), 500)
            wanted = [moment(datetime.combine(day, time(schedule.hour, schedule.minute)), where) for day in dates]
            assert wanted == sorted(set(wanted))
            due, walked = wanted[0], [wanted[0]]
            while len(walked) < len(wanted):
                due = next_due(schedule, where, due)
                walked.append(due)
            assert walked == wanted
            for one, other in itertools.pairwise(wanted):
                between = one + (other - one) * dice.random()
                assert next_due(schedule, where, between) == other
            for day, due in zip(dates, wanted, strict=True):
                local = due.astimezone(where)
                shown = (local.hour, local.minute) == (schedule.hour, schedule.minute)
                before = (due - timedelta(seconds=1)).astimezone(where)
                assert shown or before.utcoffset() != local.utcoffset(), (day, due)


@pytest.mark.parametrize("name", ZONES)
def test_hourly_never_leaves_an_hour_out(name: str) -> None:
    dice, where = random.Random(name), zone(name)
    for change in changes(where, 2026) or [at("2026-06-01T00:00:00Z")]:
        schedule = parse("HOURLY", str(dice.randrange(60)))
        due = change - timedelta(hours=5)
        for _ in range(10):
            later = next_due(schedule, where, due)
            assert timedelta(0) < later - due <= timedelta(minutes=90) and later.astimezone(where).minute == schedule.minute
            due = later


def test_every_zone_that_there_is_can_be_named_and_has_a_next_time() -> None:
    now = at("2026-03-28T12:00:00Z")
    for name in sorted(zoneinfo.available_timezones()):
        assert next_due(parse("DAILY", "30:02"), zone(name), now) > now


@pytest.mark.parametrize(("name", "offset"), [
    ("PST", "-8:00:00"), ("EST", "-5:00:00"), ("GMT", "0:00:00"), ("UTC", "0:00:00"), ("GMT+2", "2:00:00"), ("GMT-03:30", "-3:30:00"),
    ("Etc/GMT+12", "-12:00:00"), ("IST", "5:30:00"), ("Asia/Calcutta", "5:30:00"), ("US/Pacific", "-8:00:00"), ("PST8PDT", "-8:00:00")])
def test_names_that_java_clients_send(name: str, offset: str) -> None:
    shift = at("2026-01-15T12:00:00Z").astimezone(zone(name)).utcoffset()
    hours, minutes, _ = offset.lstrip("-").split(":")
    wanted = timedelta(hours=int(hours), minutes=int(minutes))
    assert shift == (-wanted if offset.startswith("-") else wanted)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe/Zurich\x00", "GMT+99", "Europe", "x" * 300,
                                  "posixrules/../../x", "..", "."])
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(BadParameter, match="timezone"):
        zone(name)


@pytest.mark.parametrize(("interval", "schedule"), [
    ("HOURLY", "60"), ("HOURLY", "1:2"), ("HOURLY", ""), ("HOURLY", "-1"), ("DAILY", "5"), ("DAILY", "0:24"), ("DAILY", "0:0:1"),
    ("WEEKLY", "0:0:0"), ("WEEKLY", "0:0:8"), ("WEEKLY", "0:0"), ("MONTHLY", "0:0:29"), ("MONTHLY", "0:0:0"), ("DAILY", "a:b"),
    ("DAILY", "1:1:"), ("YEARLY", "1"), ("daily", "0:0"), ("HOURLY", "٣")])
def test_what_is_no_schedule_is_refused(interval: str, schedule: str) -> None:
    with pytest.raises(BadParameter, match=r"schedule|intervaltype"):
        parse(interval, schedule)
