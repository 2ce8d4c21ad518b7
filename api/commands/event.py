"""Commands that show the history, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ID, ApiCommand, Mode, Type, listing, parameter

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listEvents", mode=Mode.LIST, item="event", noun="event",
        parameters=listing(
            ID, parameter("type", text="the type, as listEventTypes names it"),
            parameter("level", choices=("INFO", "WARN", "ERROR"), text="INFO, WARN or ERROR"),
            parameter("state", choices=("Scheduled", "Created", "Started", "Completed"), text="how far its job was then"),
            parameter("startdate", Type.DATE),
            parameter("enddate", Type.DATE, text="up to this date, its whole day when it has no time"),
            parameter("startid", Type.UUID, text="the UUID of the first event: those that followed it, and it"),
            parameter("resourceid", text="the UUID of the thing"),
            parameter("resourcetype", text="Volume, Snapshot, Template, ..."),
            parameter("entrytime", Type.INTEGER, text="with duration: what began within so many seconds"),
            parameter("duration", Type.INTEGER, text="with entrytime: and has not ended after so many seconds"),
            parameter("archived", Type.BOOLEAN, text="true: only archived ones (there are none)"), access=True),
        filters={"id": "id", "type": "type", "level": "level", "state": "state", "resourceid": "resource_id",
                 "resourcetype": "resource_type", "archived": "archived"},
        description="Lists what happened, newest first: each command when it was accepted, began and ended."),
    ApiCommand(name="listEventTypes", mode=Mode.LIST, item="eventtype", description="Lists the types of events."),
)
