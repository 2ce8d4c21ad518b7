"""Commands of machines, and of what is attached to them, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ID, IDS, NAME, ZONE, ApiCommand, Mode, Type, derived, listing, parameter
from schema.volume_attach import AttachVolume, DetachVolume

TEXTS = {"virtualmachineid": "the UUID of the machine", "deviceid": "the device: 1 to 65 but 3; the first that is free"}
HOST = parameter("hostid", Type.UUID, text="the UUID of the host")

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="listVirtualMachines", mode=Mode.LIST, item="virtualmachine", noun="machine",
        parameters=listing(ID, IDS, NAME, ZONE, parameter("state"), HOST, parameter("hypervisor"), access=True),
        filters={"id": "id", "name": "name", "zoneid": "zone_id", "state": "state", "hostid": "host_id",
                 "hypervisor": "hypervisor"},
        description="Lists the machines that agents report."),
    ApiCommand(
        name="attachVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=AttachVolume,
        parameters=derived(AttachVolume, texts=TEXTS), related="listVolumes",
        description="Attaches a volume to a machine of its host: at once if it runs, else from its next start on."),
    ApiCommand(
        name="detachVolume", mode=Mode.ASYNC, item="volume", noun="volume", command=DetachVolume,
        parameters=derived(DetachVolume, texts=TEXTS), related="listVolumes",
        description="Detaches a volume, named by its id, or by virtualmachineid and deviceid."),
)
