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
        "allowuserviewalldomainaccounts": "boolean", "defaultuipagesize": "long", "apilimitmax": "integer",
        "apilimitinterval": "integer"},
    "api": {
        "name": "string", "description": "string", "isasync": "boolean", "related": "string", "params": "list",
        "response": "list", "roles": "list", "deprecated": "boolean", "replacement": "string"},
}
