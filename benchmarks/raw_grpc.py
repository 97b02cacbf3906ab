"""Raw gRPC over mutual TLS, beside which `transport.py` stands: processes of their own, told what to do by lines.

    python benchmarks/raw_grpc.py server|client KIT PORT

A kit is a folder with the certificates of one FLARE member. A client answers each line with the bytes of that many
sent and received, once they are.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import grpc

_UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_METHOD = "/bench.Echo/echo"


class _Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def serve(kit: Path, port: int) -> None:
    """Until its input ends."""
    server = grpc.server(ThreadPoolExecutor(4), [_Echo()], options=_UNBOUNDED)
    key, chain, root = ((kit / name).read_bytes() for name in ("server.key", "server.crt", "rootCA.pem"))
    server.add_secure_port(f"localhost:{port}", grpc.ssl_server_credentials([(key, chain)], root, True))
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(None)


def ask(kit: Path, port: int) -> None:
    """One echo for each line of input: so many bytes there and back."""
    key, chain, root = ((kit / name).read_bytes() for name in ("client.key", "client.crt", "rootCA.pem"))
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    with grpc.secure_channel(f"localhost:{port}", credentials, options=_UNBOUNDED) as channel:
        echo = channel.unary_unary(_METHOD)
        bodies: dict[int, bytes] = {}
        print("ready", flush=True)
        for line in sys.stdin:
            size = int(line)
            body = bodies.setdefault(size, bytes(size))
            print(len(echo(body)), flush=True)


@contextmanager
def clients(server: Path, kits: list[Path], port: int) -> Iterator[list["Popen[str]"]]:
    """The processes of some clients, each connected to one server."""
    with ExitStack() as stack:
        found = []
        for role, kit in [("server", server), *(("client", kit) for kit in kits)]:
            command = [sys.executable, __file__, role, str(kit / "startup"), str(port)]
            process = stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found.append(process)
        yield found[1:]


def echo(processes: list["Popen[str]"], size: int) -> None:
    """So many bytes there and back, all clients at once."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{size}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == size


if __name__ == "__main__":
    {"server": serve, "client": ask}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
