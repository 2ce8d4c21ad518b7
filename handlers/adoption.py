"""Adoption: whether a URL names an object of a registered image store, and which. A pure function of the directory.

Rules kept here: an address is parsed and compared by its parts (scheme, host and port, bucket, folders), never as text; a key
that is not plain (empty, hidden or climbing parts, control characters) is refused; what this installation keeps there itself
belongs to its things and is nobody's to take. Refuses to look at bytes: that is an agent's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import UUID

from handlers.directory import Directory, Store
from schema.failure import BadParameter, Denied

WEB = ("http", "https")
PORTS = {"http": 80, "https": 443}
UPLOADS = "uploads"
"""The one folder below the installation's own prefix from which objects are taken."""
LONGEST = 900
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class _Root:
    """Where a store's objects begin."""

    scheme: str
    authority: str
    """`host:port`, a bucket or a container."""
    folders: tuple[str, ...] = ()


def find(directory: Directory, url: str, zone_id: UUID, store_id: UUID | None, *, allowed: bool) -> tuple[Store, str] | None:
    """The store and the key that a URL names; None for an http(s) URL that is to be fetched.

    `store_id`: the only store that may be meant. `allowed`: whether the caller may have objects of stores. Raises BadParameter
    for what is no address, no object here, or one of several; Denied."""
    address = _address(url)
    stores = [store for store in directory.stores.values() if store.state == "Ready" and store_id in (None, store.spec.id)
              and (store.scope == "REGION" or store.zone_id == zone_id)]
    found = {store.spec.id: (store, key) for store in stores for root in _roots(store) if (key := _below(address, root))}
    if address.scheme in WEB and (not found or not allowed or address.query):
        return None
    if not allowed:
        raise Denied("only root admins take objects of image stores as they lie there", field="url", remedy="give an http(s) URL")
    if not found:
        raise BadParameter(f"no image store that reaches the zone holds {address.scheme}://{address.netloc}", field="url",
                           remedy="add it with addImageStore, or give an http(s) URL, which is fetched")
    if len(found) > 1:
        names = ", ".join(sorted(store.spec.name for store, _ in found.values()))
        raise BadParameter(f"several image stores hold it: {names}", field="imagestoreuuid", remedy="name the one that is meant")
    [(store, key)] = found.values()
    _mine_to_take(store, key)
    return store, key


def _address(url: str) -> SplitResult:
    try:
        found = urlsplit(url)
        _ = found.port
    except ValueError:
        raise BadParameter("not an address", field="url", remedy="correct it") from None
    if not found.scheme:
        raise BadParameter("it has no scheme", field="url", remedy="give http(s)://, or an object as s3://bucket/key")
    if "@" in found.netloc:
        raise BadParameter("an address may not hold a user or password", field="url", remedy="leave it out")
    return found


def _below(address: SplitResult, root: _Root) -> str:
    """The key below a root that an address names; empty when it is not below it."""
    if address.scheme != root.scheme or _authority(address) != root.authority or address.fragment:
        return ""
    folders = [unquote(part) for part in address.path.split("/")[1:]]
    inside = folders[len(root.folders):]
    return "/".join(inside) if tuple(folders[:len(root.folders)]) == root.folders and any(inside) else ""


def _authority(address: SplitResult) -> str:
    if address.scheme in WEB:
        return f"{(address.hostname or '').rstrip('.')}:{address.port or PORTS[address.scheme]}"
    return (address.hostname or "") if address.scheme == "nfs" else address.netloc


def _roots(store: Store) -> list[_Root]:
    """Every way in which a store's place is written."""
    spec = store.spec
    own = urlsplit(spec.url)
    match spec.provider:
        case "s3":
            return _buckets(own, spec.details)
        case "swift":
            return [_Root("swift", spec.details.get("container") or "storebus")]
        case "nfs":
            return [_Root("nfs", own.hostname or "", _folders(own.path))]
        case _:
            path = spec.details.get("path") or unquote(own.path)
            folders = _folders(path)
            return [_Root(scheme, "", folders) for scheme in ("folder", "file")] if folders else [
                _Root(own.scheme, own.netloc)] if own.scheme and own.netloc else []


def _buckets(own: SplitResult, details: dict[str, str]) -> list[_Root]:
    bucket = details.get("bucket") or (own.netloc if own.scheme == "s3" else own.path.strip("/"))
    if not bucket:
        return []
    text = details.get("endpoint") or (f"{own.scheme}://{own.netloc}" if own.scheme in WEB else "")
    if text and "://" not in text:
        text = f"{'http' if details.get('usehttps', '').lower() == 'false' else 'https'}://{text}"
    roots = [_Root("s3", bucket)]
    endpoint = urlsplit(text)
    if endpoint.scheme in WEB and endpoint.hostname:
        host, port = endpoint.hostname.rstrip("."), endpoint.port or PORTS[endpoint.scheme]
        roots += [_Root(endpoint.scheme, f"{host}:{port}", (bucket,)), _Root(endpoint.scheme, f"{bucket.lower()}.{host}:{port}")]
    return roots


def _folders(path: str) -> tuple[str, ...]:
    return tuple(part for part in unquote(path).split("/") if part)


def _mine_to_take(store: Store, key: str) -> None:
    """Raises BadParameter for a key that is not plain, or of an object that is a thing's already."""
    parts = key.split("/")
    if len(key) > LONGEST or _CONTROL.search(key) or any(not part or part.startswith(".") for part in parts):
        raise BadParameter("the object's name is not plain: it has empty parts, parts that begin with a dot, a backslash or "
                           "control characters, or is too long", field="url", remedy="copy the object to a plain name")
    if key.endswith(".manifest.json"):
        raise BadParameter("this is the manifest of an object, and no image", field="url", remedy="name the object")
    if parts[0] == store.spec.prefix and parts[1:2] != [UPLOADS]:
        raise BadParameter("the object belongs to a template, a snapshot or a volume of this installation", field="url",
                           remedy=f"make a volume of that; own objects are taken from {store.spec.prefix}/{UPLOADS}/, or from "
                                  "outside of that prefix")


__all__ = ["UPLOADS", "find"]
