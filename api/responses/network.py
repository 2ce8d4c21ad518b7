"""Networks as CloudStack's response objects: their fields. There are none here, so no row becomes one."""

from __future__ import annotations

_RULE = {"id": "string", "ipaddress": "string", "ipaddressid": "string", "protocol": "string", "virtualmachineid": "string",
         "state": "string"}
FIELDS: dict[str, dict[str, str]] = {
    "publicipaddress": {"id": "string", "ipaddress": "string", "virtualmachineid": "string", "zoneid": "string",
                        "state": "string"},
    "portforwardingrule": _RULE | {"publicport": "string", "publicendport": "string", "privateport": "string",
                                   "privateendport": "string"},
    "ipforwardingrule": _RULE | {"startport": "integer", "endport": "integer"},
}
