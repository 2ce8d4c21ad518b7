"""The private S3 server of tests: the demo's own launcher."""

from __future__ import annotations

from api.demo_s3 import SeaweedFS, ServerFailed, ServerMissing, find_weed, start_seaweedfs

__all__ = ["SeaweedFS", "ServerFailed", "ServerMissing", "find_weed", "start_seaweedfs"]
