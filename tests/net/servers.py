# SPDX-License-Identifier: MIT
"""What the tests of the network reach: servers on 127.0.0.2 and 127.0.0.3, and a name server
that knows the names under .test. All of it ends with the process."""

import functools
import http.server
import os
import selectors
import socket
import socketserver
import ssl
import struct
import threading

ALLOWED = "127.0.0.2"
OTHER = "127.0.0.3"
CHUNK = bytes(1 << 20)


def in_background(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a directory; /zeros/N; /away, which leads elsewhere; POST says how much came."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Host")))
        if self.path.startswith("/zeros/"):
            left = int(self.path.split("/")[2])
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            while left:
                part = CHUNK[:left]
                self.wfile.write(part)
                left -= len(part)
        elif self.path.startswith("/away"):
            self.answer(302, b"", Location=self.server.away)
        else:
            super().do_GET()

    def do_POST(self):
        left = int(self.headers.get("Content-Length", 0))
        count = 0
        while count < left:
            part = self.rfile.read(min(left - count, 1 << 20))
            if not part:
                return
            count += len(part)
        self.answer(200, b"got %d\n" % count)


class HTTP(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, directory, address, context=None):
        super().__init__((address, 0), functools.partial(Handler, directory=directory))
        self.seen, self.away = [], ""
        self.port = self.server_address[1]
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        in_background(self)

    def handle_error(self, *_):
        pass


def https(directory, address, cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return HTTP(directory, address, context)


class Echo(threading.Thread):
    """Gives back what it gets, on as many connections as there are."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server((address, 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.accepted = 0
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.start()

    def run(self):
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self.accepted += 1
                    self.selector.register(self.listener.accept()[0], selectors.EVENT_READ)
                    continue
                try:
                    data = key.fileobj.recv(65536)
                    if data:
                        key.fileobj.sendall(data)
                except OSError:
                    data = b""
                if not data:
                    self.selector.unregister(key.fileobj)
                    key.fileobj.close()


class Names(socketserver.ThreadingUDPServer):
    """name: list of IPv4 addresses, or of lists of them for one question after the other."""

    def __init__(self, names):
        self.names, self.asked = names, []
        super().__init__(("127.0.0.1", 0), None)
        self.address = "127.0.0.1:%d" % self.server_address[1]
        in_background(self)

    def finish_request(self, request, client_address):
        data, sock = request
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1:at + 1 + data[at]].decode())
            at += 1 + data[at]
        name = ".".join(labels).lower()
        kind = struct.unpack(">H", data[at + 1:at + 3])[0]
        known = self.names.get(name)
        answers = known if known and kind == 1 else []
        if answers and isinstance(answers[0], list):
            answers = answers[min(self.asked.count((name, 1)), len(answers) - 1)]
        self.asked.append((name, kind))
        flags = 0x8180 if known is not None else 0x8183
        reply = data[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0) + data[12:at + 5]
        for address in answers:
            reply += struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
        sock.sendto(reply, client_address)


def make_certificates(directory, run):
    """A CA of our own, and what it says of ok.test: paths of CA, certificate and key."""
    path = functools.partial(os.path.join, directory)
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
           "-nodes", "-days", "2"]
    for argv in (
        [*new, "-subj", "/CN=test CA", "-keyout", path("ca.key"), "-out", path("ca.pem")],
        [*new, "-subj", "/CN=ok.test", "-addext", "subjectAltName=DNS:ok.test", "-addext",
         "basicConstraints=critical,CA:FALSE", "-CA", path("ca.pem"), "-CAkey", path("ca.key"),
         "-keyout", path("key.pem"), "-out", path("cert.pem")],
    ):
        done = run(argv)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
    return path("ca.pem"), path("cert.pem"), path("key.pem")
