"""What a streamed token costs whoever serves it, if nothing is done for it: an event loop woken, and a few bytes sent.

How much that is depends on the machine, and on how its system wakes threads: a virtual machine may take ten times as
long as the one that it runs on. A server's time per token is read beside it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time

TOKENS = 200
_CHUNK = b"x" * 250
_PATIENCE_S = 30.0
_READER = "import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\nwhile s.recv(65536): pass"


def bare_token_us(pause_s: float, count: int = TOKENS) -> float:
    """Processor time per token of a thread that only wakes up and sends, in microseconds.

    Args:
        pause_s: Between two tokens. Caches are as warm as the rest of the machine leaves them meanwhile.
        count: How many.

    Raises:
        OSError: There is no loopback interface, or nobody to read from it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_PATIENCE_S)
        reader = subprocess.Popen([sys.executable, "-c", _READER, str(listener.getsockname()[1])])
        try:
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
                return asyncio.run(_tick(connection, pause_s, count))
        finally:
            reader.kill()
            reader.wait()


async def _tick(connection: socket.socket, pause_s: float, count: int) -> float:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    sent = 0

    def token() -> None:
        nonlocal sent
        connection.send(_CHUNK)
        sent += 1
        if sent == count:
            done.set_result(None)

    def engine() -> None:
        for _ in range(count):
            time.sleep(pause_s)
            loop.call_soon_threadsafe(token)

    thread = threading.Thread(target=engine, daemon=True)
    before = time.thread_time()
    thread.start()
    await done
    spent = time.thread_time() - before
    thread.join()
    return 1e6 * spent / count
