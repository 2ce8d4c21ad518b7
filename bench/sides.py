"""The stores that backups are measured on, and what their own clients do there: the peers' half of bench/backup.py.

Each side is a running server with its spec for us, and for the peer the usual client with the usual settings: 10 threads,
8 MiB. Nothing of agents/ is used here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import sysconfig
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from swiftclient.client import Connection
from swiftclient.exceptions import ClientException
from swiftclient.service import SwiftError, SwiftService, SwiftUploadObject

from api.demo_s3 import SeaweedFS
from schema.image import StoreSpec
from tests.services.swift import SwiftServer

PART, THREADS = 8 << 20, 10
LARGE = 32 << 20
"""Bytes of a segment that costs Swift the least."""
TRANSFER = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=THREADS)


class Side(Protocol):
    """A store and its usual client."""

    name: str
    """S3 or Swift."""
    upload_name: str
    """How the usual client uploads a file."""
    raw_name: str
    """How it uploads from memory."""
    floor: float
    """How many times faster than upload a backup must be."""
    spec: StoreSpec
    secrets: dict[str, str]

    async def upload(self, path: Path) -> None:
        """A file, as its documentation says."""

    async def upload_memory(self, data: bytes) -> None:
        """The same from memory, in parts."""

    async def download(self, key: str, path: Path) -> None:
        """An object to a file."""

    async def least(self, path: Path) -> float:
        """Seconds for as many bytes from a sender that does nothing: nothing is read from a disk, hashed, encoded or compared, but by
        the server, which checks what it checks for us. It is about what the server needs for them on this machine, and so the
        least for a client that shares it."""

    async def clean(self) -> None:
        """Delete every object."""

    def close(self) -> None:
        """Stop the server."""


class S3Side:
    """SeaweedFS and boto3."""

    name = "S3"
    upload_name = "boto3 upload_file (10 threads, 8 MiB)"
    raw_name = "boto3 upload_fileobj from memory (10 threads, 8 MiB)"
    floor = 1.3

    def __init__(self, server: SeaweedFS) -> None:
        self.server, self.bucket = server, server.bucket
        self.client = boto3.client("s3", endpoint_url=server.endpoint, aws_access_key_id=server.access_key,
                                   aws_secret_access_key=server.secret_key, region_name="us-east-1",
                                   config=Config(max_pool_connections=16))
        self.spec = StoreSpec(id=uuid4(), name="s", provider="s3", url=f"s3://{server.bucket}", prefix="bench",
                              details={"accesskey": server.access_key, "endpoint": server.endpoint, "bucket": server.bucket,
                                       "secretkey": "vault:x"})
        self.secrets = {"secretkey": server.secret_key}

    async def upload(self, path: Path) -> None:
        await asyncio.to_thread(self.client.upload_file, str(path), self.bucket, "peer.qcow2", None, None, TRANSFER)

    async def upload_memory(self, data: bytes) -> None:
        await asyncio.to_thread(self.client.upload_fileobj, io.BytesIO(data), self.bucket, "peer.raw", None, None, TRANSFER)

    async def download(self, key: str, path: Path) -> None:
        await asyncio.to_thread(self.client.download_file, self.bucket, key, str(path), None, None, TRANSFER)

    async def least(self, path: Path) -> float:
        names = {"Bucket": self.bucket, "Key": "least"}

        def send() -> float:
            with path.open("rb") as file:  # all parts of the file are alike
                digest = b64encode(hashlib.sha256(file.read(PART)).digest()).decode()
            began = time.perf_counter()
            upload = self.client.create_multipart_upload(**names, ChecksumAlgorithm="SHA256")["UploadId"]
            urls = [self.client.generate_presigned_url("upload_part", {
                **names, "UploadId": upload, "PartNumber": number + 1, "ChecksumSHA256": digest})
                    for number in range(path.stat().st_size // PART)]
            answers = send_file(path, PART, urls, {"x-amz-checksum-sha256": digest})
            self.client.complete_multipart_upload(**names, UploadId=upload, MultipartUpload={"Parts": [
                {"PartNumber": number + 1, "ETag": answer["ETag"], "ChecksumSHA256": digest} for number, answer in enumerate(answers)]})
            return time.perf_counter() - began

        return await asyncio.to_thread(send)

    async def clean(self) -> None:
        def clean() -> None:
            for item in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
                self.client.delete_object(Bucket=self.bucket, Key=item["Key"])

        await asyncio.to_thread(clean)

    def close(self) -> None:
        self.client.close()
        self.server.kill()


class SwiftSide:
    """OpenStack Swift and python-swiftclient: its command for a file, its service, which that command is made of, for memory."""

    name = "Swift"
    upload_name = "swift upload with segments (10 threads, 8 MiB)"
    raw_name = "SwiftService.upload of segments from memory (10 threads, 8 MiB)"
    floor = 1.3

    def __init__(self, server: SwiftServer) -> None:
        self.container = "bench"
        self.user = f"{server.account}:{server.username}"
        self.server = server
        self.options = {"auth": server.url, "user": self.user, "key": server.key, "auth_version": "1.0", "use_slo": True,
                        "object_uu_threads": THREADS, "segment_threads": THREADS, "checksum": True}
        self.spec = StoreSpec(id=uuid4(), name="s", provider="swift", url=server.url, prefix="bench",
                              details={"account": server.account, "username": server.username, "container": self.container,
                                       "key": "vault:x"})
        self.secrets = {"key": server.key}

    async def upload(self, path: Path) -> None:
        program = Path(sysconfig.get_path("scripts")) / "swift"
        await command(str(program), "-q", "-A", self.server.url, "-U", self.user, "-K", self.server.key, "upload", "--use-slo", "-S", str(PART),
                   "--segment-threads", str(THREADS), "--object-name", "peer.qcow2", "peer", str(path))

    async def upload_memory(self, data: bytes) -> None:
        def upload() -> None:
            with SwiftService(options=self.options) as service:
                items = [SwiftUploadObject(io.BytesIO(data[at:at + PART]), object_name=f"{at:016}") for at in range(0, len(data), PART)]
                for answer in service.upload("raw", items):
                    if not answer["success"]:
                        raise SwiftError(str(answer["error"]))

        await asyncio.to_thread(upload)

    async def download(self, key: str, path: Path) -> None:
        program = Path(sysconfig.get_path("scripts")) / "swift"
        await command(str(program), "-q", "-A", self.server.url, "-U", self.user, "-K", self.server.key, "download", self.container, key,
                   "-o", str(path))

    async def least(self, path: Path) -> float:
        def send() -> float:
            began = time.perf_counter()
            with contextlib.closing(Connection(self.server.url, self.user, self.server.key, auth_version="1")) as swift:
                url, token = swift.get_auth()
                swift.put_container("least")
            send_file(path, LARGE, [f"{url}/least/{number:016}" for number in range(path.stat().st_size // LARGE)], {"X-Auth-Token": token})
            return time.perf_counter() - began

        return await asyncio.to_thread(send)

    async def clean(self) -> None:
        def clean() -> None:
            with contextlib.closing(Connection(self.server.url, self.user, self.server.key, auth_version="1")) as swift, ThreadPoolExecutor(THREADS) as pool:
                for container in [found["name"] for found in swift.get_account()[1]]:
                    names = [found["name"] for found in swift.get_container(container, full_listing=True)[1]]
                    list(pool.map(lambda name, container=container: self._delete(container, name), names))

        await asyncio.to_thread(clean)

    def _delete(self, container: str, name: str) -> None:
        with contextlib.closing(Connection(self.server.url, self.user, self.server.key, auth_version="1")) as swift, contextlib.suppress(ClientException):
            swift.delete_object(container, name)

    def close(self) -> None:
        self.server.stop()


def send_file(path: Path, part: int, urls: Sequence[str], headers: Mapping[str, str]) -> list[Mapping[str, str]]:
    """PUT each part of a file to its address, four at once, by sendfile; the answers' headers. Raises RuntimeError."""
    def one(number: int) -> Mapping[str, str]:
        where = urlsplit(urls[number])
        server = HTTPConnection(where.netloc)
        with contextlib.closing(server), path.open("rb") as file:
            server.putrequest("PUT", f"{where.path}?{where.query}")
            for name, value in {**headers, "Content-Length": str(part)}.items():
                server.putheader(name, value)
            server.endheaders()
            server.sock.sendfile(file, number * part, part)
            answer = server.getresponse()
            answer.read()
            if answer.status not in (200, 201):
                raise RuntimeError(f"PUT {where.path}: {answer.status}")
            return answer.headers

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(len(urls))))


async def command(*arguments: str) -> None:
    """Run a program as it is, to its end."""
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.DEVNULL)
    if await process.wait():
        raise RuntimeError(f"{arguments[0]} ended with status {process.returncode}")
