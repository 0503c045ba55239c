"""/v1/batches: requests from a file, answered in a file within a day. The work itself is in `platform/batches`."""

from __future__ import annotations

from typing import Annotated

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.openai.batch_types import ENDPOINTS, MAX_LABELS, BatchList, BatchObject, CreateBatch
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


@post("/batches", status_code=200, opt={"scope": "inference"} | audited("batch.create"), tags=["openai"])
async def create_batch(
    data: JSONBody[CreateBatch],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> BatchObject:
    """Have the requests in a file answered within a day, beside live traffic and behind it.

    Each line of the file is {custom_id, method, url, body}: what would be sent to `endpoint`, as the key that makes the
    batch. A batch with wrong lines fails as a whole, and `errors` has each of them with its number. Answers come in no
    order that is promised: go by `custom_id`.
    """
    if data.endpoint not in ENDPOINTS:
        message = f"'endpoint' must be one of {', '.join(ENDPOINTS)}."
        raise ApiError(400, "invalid_value", message, param="endpoint")
    if len(data.metadata or {}) > MAX_LABELS:
        raise ApiError(400, "invalid_value", f"'metadata' has at most {MAX_LABELS} entries.", param="metadata")
    file = await services.files.get(tenant_id, data.input_file_id, "input_file_id")
    if file.purpose != "batch":
        message = f"This file has the purpose {file.purpose}; upload the input with the purpose batch."
        raise ApiError(400, "invalid_value", message, param="input_file_id")
    expires, default_seconds = data.output_expires_after, services.settings.file_expiry_seconds
    batch = await services.batches.create(
        tenant_id,
        api_key_id=principal.key_id,
        base_model=services.base_model_name,
        endpoint=data.endpoint,
        input_file_id=data.input_file_id,
        output_seconds=int(default_seconds) if expires is None else expires.seconds,
        labels=data.metadata,
        max_open=services.settings.max_batches_per_tenant,
        by=by,
    )
    return BatchObject.of(batch)


@get("/batches", opt={"scope": "inference"}, tags=["openai"])
async def list_batches(
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: Annotated[str | None, QueryParameter(max_length=64)] = None,
) -> BatchList:
    """Your batches, the newest first. Of those that have ended the last 1000 are kept."""
    found = await services.batches.list(tenant_id, limit + 1, after)
    page = [BatchObject.of(batch) for batch in found[:limit]]
    ends = (page[0].id, page[-1].id) if page else (None, None)
    return BatchList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit)


@get("/batches/{batch_id:str}", opt={"scope": "inference"}, tags=["openai"])
async def get_batch(
    batch_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> BatchObject:
    """How far a batch is, or how it ended."""
    return BatchObject.of(await services.batches.get(tenant_id, batch_id))


@post(
    "/batches/{batch_id:str}/cancel",
    status_code=200,
    opt={"scope": "inference"} | audited("batch.cancel"),
    tags=["openai"],
)
async def cancel_batch(
    batch_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> BatchObject:
    """Cancel a batch: within seconds it is cancelled, with files of what was answered and what was not."""
    return BatchObject.of(await services.batches.cancel(tenant_id, batch_id, by=by))


BATCH_ROUTES = [create_batch, list_batches, get_batch, cancel_batch]
