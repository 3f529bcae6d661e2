"""A WebSocket echo server and its client.

    websocket_peer.py serve HOST PORT
    websocket_peer.py check URL      text, binary, large and fragmented messages, ping, close; prints "ok ..." lines
    websocket_peer.py hold URL       one connection until SIGTERM; prints a line for every answer, then "closed CODE"
"""

import asyncio
import signal
import sys

import websockets

LARGE = 2 * 1024 * 1024


async def echo(socket):
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosedError:
        pass  # closed with a code of its own
    print("closed by the client", socket.close_code, flush=True)


async def serve(host, port):
    async with websockets.serve(echo, host, int(port), max_size=2 * LARGE, compression=None):
        print("serving", flush=True)
        await asyncio.Future()


def connect(url):
    # No proxy of the environment: the connection has to be captured as it is.
    return websockets.connect(url, max_size=2 * LARGE, open_timeout=10, proxy=None)


async def check(url):
    async with connect(url) as socket:
        for message in ["hello", "ünïcode", "", b"\x00\xff" * 100, b"x" * LARGE]:
            await socket.send(message)
            answer = await asyncio.wait_for(socket.recv(), 20)
            if answer != message:
                sys.exit(f"FAILED: sent {message[:40]!r}, got {answer[:40]!r}")
        await socket.send(["frag", "men", "ts"])
        if await asyncio.wait_for(socket.recv(), 10) != "fragments":
            sys.exit("FAILED: fragments")
        await asyncio.wait_for(await socket.ping(), 10)
        await socket.close(4001, "enough")
        print("ok close", socket.close_code)


async def hold(url):
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    number = 0
    async with connect(url) as socket:
        while not end.is_set():
            await socket.send(str(number))
            answer = await asyncio.wait_for(socket.recv(), 10)
            if answer != str(number):
                sys.exit(f"FAILED: sent {number}, got {answer!r}")
            print(answer, flush=True)
            number += 1
            await asyncio.sleep(0.02)
        await socket.close()
        print("closed", socket.close_code, flush=True)


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    asyncio.run({"serve": serve, "check": check, "hold": hold}[mode](*arguments))
