"""What answers at the arbiter's address in place of etcd, on the arbiter's host. usage: drill_impostor.py error|garbage|empty|hang"""

import socketserver
import sys
import time

ANSWERS = {
    "error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 36\r\n\r\n{\"error\":\"database space exceeded!\"}",
    "garbage": b"\x00\xffSSH-2.0-not-etcd\r\n\r\n" * 20,
    "empty": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "hang": None,
}


class Impostor(socketserver.BaseRequestHandler):
    """Answers whatever is asked in one way."""

    def handle(self):
        answer = ANSWERS[sys.argv[1]]
        while self.request.recv(65536):
            if answer is None:
                time.sleep(3600)
            self.request.sendall(answer)


class Server(socketserver.ThreadingTCPServer):
    """One thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True


Server(("10.0.3.1", 2379), Impostor).serve_forever()
