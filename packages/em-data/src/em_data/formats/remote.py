"""Servers: object stores behind `http(s)://`, `s3://` and `gs://` addresses, through obstore.

S3 is set up by the usual variables of the environment: `AWS_ENDPOINT_URL`, `AWS_REGION`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`. Without credentials there the
access is anonymous, since most public volumes are; `AWS_SKIP_SIGNATURE=false` asks obstore to look
for the credentials of the machine instead. Google storage likewise, with
`GOOGLE_APPLICATION_CREDENTIALS` and `GOOGLE_SKIP_SIGNATURE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from em_data.errors import VolumeNotFoundError, VolumeReadError
from em_data.formats.optional import ForkGuard, import_extra

SCHEMES = ("http://", "https://", "s3://", "gs://")
GUARD = ForkGuard("obstore (for remote volumes)")
# One or the other of these tells that requests are to be signed.
AWS_SIGNED = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
GOOGLE_SIGNED = (
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"),
    *("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SKIP_SIGNATURE"),
)


def is_remote(address: str) -> bool:
    """Whether an address names a server."""
    return address.startswith(SCHEMES)


def remote_store(address: str, *, retries: int) -> Any:
    """The obstore store whose root is `address`. Nothing is asked of the server yet."""
    stores = import_extra("obstore.store", "remote", "volumes on servers")
    options: dict[str, Any] = {
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(minutes=1)},
        "client_options": {"connect_timeout": "5 s", "timeout": "60 s"},
    }
    if address.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
        if not any(name in os.environ for name in AWS_SIGNED):
            options["skip_signature"] = True
        return stores.S3Store.from_url(address, **options)
    if address.startswith("gs://"):
        if not any(name in os.environ for name in GOOGLE_SIGNED):
            options["skip_signature"] = True
        return stores.GCSStore.from_url(address, **options)
    options["client_options"]["allow_http"] = address.startswith("http://")
    return stores.HTTPStore.from_url(address, **options)


def found_at(address: str, names: Iterable[str]) -> set[str]:
    """Which of the files `names` exist below `address`.

    When none does and the server gave another answer than "not found", that answer is raised.
    """
    GUARD.enter()
    store = remote_store(address, retries=2)
    names = list(names)
    with ThreadPoolExecutor(len(names)) as pool:
        answers = dict(zip(names, pool.map(lambda name: _ask(store, name), names), strict=True))
    found = {name for name, answer in answers.items() if answer is None}
    for answer in answers.values():
        if not found and answer and not isinstance(answer, FileNotFoundError):
            raise explained(answer, address)
    return found


def _ask(store: Any, name: str) -> Exception | None:
    obstore = import_extra("obstore", "remote", "volumes on servers")
    try:
        obstore.get(store, name)  # not HEAD, which some servers forbid
    except (OSError, obstore.exceptions.BaseError) as error:
        return error
    return None


def is_refusal(error: Exception) -> bool:
    """Whether the server says that this may not be read (401 or 403)."""
    return type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")


def explained(error: Exception, address: str) -> OSError:
    """An answer of obstore as an error for people."""
    reason = str(error).partition("\n")[0].strip()  # what follows is obstore's own state
    if isinstance(error, FileNotFoundError):
        return VolumeNotFoundError(f"nothing at {address}: {reason}; check the address")
    if is_refusal(error):
        return VolumeReadError(
            f"{address} is refused by the server (401 or 403): {reason}; check the address and the "
            "credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY): many servers answer "
            "so for what does not exist, too"
        )
    return VolumeReadError(
        f"{address} cannot be fetched: {reason}; check the address, the network and the server"
    )
