"""Servers to measure: processes of this machine alone, which end with the script whatever becomes of it.

Used by scripts/bench-peers and scripts/figures. Everything lies in one directory, which is removed at the end.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

from drill_world import Cable, Host

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SLICE_NS = 100_000
CABLE = {"a": "10.0.0.1", "b": "10.0.0.2"}
TICKS = os.sysconf("SC_CLK_TCK")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Failed(Exception):
    """What was to be measured does not work; the text says what."""


def parse_size(text):
    """Bytes of `1G` and the like."""
    return int(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else int(text)


def toml_lines(keys):
    """Keys of a volume as they stand in a file, from an option of the command line."""
    return keys.replace("\\n", "\n") + ("\n" if keys else "")


def another_build(text):
    """(name, (binary, keys)) of an option `--also`."""
    name, _, rest = text.partition("=")
    file, _, keys = rest.partition(",")
    return name, (os.path.realpath(file), toml_lines(keys))


def wait_until(seconds, what, condition):
    """Polls until `condition` is true; what it returned."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"gave up after {seconds} s waiting for {what}")
        time.sleep(0.01)
    return value


def free_ports(count):
    """TCP ports of the loopback that nobody uses now, whose UDP ports are free too."""
    held, ports = [], []
    while len(ports) < count:
        stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        held += [stream, datagram]
        stream.bind(("127.0.0.1", 0))
        try:
            datagram.bind(stream.getsockname())
        except OSError:
            continue
        ports.append(stream.getsockname()[1])
    for each in held:
        each.close()
    return ports


def listens(path_or_port):
    """A server answers there."""
    unix = isinstance(path_or_port, str)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as probe:
        probe.settimeout(2)
        return probe.connect_ex(path_or_port if unix else ("127.0.0.1", path_or_port)) == 0


def cpu_seconds(pid):
    """User and system time of all threads of a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid):
    """Resident bytes of a process, now and at most, and what of it is now its own (neither files nor shared memory)."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        lines = dict(line.split(":", 1) for line in status if line.startswith(("VmRSS", "VmHWM", "RssAnon")))
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM", "RssAnon"))


def load_average():
    """The load of the last minute."""
    return os.getloadavg()[0]


class Rig:
    """A directory and the processes that work in it. Use in a `with`."""

    def __init__(self, parent):
        self.directory = tempfile.mkdtemp(prefix="repblk-rig-", dir=parent)
        self.processes = []

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(143))
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, name):
        """A path in the rig's directory."""
        return os.path.join(self.directory, name)

    def start(self, name, *command):
        """Starts a server; its process. It is killed by the kernel if this script is."""
        with open(self.path(name + ".log"), "ab") as log:
            process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def cabled_hosts(self, rate):
        """Networks `a` and `b` with a cable that carries so much, both ways."""
        hosts = {name: Host(name) for name in "ab"}
        self.processes += [host.wire for host in hosts.values()]
        Cable("data", hosts["a"], CABLE["a"], hosts["b"], CABLE["b"]).starve(rate, "256k")
        return hosts

    def log_end(self, name):
        """The last lines that a server wrote."""
        with open(self.path(name + ".log"), encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-5:])

    def make_file(self, name, size):
        """A sparse file."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def await_server(self, name, process, where):
        """Waits until a server takes connections."""
        def settled():
            return process.poll() is not None or listens(where)
        wait_until(20, f"{name} to listen", settled)
        if process.poll() is not None:
            raise Failed(f"{name} ended: {self.log_end(name)}")


class System:
    """Something that serves a device: where, and by which processes."""

    def __init__(self, name, uri, processes):
        self.name, self.uri, self.processes = name, uri, processes

    def cpu(self):
        """CPU seconds of all its processes."""
        return sum(cpu_seconds(process.pid) for process in self.processes)


def nbdkit(rig, name, size, port=None):
    """nbdkit's file plugin over a file of its own."""
    path = rig.make_file(name + ".img", size)
    where = port or rig.path(name + ".nbd")
    listen = ["--ipaddr", "127.0.0.1", "--port", str(port)] if port else ["--unix", where]
    process = rig.start(name, "nbdkit", "--foreground", *listen, "file", path)
    rig.await_server(name, process, where)
    uri = f"nbd://127.0.0.1:{port}" if port else f"nbd+unix:///?socket={where}"
    return System(name, uri, [process])


def qemu_nbd(rig, name, image, processes=()):
    """qemu-nbd over a tree of QEMU's block drivers."""
    where = rig.path(name + ".nbd")
    process = rig.start(name, "qemu-nbd", "--socket", where, "--persistent", "--shared", "0", "json:" + json.dumps(image))
    rig.await_server(name, process, where)
    return System(name, f"nbd+unix:///?socket={where}", [process, *processes])


def qemu_file(path, direct):
    """A file as QEMU's block layer names it."""
    file = {"driver": "file", "filename": path, "locking": "off"}
    if direct:
        file |= {"cache": {"direct": True}, "aio": "native"}
    return {"driver": "raw", "file": file}


def qemu_single(rig, name, size, direct):
    """qemu-nbd with one copy."""
    return qemu_nbd(rig, name, qemu_file(rig.make_file(name + ".img", size), direct))


def qemu_quorum(rig, name, size, direct):
    """What one would put together instead: a quorum of a local file and an NBD server on the other node."""
    port = free_ports(1)[0]
    if direct:
        # nbdkit's file plugin has no direct I/O.
        where = rig.make_file(name + "-far.img", size)
        far = rig.start(name + "-far", "qemu-nbd", "--bind", "127.0.0.1", "--port", str(port), "--persistent",
                        "--shared", "0", "json:" + json.dumps(qemu_file(where, direct)))
        rig.await_server(name + "-far", far, port)
    else:
        far = nbdkit(rig, name + "-far", size, port).processes[0]
    remote = {"driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)}}
    image = {"driver": "quorum", "vote-threshold": 2, "read-pattern": "fifo", "children": [
        qemu_file(rig.make_file(name + ".img", size), direct), {"driver": "raw", "file": remote}]}
    # Two votes of two cannot be won by reading the first child only, which is what `fifo` means: one is enough to read.
    try:
        return qemu_nbd(rig, name, image, [far])
    except Failed:
        image["vote-threshold"] = 1
        return qemu_nbd(rig, name, image, [far])


def qemu_mirror(rig, name, size, direct):
    """QEMU's mirror job in write-blocking mode: a local file, and an NBD server on the other node that every write goes to too."""
    port = free_ports(1)[0]
    far = nbdkit(rig, name + "-far", size, port).processes[0]
    where, monitor = rig.path(name + ".nbd"), rig.path(name + ".qmp")
    near = {"node-name": "near"} | qemu_file(rig.make_file(name + ".img", size), direct)
    remote = {"node-name": "far", "driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)}}
    process = rig.start(name, "qemu-storage-daemon", "--blockdev", json.dumps(near), "--blockdev", json.dumps(remote),
                        "--nbd-server", f"addr.type=unix,addr.path={where}",
                        "--export", "type=nbd,id=export,node-name=near,name=,writable=on",
                        "--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp")
    rig.await_server(name, process, where)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(monitor)
        stream = client.makefile("rw", encoding="utf-8")
        stream.readline()
        for command, arguments in (("qmp_capabilities", {}), ("blockdev-mirror", {
                "job-id": "mirror", "device": "near", "target": "far", "sync": "full", "copy-mode": "write-blocking"})):
            stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            stream.flush()
        for line in stream:
            message = json.loads(line)
            if "error" in message:
                raise Failed(f"{name}: {message['error']['desc']}")
            if message.get("event") == "BLOCK_JOB_READY":
                break
    return System(name, f"nbd+unix:///?socket={where}", [process, far])


class Repblk(System):
    """A pair of nodes, or node `a` of a pair whose other node is never there."""

    def __init__(self, rig, name, binary, size, mode="sync", direct=False, pair=True, synced=True,
                 volume_keys="", volumes=1, relay=(), keys=False, tcp=False, cable=""):
        self.rig, self.binary, self.name = rig, binary, name
        self.hosts = rig.cabled_hosts(cable) if cable else {}
        self.nodes = ["a", "b"] if pair else ["a"]
        self.daemons = {}
        self.keys, self.tcp = keys, tcp
        self.volumes = ["v", *(f"v{number}" for number in range(2, volumes + 1))]
        names = ("a", "b", "beat-a", "beat-b", "relay-a", "relay-b", "nbd-a", "nbd-b")
        self.ports = ports = dict(zip(names, free_ports(len(names))))
        for node in "ab":
            # With a relay, each node knows the other by the relay's address.
            data = {each: ports["relay-" + each if relay and each != node else each] for each in "ab"}
            with open(self.config(node), "w", encoding="utf-8") as file:
                file.write(self.configuration(data, ports, f'mode = "{mode}"\ndirect = {str(direct).lower()}\n{volume_keys}'))
            if relay:
                listen, to = f"127.0.0.1:{ports['relay-' + node]}", f"127.0.0.1:{ports[node]}"
                rig.start(f"{name}-relay-{node}", *relay, "--listen", listen, "--to", to)
        if keys:
            self.run("a", "cert", "init")
        for node in self.nodes:
            for volume in self.volumes:
                rig.make_file(f"{name}-{node}-{volume}.img", size)
                self.run(node, "init", volume)
            self.daemon(node)
        if pair:
            wait_until(20, "the nodes to connect", lambda: self.peer("a").get("connection") == "connected")
        for volume in self.volumes:
            self.run("a", "promote", "--volume", volume, "--force", *([] if pair else ["--peer-is-down"]))
        if pair and synced:
            self.await_sync()
        super().__init__(name, f"nbd+unix:///v?socket={rig.path(name + '-a.nbd')}", list(self.daemons.values()))

    def config(self, node):
        """The path of a node's configuration."""
        return self.rig.path(f"{self.name}-{node}.toml")

    def configuration(self, data, ports, keys):
        """The text of a configuration: data ports by node, other ports by name, keys of each volume."""
        text = 'cluster = "rig"\n'
        if self.keys:
            text += f'[security]\nkeys = "{self.rig.path(self.name + "-keys")}"\nnbd_tls = "allow"\n'
        elif self.hosts:
            text += "[security]\ninsecure = true\n"
        for node in "ab":
            path = self.rig.path(f"{self.name}-{node}")
            address = CABLE[node] if self.hosts else "127.0.0.1"
            nbd = f'"unix:{path}.nbd"' + (f', "tcp:127.0.0.1:{ports["nbd-" + node]}"' if self.tcp else "")
            text += (f'[[node]]\nname = "{node}"\ndata = "{address}:{data[node]}"\n'
                     f'heartbeat = ["{address}:{ports["beat-" + node]}"]\ncontrol = "{path}.sock"\nnbd = [{nbd}]\n')
        for volume in self.volumes:
            text += f'[[volume]]\nname = "{volume}"\n{keys}'
            for node in "ab":
                path = self.rig.path(f"{self.name}-{node}-{volume}")
                text += f'[volume.on.{node}]\ndevice = "{path}.img"\nmetadata = "{path}.meta"\n'
        return text

    def command(self, node, *arguments):
        """A command line to a node."""
        return [self.binary, "--config", self.config(node), "--node", node, *arguments]

    def run(self, node, *arguments):
        """Runs a command; its output."""
        done = subprocess.run(self.command(node, *arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"repblk {' '.join(arguments)} on {node} of {self.name}: {done.stderr.strip()}")
        return done.stdout

    def daemon(self, node):
        """Starts a node's daemon and waits until it answers."""
        serve = self.command(node, "serve")
        process = self.rig.start(f"{self.name}-{node}", *(self.hosts[node].inside(*serve) if self.hosts else serve))
        self.daemons[node] = process
        wait_until(20, f"node {node} to serve", lambda: process.poll() is not None or self.status(node))
        if process.poll() is not None:
            raise Failed(f"node {node} of {self.name} ended: {self.rig.log_end(f'{self.name}-{node}')}")
        self.processes = list(self.daemons.values())

    def status(self, node, at=0):
        """What the node says of a volume; nothing while it does not answer."""
        try:
            return json.loads(self.run(node, "status", "--json"))["volumes"][at]
        except (Failed, ValueError, IndexError, KeyError):
            return {}

    def peer(self, node):
        """What the node says of its peer."""
        return (self.status(node).get("peers") or [{}])[0]

    def is_synced(self):
        """Both copies of every volume are good and nothing is left to send, as the primary says."""
        for at in range(len(self.volumes)):
            status = self.status("a", at)
            peer = (status.get("peers") or [{}])[0]
            if (status.get("disk_state"), peer.get("replication"), peer.get("disk_state"),
                    peer.get("out_of_sync_bytes")) != ("uptodate", "established", "uptodate", 0):
                return False
        return True

    def await_sync(self, seconds=900):
        """Waits until both copies are in sync."""
        wait_until(seconds, f"{self.name} to be in sync", self.is_synced)

    def listen(self):
        """Follows what node a tells, into a file; see `resyncs`."""
        self.rig.start(f"{self.name}-events", *self.command("a", "events", "--json"))
        wait_until(10, "the events", lambda: any(event["event"] == "exists_end" for event in self.events()))

    def events(self):
        """What node a has told since `listen`."""
        with open(self.rig.path(f"{self.name}-events.log"), encoding="utf-8") as log:
            return [json.loads(line) for line in log.read().split("\n")[:-1] if line.startswith("{")]

    def resyncs(self):
        """(bytes, milliseconds) of each resync that node a was the source of and that is finished."""
        return [(event["bytes"], event["duration_ms"]) for event in self.events()
                if event["event"] == "resync_finished" and event.get("part") == "source"]


def fio(uri, *options):
    """Runs fio's nbd engine; its job's figures. As a thread: a process of its own would leave this session, and its niceness."""
    command = ["fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", "--group_reporting",
               "--randrepeat=0", "--norandommap", "--thread", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    if done.returncode or start < 0:
        raise Failed(f"fio on {uri}: {(done.stderr or done.stdout).strip()[-300:]}")
    job = json.loads(done.stdout[start:])["jobs"][0]
    if job["error"]:
        raise Failed(f"fio on {uri}: error {job['error']}")
    return job


def load(client, system, seconds, *options):
    """Runs the project's own client, which batches its requests; its figures."""
    export, _, where = system.uri.partition("?socket=")
    command = [client, "--unix", where, "--export", export.rpartition("/")[2], "--seconds", str(seconds), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"nbdload on {system.name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def find_binary(given, example=None):
    """The release binary, or an example's, built if it was not given."""
    if given:
        return os.path.realpath(given)
    what = ["--example", example] if example else ["--bin", "repblk"]
    subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", *what], cwd=REPO, check=True)
    metadata = subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"], cwd=REPO,
                              check=True, capture_output=True, text=True).stdout
    return os.path.join(json.loads(metadata)["target_directory"], "release", *(["examples", example] if example else ["repblk"]))


def be_nice(niceness):
    """Gives this script, and all that it will start, a niceness, also towards other sessions if this one is its own, and a short
    time slice: the scheduler then does not let others finish theirs first."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    if os.getsid(0) == os.getpid() and os.path.exists("/proc/self/autogroup"):
        with open("/proc/self/autogroup", "w", encoding="ascii") as group:
            group.write(str(niceness))
    # struct sched_attr of sched_setattr(2): size, policy, flags, nice, priority, then runtime, deadline and period in ns.
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, niceness, 0, SLICE_NS, 0, 0)
    if os.uname().machine == "x86_64":
        ctypes.CDLL(None).syscall(314, 0, attributes, 0)


def need(*commands):
    """Ends with a message when a program is missing."""
    missing = [command for command in commands if not shutil.which(command)]
    if missing:
        sys.exit(f"missing programs: {', '.join(missing)} (Debian: nbdkit fio qemu-utils libnbd-bin util-linux)")
