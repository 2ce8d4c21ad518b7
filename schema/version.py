"""Which version of Storebus this is. Owns nothing but the question: the answer is what was installed."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def installed_version() -> str:
    """For example 0.1.0; empty where the source is run without having been installed."""
    try:
        return version("storebus")
    except PackageNotFoundError:
        return ""


__all__ = ["installed_version"]
