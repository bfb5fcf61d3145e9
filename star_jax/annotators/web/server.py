"""The page over HTTP, on this machine alone: Starlette serves it, under a path that nobody can guess.

Nothing is fetched from elsewhere and nothing is sent anywhere; the browser is told to allow neither.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from star_jax.annotators.web.pages import Chosen, Pages, person

LOOPBACK = "127.0.0.1"
"""The one address that is listened on."""

LARGEST_FORM = 4 << 20
"""Bytes of a form that are read: the longest answer and what it replaces, with 12 bytes a character, fit in."""

LOOK_SECONDS = 0.5
"""Between two looks at whether the run should go on."""

COOKIE = "star_jax_annotator"
"""Remembers a person's name in the browser."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer."""

TOO_LARGE = "what was sent is too large, and was not saved; shorten the answer"

_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}


class _TooLarge(Exception):
    """A form has more than `LARGEST_FORM` bytes."""


def make_app(pages: Pages, token: str) -> Starlette:
    """The application.

    Args:
      pages: what is served.
      token: part of every address; whoever does not have it gets 404 throughout.
    """
    base = f"/{token}/"

    async def index(request: Request) -> Response:
        query = request.query_params
        chosen = Chosen(_who(request), query.get("id"), query.get("second") == "1")
        return await run_in_threadpool(lambda: _page(pages.show(chosen, base)))

    async def state(request: Request) -> Response:
        return JSONResponse({"version": await run_in_threadpool(pages.version)}, headers=HEADERS)

    async def name(request: Request) -> Response:
        form = await _form(request)
        answer = _elsewhere(base, {"second": "1"} if form.get("second") == "1" else {})
        answer.set_cookie(
            COOKIE, quote(person(form.get("who", ""))), max_age=10**8, path=base, httponly=True, samesite="strict"
        )
        return answer

    async def act(request: Request) -> Response:
        form, who = await _form(request), _who(request)
        if form.get("other", "").strip() and not form.get("reason"):
            form["reason"] = form["other"]
        chosen = await run_in_threadpool(lambda: pages.post(request.path_params["action"], form, who))
        if chosen is None:
            return PlainTextResponse("there is no such page", 404, headers=HEADERS)
        if chosen.message:
            return await run_in_threadpool(lambda: _page(pages.show(chosen, base), 422))
        query = {} if chosen.name is None else {"id": chosen.name}
        return _elsewhere(base, query | ({"second": "1"} if chosen.second else {}))

    async def too_large(request: Request, error: Exception) -> Response:
        chosen = Chosen(_who(request), message=TOO_LARGE)
        return await run_in_threadpool(lambda: _page(pages.show(chosen, base), 413))

    routes = [
        Route("/", index),
        Route("/state", state),
        *(Route(f"/{file}", _static(file, kind)) for file, kind in _STATIC.items()),
        Route("/name", name, methods=["POST"]),
        Route("/{action}", act, methods=["POST"]),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)], middleware=[hosts], exception_handlers={_TooLarge: too_large}
    )


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status, headers=HEADERS)


def _elsewhere(base: str, query: dict[str, str]) -> Response:
    """After a form, so that a reload sends nothing twice."""
    return RedirectResponse(f"{base}?{urlencode(query)}" if query else base, 303, headers=HEADERS)


def _static(file: str, kind: str) -> Callable[[Request], Response]:
    content = (Path(__file__).parent / file).read_bytes()
    return lambda request: Response(content, media_type=kind, headers=HEADERS)


def _who(request: Request) -> str:
    cookie = request.cookies.get(COOKIE)
    return person(unquote(cookie)) if cookie is not None else request.app.state.who


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
      _TooLarge: once all of it has come, so that the browser hears the answer; nothing of it is kept then.
    """
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= LARGEST_FORM:
            body += part
    if size > LARGEST_FORM:
        raise _TooLarge
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def bind(port: int) -> socket.socket:
    """A socket on this machine's own address.

    Args:
      port: of it; any that is free when 0.

    Raises:
      OSError: the port is taken.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # A server that was killed a moment ago does not keep its port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
        bound.listen()  # who comes before the server runs waits for it
    except OSError:
        bound.close()
        raise
    return bound


def serve(
    pages: Pages, bound: socket.socket, token: str, who: str = "", stopped: Callable[[], bool] = lambda: False
) -> None:
    """Serves until it is interrupted, and looks all the time whether the run should go on.

    Args:
      pages: what is served.
      bound: as from `bind`.
      token: as in `make_app`.
      who: name of whoever has not said another one.
      stopped: whether Ctrl-C was pressed, for an interrupt that some library has dropped.
    """
    app = make_app(pages, token)
    app.state.who = person(who)
    # What browsers keep open should not keep the command from ending.
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    over = threading.Event()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_watch, args=(pages, server, stopped, over), daemon=True)
    thread.start()
    try:
        server.run(sockets=[bound])
    finally:
        over.set()
        thread.join()


def _watch(pages: Pages, server: uvicorn.Server, stopped: Callable[[], bool], over: threading.Event) -> None:
    while not over.wait(LOOK_SECONDS):
        if stopped():
            server.should_exit = True
            return
        pages.continuation.look()
