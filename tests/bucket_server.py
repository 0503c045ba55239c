"""An S3 service that checks signatures and policies, with adapters in its buckets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
from moto.server import ThreadedMotoServer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

MAY_READ = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::models/*/adapter_*"}
"""Not to list: then S3 answers 403 for what is not there. moto does so for what the policy does not name."""


@dataclass(frozen=True)
class Bucket:
    """An S3 service with the bucket `models`: `bot/v1` and `of@acme/bot` have the adapter in `folder`, `empty/` has no
    weights, `large/` 300 KiB of them.

    credentials: settings of a server that may read it, with `s3_endpoint`.
    """

    url: str
    folder: Path
    credentials: dict[str, str]


@contextmanager
def running_bucket(folder: Path) -> Iterator[Bucket]:
    """On loopback. One at a time: what it has is state of this process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield _filled(server, folder)
    finally:
        server.stop()


def _filled(server: ThreadedMotoServer, folder: Path) -> Bucket:
    url = "http://{}:{}".format(*server.get_host_and_port())
    options = {"endpoint_url": url, "region_name": "us-east-1", "verify": False}
    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "unchecked"}
    iam, s3 = (boto3.client(service, **options, **anyone) for service in ("iam", "s3"))
    iam.create_user(UserName="loraplex")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [MAY_READ]})
    iam.put_user_policy(UserName="loraplex", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="loraplex")["AccessKey"]
    for bucket in ("models", "others"):
        s3.create_bucket(Bucket=bucket)
    adapter = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for prefix, files in {
        "bot/v1": adapter,
        "of@acme/bot": adapter,
        "empty": {CONFIG: adapter[CONFIG]},
        "large": adapter | {WEIGHTS: bytes(300 << 10)},
    }.items():
        for name, data in files.items():
            s3.put_object(Bucket="models", Key=f"{prefix}/{name}", Body=data)
    httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()  # from now on it checks who asks
    credentials = {"s3_access_key_id": key["AccessKeyId"], "s3_secret_access_key": key["SecretAccessKey"]}
    return Bucket(url, folder, credentials)
