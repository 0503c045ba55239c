"""Files in a folder of an S3-compatible bucket, by the library obstore, which is an extra: `loraplex[s3]`.

A folder is to be written once: its files are read one after the other, and no bucket offers all as of one moment.
Knows S3. Knows no job and no staging. Requests go to the operator's endpoint, or to AWS, and to where that redirects,
without the credentials and encrypted unless the endpoint itself is not.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from loraplex.platform.errors import ApiError, unavailable
from loraplex.platform.imports.download import Download
from loraplex.platform.imports.source_names import BucketFolder
from loraplex.platform.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Store

RETRY_SECONDS = 5
BLOCK_BYTES = 1 << 20


class BucketSource:
    """One folder of a bucket."""

    def __init__(self, store: S3Store, folder: BucketFolder) -> None:
        self._store = store
        self._folder = folder

    async def fetch(self, file: str, download: Download) -> None:
        import obstore
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        # What obstore says is not told: it quotes the service's answer, which may name keys and hosts.
        try:
            found = await obstore.get_async(self._store, file)
            download.expect(found.meta["size"])
            async for block in found.stream(min_chunk_size=BLOCK_BYTES):
                await download.write(bytes(block))
        except FileNotFoundError:
            message = f"There is no {file} in {self._folder}. Check the name, and that PEFT saved it as safetensors."
            raise ApiError(404, "source_not_found", message, param="source") from None
        except (PermissionDeniedError, UnauthenticatedError):
            message = f"The server may not read {self._folder}. The operator checks the S3 credentials and the policy."
            raise ApiError(403, "source_forbidden", message, param="source") from None
        except BaseError as error:
            message = f"The bucket cannot be read now ({type(error).__name__})."
            raise unavailable("source_unavailable", message, RETRY_SECONDS) from None
        if download.received_bytes != download.total_bytes:
            raise unavailable("source_unavailable", f"{file} came incomplete from the bucket.", RETRY_SECONDS)


def open_bucket(settings: Settings, folder: BucketFolder) -> BucketSource:
    """Credentials that are not in the settings are looked for as AWS's tools do."""
    from obstore.store import S3Store

    options: dict[str, Any] = {"region": settings.s3_region}
    if settings.s3_endpoint is not None:
        options["aws_endpoint_url_s3"] = settings.s3_endpoint  # of all ways to say it the one that wins
    if settings.s3_access_key_id is not None and settings.s3_secret_access_key is not None:
        options["access_key_id"] = settings.s3_access_key_id.get_secret_value()
        options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    store = S3Store(
        folder.bucket,
        prefix=folder.prefix or None,
        client_options={
            "allow_http": (settings.s3_endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=60),
            "timeout": timedelta(hours=1),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=30)},
        **options,
    )
    return BucketSource(store, folder)
