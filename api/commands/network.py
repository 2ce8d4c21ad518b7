"""Commands of networks, as `api.registry` collects them: what clients ask before they list machines, and nothing more."""

from __future__ import annotations

from api.api_command import ID, ZONE, ApiCommand, Mode, Type, listing, parameter

NONE = "machines have no network here"

COMMANDS: tuple[ApiCommand, ...] = tuple(
    ApiCommand(name=name, mode=Mode.LIST, item=item, parameters=listing(ID, *more, access=True),
               description=f"Lists {what}. There are none: {NONE}. Clients ask for them when they list machines.")
    for name, item, what, more in (
        ("listPublicIpAddresses", "publicipaddress", "public addresses", (ZONE, parameter("ipaddress", text="the address"))),
        ("listPortForwardingRules", "portforwardingrule", "rules that forward ports", (parameter(
            "ipaddressid", Type.UUID, text="the UUID of the address"),)),
        ("listIpForwardingRules", "ipforwardingrule", "rules that forward addresses", (parameter(
            "ipaddressid", Type.UUID, text="the UUID of the address"),)),
    ))
