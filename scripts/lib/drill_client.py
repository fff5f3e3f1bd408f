"""Writers that keep a ledger, outside the devices, of what was acknowledged to them; and the audit of it.

They speak NBD themselves and use nothing of the project. Each writer owns a few blocks, writes them in turn, each time with the next
number, and says in every sector who wrote it and which number it was. A write that was in doubt when the connection died is not
repeated; its number may be there or not. So a sector of a block must hold a number from the newest acknowledged to the newest sent:
an older one is a loss, anything else is damage.
"""

import socket
import struct
import threading
import time

BLOCK = 4096
SECTOR = 512
BLOCKS = 32
STRIDE = 1 << 20
READ, WRITE = 0, 1
STAMP = struct.Struct(">8sIIQQ")
MARK = b"drill-01"
RETRY_S = 0.02


class Refused(Exception):
    """The server does not export the volume now."""


class Nbd:
    """One connection, negotiated by NBD_OPT_GO, simple replies, one request at a time."""

    def __init__(self, path, export):
        self.stream = socket.socket(socket.AF_UNIX)
        try:
            self.stream.settimeout(5)
            self.stream.connect(path)
            self.negotiate(export.encode())
            # A reply may take as long as a failover takes.
            self.stream.settimeout(None)
        except Exception:
            self.stream.close()
            raise

    def take(self, length):
        """Exactly so many bytes."""
        data = bytearray()
        while len(data) < length:
            piece = self.stream.recv(length - len(data))
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
        return bytes(data)

    def negotiate(self, export):
        """The handshake, to the end."""
        magic, option_magic, _ = struct.unpack(">8s8sH", self.take(18))
        if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise ConnectionError("no NBD server")
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self.stream.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 7, len(body)) + body)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.take(20))
            self.take(length)
            if kind == 1:
                return
            if kind & 1 << 31:
                raise Refused

    def ask(self, kind, offset, length, payload=b""):
        """One request; the error number and the data of a read."""
        self.stream.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length) + payload)
        magic, error, _ = struct.unpack(">IIQ", self.take(16))
        if magic != 0x67446698:
            raise ConnectionError("no simple reply")
        return error, self.take(length) if kind == READ and not error else b""

    def close(self):
        """Wakes whoever waits for an answer, too."""
        try:
            self.stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.stream.close()


class Writer(threading.Thread):
    """One writer on one place. `acks` is a list of (sent, answered), in seconds of the monotonic clock."""

    def __init__(self, number, name, path, export, think_s):
        super().__init__(daemon=True)
        self.number, self.name, self.path, self.export, self.think_s = number, name, path, export, think_s
        self.acks, self.errors, self.connects = [], [], 0
        self.sent, self.acked = [0] * BLOCKS, [0] * BLOCKS
        self.client, self.stopping = None, threading.Event()
        self.start()

    def run(self):
        while not self.stopping.is_set():
            try:
                self.client = Nbd(self.path, self.export)
                self.connects += 1
                while not self.stopping.is_set():
                    self.write()
                    self.stopping.wait(self.think_s)
            except (OSError, Refused, ConnectionError):
                self.stopping.wait(RETRY_S)
            finally:
                if self.client:
                    self.client.close()

    def write(self):
        """The next write, acknowledged."""
        number = max(self.sent) + 1
        block = number % BLOCKS
        self.sent[block] = number
        began = time.monotonic()
        error, _ = self.client.ask(WRITE, self.number * STRIDE + block * BLOCK, BLOCK, self.content(block, number))
        if error:
            self.errors.append(f"{self.name}: error {error} for a write")
            self.stopping.wait(RETRY_S)
            return
        self.acked[block] = number
        self.acks.append((began, time.monotonic()))

    def content(self, block, number):
        """What write `number` puts into `block`."""
        sector = STAMP.pack(MARK, self.number, block, number, ~number & (1 << 64) - 1)
        return sector.ljust(SECTOR, b".") * (BLOCK // SECTOR)

    def stop(self):
        """Ends it, also while it waits for an answer."""
        self.stopping.set()
        if self.client:
            self.client.close()
        self.join()

    def audit(self, client):
        """Reads every block back. A list of blocks that lost something, and one of what is damaged."""
        lost, damaged = [], []
        for block in range(BLOCKS):
            error, data = client.ask(READ, self.number * STRIDE + block * BLOCK, BLOCK)
            if error:
                damaged.append(f"{self.name}: error {error} for a read of block {block}")
                continue
            for at in range(0, BLOCK, SECTOR):
                number, complaint = self.judge(block, data[at:at + SECTOR])
                if complaint:
                    damaged.append(f"{self.name}: block {block}, sector {at // SECTOR}: {complaint}")
                elif number < self.acked[block]:
                    lost.append(f"{self.name}: block {block} holds write {number}, acknowledged was {self.acked[block]}")
                    break
        return lost, damaged

    def judge(self, block, sector):
        """The number of the write that a sector holds, and a complaint if nothing that was ever sent is there."""
        if sector == bytes(SECTOR):
            return 0, None
        mark, writer, place, number, inverse = STAMP.unpack_from(sector)
        if (mark, writer, place) != (MARK, self.number, block) or number ^ inverse != (1 << 64) - 1:
            return 0, "holds something that was never written there"
        return number, None if number <= self.sent[block] else "holds a write that was never sent"


def last_ack(writers):
    """When the newest acknowledgement of any of them came."""
    return max((writer.acks[-1][1] for writer in writers if writer.acks), default=0.0)


def acked_since(writers, moment):
    """How many writes that were sent after `moment` are acknowledged."""
    count = 0
    for writer in writers:
        for sent, _ in reversed(writer.acks[:]):
            if sent <= moment:
                break
            count += 1
    return count


def longest_gap(writers, begin, end):
    """The longest time between `begin` and `end` in which none of them was answered."""
    moments = sorted(done for writer in writers for _, done in writer.acks if begin <= done <= end)
    edges = [begin, *moments, end]
    return max(late - early for early, late in zip(edges, edges[1:]))


def reigns(by_node):
    """Which node acknowledged, in turn, by the acknowledgements alone: a list of names without repetition.

    An answer proves that its node was a writer at some moment between the sending and the answer. An answer of the node
    before may come late: it counts for a new reign only if it was sent after the present reign is proved to have begun.
    """
    acks = sorted((done, sent, node) for node, writers in by_node.items() for w in writers for sent, done in w.acks)
    turns, began = [], 0.0
    for done, sent, node in acks:
        if turns and (node == turns[-1] or len(turns) > 1 and node == turns[-2] and sent <= began):
            continue
        turns.append(node)
        began = done
    return turns
