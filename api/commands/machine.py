"""Commands of machines, and of what is attached to them, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ID, IDS, NAME, ZONE, ApiCommand, Mode, Type, listing, parameter

HOST = parameter("hostid", Type.UUID, text="the UUID of the host")

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listVirtualMachines", mode=Mode.LIST, item="virtualmachine", noun="machine",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("state"), HOST, parameter("hypervisor"), access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "state": "state", "hostid": "host_id",
                 "hypervisor": "hypervisor"},
        description="Lists the machines that agents report."),
)
