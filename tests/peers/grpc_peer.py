"""A gRPC service and its client in another language. Messages are plain bytes: no generated code.

    grpc_peer.py serve ADDRESS NAME [CODE]   with a code: every unary call fails with it, and so do health checks
    grpc_peer.py check TARGET        all four kinds of calls; prints one "ok ..." line each
    grpc_peer.py hold TARGET         one bidirectional stream until SIGTERM; prints every answer, then the status
"""

import hashlib
import queue
import signal
import sys
import threading
from concurrent import futures

import grpc

SERVICE = "outrigger.test.Echo"
LARGE = 3 * 1024 * 1024


# --- server ---


def unary(request, context):
    if FAILS_WITH:
        context.abort(grpc.StatusCode[FAILS_WITH], "as started")
    context.send_initial_metadata((("x-initial", "first"),))
    context.set_trailing_metadata((("x-trailer", "last"), ("x-bin-bin", b"\x00\xff")))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail: ünïcode 100%")
    if request == b"sleep":
        threading.Event().wait(20)
    if request == b"caller":
        return dict(context.invocation_metadata()).get("x-forwarded-client-cert", "none").encode()
    return request


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, context):
    digest = hashlib.sha256()
    for request in requests:
        digest.update(request)
    return digest.hexdigest().encode()


def bidi(requests, context):
    for request in requests:
        yield NAME + b":" + request


def health(request, context):
    # grpc.health.v1.HealthCheckResponse: field 1 is the status, 1 is SERVING, 2 is NOT_SERVING.
    return b"\x08\x02" if FAILS_WITH else b"\x08\x01"


def serve(address):
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    check = {"Check": grpc.unary_unary_rpc_method_handler(health)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", check),))
    if not server.add_insecure_port(address):
        sys.exit(f"cannot listen on {address}")
    server.start()
    print("serving", address, flush=True)
    server.wait_for_termination()


# --- client ---


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"FAILED {what}: got {got!r}, wanted {wanted!r}")


def check(channel):
    call = channel.unary_unary(f"/{SERVICE}/Unary")
    answer, outcome = call.with_call(b"hello", timeout=10)
    expect("unary", answer, b"hello")
    expect("initial metadata", dict(outcome.initial_metadata()).get("x-initial"), "first")
    trailers = dict(outcome.trailing_metadata())
    expect("trailers", (trailers.get("x-trailer"), trailers.get("x-bin-bin")), ("last", b"\x00\xff"))
    large = bytes(range(256)) * (LARGE // 256)
    expect("large unary", call(large, timeout=20) == large, True)
    print("ok unary")

    try:
        call(b"fail", timeout=10)
        sys.exit("FAILED status: no error")
    except grpc.RpcError as error:
        expect("status", error.code(), grpc.StatusCode.FAILED_PRECONDITION)
        expect("message", error.details(), "told to fail: ünïcode 100%")
        expect("trailers of a failure", dict(error.trailing_metadata()).get("x-trailer"), "last")
    try:
        channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=10)
        sys.exit("FAILED unimplemented: no error")
    except grpc.RpcError as error:
        expect("unimplemented", error.code(), grpc.StatusCode.UNIMPLEMENTED)
    try:
        call(b"sleep", timeout=0.3)
        sys.exit("FAILED deadline: no error")
    except grpc.RpcError as error:
        expect("deadline", error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    print("ok status")

    stream = channel.unary_stream(f"/{SERVICE}/ServerStream")
    expect("server stream", list(stream(b"500", timeout=20)), [b"%d" % n for n in range(500)])
    expect("empty server stream", list(stream(b"0", timeout=10)), [])
    print("ok server-stream")

    chunks = [b"%d" % n * 100 for n in range(300)]
    digest = hashlib.sha256(b"".join(chunks)).hexdigest().encode()
    upload = channel.stream_unary(f"/{SERVICE}/ClientStream")
    expect("client stream", upload(iter(chunks), timeout=20), digest)
    print("ok client-stream")

    # Ping-pong: each message waits for the answer to the one before, so nothing may be held back.
    sent = queue.Queue()
    answers = channel.stream_stream(f"/{SERVICE}/Bidi")(iter(sent.get, None), timeout=20)
    for number in range(100):
        sent.put(b"%d" % number)
        expect("ping-pong", next(answers).split(b":", 1)[1], b"%d" % number)
    sent.put(None)
    expect("end of ping-pong", list(answers), [])
    expect("status of ping-pong", answers.code(), grpc.StatusCode.OK)
    print("ok bidi")

    print("caller", call(b"caller", timeout=10).decode())


def hold(channel):
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    sent = queue.Queue()
    answers = channel.stream_stream(f"/{SERVICE}/Bidi")(iter(sent.get, None))
    number = 0
    try:
        while not end.wait(0.02):
            sent.put(b"%d" % number)
            print(next(answers).decode(), flush=True)
            number += 1
        sent.put(None)
        expect("end", list(answers), [])
        print("closed", answers.code().name, flush=True)
    except grpc.RpcError as error:
        sys.exit(f"FAILED after {number} messages: {error.code()} {error.details()}")


if __name__ == "__main__":
    mode, target = sys.argv[1:3]
    if mode == "serve":
        NAME = sys.argv[3].encode()
        FAILS_WITH = sys.argv[4] if len(sys.argv) > 4 else None
        serve(target)
    options = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options) as channel:
        {"check": check, "hold": hold}[mode](channel)
