"""Plug-ins and the API itself as CloudStack's response objects."""

from __future__ import annotations

FIELDS: dict[str, dict[str, str]] = {
    "dataStoreProvider": {
        "name": "string", "type": "string", "scope": "string", "settings": "object", "capabilities": "list"},
    "capability": {
        "cloudstackversion": "string", "securitygroupsenabled": "boolean", "dynamicrolesenabled": "boolean",
        "userpublictemplateenabled": "boolean", "supportELB": "string", "projectinviterequired": "boolean",
        "allowusercreateprojects": "boolean", "customdiskofferingminsize": "long", "customdiskofferingmaxsize": "long",
        "regionsecondaryenabled": "boolean", "kvmsnapshotenabled": "boolean", "allowuserviewdestroyedvm": "boolean",
        "allowuserexpungerecovervm": "boolean", "allowuserexpungerecovervolume": "boolean",
        "allowuserviewalldomainaccounts": "boolean", "defaultuipagesize": "long", "instancesstatsuseronly": "boolean",
        "instancesdisksstatsretentionenabled": "boolean", "apilimitmax": "integer",
        "apilimitinterval": "integer"},
    "hypervisor": {"name": "string"},
    "configuration": {
        "name": "string", "value": "string", "category": "string", "description": "string", "type": "string",
        "isdynamic": "boolean"},
    "api": {
        "name": "string", "description": "string", "isasync": "boolean", "related": "string", "params": "list",
        "response": "list", "roles": "list", "deprecated": "boolean", "replacement": "string", "since": "string"},
}
