"""What an S3 image store is told: CloudStack's detail keys and a few more, and where that puts endpoint and bucket.

It owns the details' meaning and defaults. It refuses to open connections. Whatever could carry a secret outside the one
secret field (a password inside an address) is refused, so that everything but `secretkey` may be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from schema.failure import Refused
from schema.image import StoreSpec


class S3Settings(BaseModel):
    """Details of an S3 store. Times are milliseconds, as in CloudStack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accesskey: str = Field(min_length=1, description="Access key of the account.")
    secretkey: SecretStr = Field(min_length=1, description="Secret key of the account.")
    endpoint: str = Field("", description="host:port or http(s)://host:port; unset: taken from the url, else AWS.")
    bucket: str = Field("", description="Bucket, which must exist; unset: taken from the url.")
    usehttps: bool | None = Field(None, description="TLS; unset: as the endpoint says, else yes.")
    connectiontimeout: int = Field(10_000, ge=100, le=600_000, description="Milliseconds to wait for a connection.")
    sockettimeout: int = Field(60_000, ge=100, le=3_600_000, description="Milliseconds of silence before giving up.")
    maxerrorretry: int = Field(5, ge=0, le=20, description="How often a failed request is sent again.")
    s3signer: str = Field("", description="Ignored: version 4 signatures are always used, older ones are broken.")
    connectionttl: int | None = Field(None, description="Ignored: idle connections are closed after 12 s.")
    usetcpkeepalive: bool = Field(True, description="Keep-alive probes on idle connections.")
    region: str = Field("us-east-1", min_length=1, description="Region of the bucket.")
    pathstyle: bool = Field(True, description="endpoint/bucket (yes) or bucket.endpoint (no).")
    cafile: str = Field("", description="File with the authorities that sign the endpoint's certificate.")
    proxy: str = Field("", description="HTTP proxy, http://host:port, without a password.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bucket is. `endpoint` is None for AWS, which derives it from the region."""

    endpoint: str | None
    bucket: str

    @property
    def shown(self) -> str:
        """The endpoint as error texts name it."""
        return self.endpoint or "the AWS endpoint of the region"

    @property
    def tls(self) -> bool:
        """Whether the endpoint speaks TLS. AWS does."""
        return self.endpoint is None or self.endpoint.startswith("https://")


def find_place(spec: StoreSpec, settings: S3Settings) -> Place:
    """Endpoint and bucket from the details and the url (`s3://bucket`, `http(s)://host:port/bucket`).

    Raises Refused naming the detail that is missing, wrong, or says another thing than the url.
    """
    url = _split(spec.url, "url")
    if url.scheme not in ("", "s3", "http", "https"):
        raise Refused(f"{url.scheme}:// is not an address of S3", field="url",
                      remedy="use s3://bucket or https://host:port/bucket")
    bucket = url.netloc if url.scheme == "s3" else url.path.strip("/") if url.scheme else ""
    if settings.bucket and url.scheme != "s3" and bucket and bucket != settings.bucket:
        raise Refused("the url and the detail name different buckets", field="details.bucket", remedy="name one")
    bucket = settings.bucket or bucket
    if not bucket or "/" in bucket:
        raise Refused("no bucket is named" if not bucket else "a bucket's name holds no slash", field="details.bucket",
                      remedy="name one in the url (s3://bucket) or in the details")
    if settings.cafile and not Path(settings.cafile).is_file():
        raise Refused("there is no such file on this agent's host", field="details.cafile",
                      remedy="put the authority's certificate there")
    proxy = _split(settings.proxy, "details.proxy")
    if settings.proxy and proxy.scheme not in ("http", "https"):
        raise Refused("not an address of a proxy", field="details.proxy", remedy="use http://host:port")
    return Place(_endpoint(settings, url), bucket)


def _endpoint(settings: S3Settings, url: SplitResult) -> str | None:
    text = settings.endpoint
    if not text:
        if url.scheme not in ("http", "https"):
            return None
        text = f"{url.scheme}://{url.netloc}"
    if "://" not in text:
        text = f"{'http' if settings.usehttps is False else 'https'}://{text}"
    found = _split(text, "details.endpoint")
    if found.scheme not in ("http", "https") or not found.hostname or found.path.strip("/") or found.query:
        raise Refused("not an address of S3", field="details.endpoint", remedy="use host:port or https://host:port")
    if settings.usehttps is not None and settings.usehttps != (found.scheme == "https"):
        raise Refused(f"says otherwise than the endpoint, which is {found.scheme}", field="details.usehttps",
                      remedy="leave one of them out")
    return f"{found.scheme}://{found.netloc}"


def _split(text: str, field: str) -> SplitResult:
    """An address in its parts; a password inside it is refused without being repeated."""
    try:
        found = urlsplit(text)
        _ = found.port
    except ValueError:
        raise Refused("not an address", field=field, remedy="correct it") from None
    if "@" in found.netloc:
        raise Refused("an address may not hold a user or password", field=field, remedy="use the details instead")
    return found
