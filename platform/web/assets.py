"""The static files of the pages: read once, served under a URL that holds the hash of them all.

One hash, so that scripts and styles can refer to each other by relative names. Whoever has a URL has what it stood for,
so browsers may keep it for ever.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

STATIC_DIR = Path(__file__).parent / "static"
KEEP = {"cache-control": "public, max-age=31536000, immutable"}
SERVED = {".css", ".js", ".svg"}


@dataclass(frozen=True, slots=True)
class Assets:
    """`files`: by name relative to the folder, with "/" between its parts."""

    digest: str
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> Assets:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in SERVED)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        whole = hashlib.sha256()
        for name, content in files.items():
            whole.update(f"{name}\0{len(content)}\0".encode() + content)
        return cls(whole.hexdigest()[:16], files)

    def url(self, name: str) -> str:
        """Of a file that is there; a template that names another one is wrong."""
        if name not in self.files:
            raise KeyError(name)
        return f"/admin/assets/{self.digest}/{name}"


@cache
def assets() -> Assets:
    """Those that came with this release."""
    return Assets.read(STATIC_DIR)


@get("/assets/{digest:str}/{name:path}", opt={"page": "file"})
async def get_asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    """A static file of this release."""
    content = assets().files.get(str(name).lstrip("/"))
    if content is None or digest != assets().digest:
        raise NotFoundException
    kind = mimetypes.guess_type(str(name))[0] or "application/octet-stream"
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=KEEP)
