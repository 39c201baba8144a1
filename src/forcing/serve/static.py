"""The page's files. What is asked for is compared with what is there, and never opened by its name."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

PAGE = Path(__file__).parent / "page"
TYPES = {  # of our own, for those of the machine may be anything
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}


async def page(request: Request) -> Response:
    """A file of the page; browsers ask each time whether it is still the same."""
    asked = request.path_params["name"] or "index.html"
    here = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.suffix in TYPES}
    if asked not in here:
        return PlainTextResponse("there is no such page", 404)
    data = here[asked].read_bytes()
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=TYPES[here[asked].suffix], headers=headers)
