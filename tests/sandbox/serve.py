"""Serves an aiohttp application from a thread of its own, with an event loop of its own.

The sandbox's stand-ins are asynchronous; the tests and the product that talk to them are not.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future

from aiohttp import web
from aiohttp.typedefs import Handler

BACKLOG = 1024  # a burst of a thousand clients waits in the kernel, it is not refused
STOP_SECONDS = 5.0  # how long stop() lets requests under way finish
END_SECONDS = 20.0  # then a thread is left to end with its process, and its stack is told


def join(thread: threading.Thread, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Wait for a thread of a stand-in to end. One that does not end in time is told in a warning: it must not block its owner."""
    thread.join(END_SECONDS)
    if not thread.is_alive():
        return
    told = io.StringIO()
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        task.print_stack(file=told)
    if thread.ident in (frames := sys._current_frames()):
        traceback.print_stack(frames[thread.ident], file=told)
    warnings.warn(f"{thread.name} did not end in {END_SECONDS:g} s:\n{told.getvalue()}", ResourceWarning, stacklevel=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@web.middleware
async def _forgive_a_hang_up(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A client that hangs up while its body is read is no error of the server: aiohttp would print a traceback."""
    try:
        return await handler(request)
    except ConnectionError:
        if request.transport is not None:
            raise
        return web.Response(status=499)  # nginx's number for it; nobody reads the answer


class Server:
    """One application, listening on `host`:`port` (0: any free one) from `start()` until `stop()`; over TLS with `tls`.

    Takes a factory rather than an application where one server is started more than once: aiohttp binds an application
    to the first event loop that runs it.
    """

    def __init__(
        self, app: web.Application | Callable[[], web.Application], host: str = "127.0.0.1", port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._app, self._host, self._port, self._tls = app, host, port, tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._started: Future[None]

    @property
    def port(self) -> int:
        """The port in use; the chosen one once started with 0, and kept over a later start()."""
        return self._port

    @property
    def url(self) -> str:
        """`http://host:port`, or `https://host:port`, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def start(self) -> Server:
        """Returns when the port answers. Raises what kept it from doing so (OSError: the port is taken)."""
        if self._thread is not None:
            raise RuntimeError("this server is running already")
        self._started = Future()
        self._thread = threading.Thread(target=self._run, name=f"server:{self._port}", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise
        return self

    def stop(self) -> None:
        """Stops listening, gives requests under way `STOP_SECONDS` to end, then runs the application's clean-up."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None or loop is None or stopping is None:
            return
        loop.call_soon_threadsafe(stopping.set)
        join(thread, loop)
        self._thread = self._loop = self._stopping = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        app = self._app if isinstance(self._app, web.Application) else self._app()
        app.middlewares.insert(0, _forgive_a_hang_up)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(
                runner, self._host, self._port, ssl_context=self._tls, backlog=BACKLOG, reuse_address=True
            ).start()
            self._port = runner.addresses[0][1]
            self._started.set_result(None)
            await self._stopping.wait()
        finally:
            await runner.cleanup()
