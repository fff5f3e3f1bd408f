"""A pair of nodes, a database host and an arbiter, made of network namespaces, and everything that can happen to them.

One World is one drill. It is used inside the sandbox of scripts/drill, whose end takes processes, mounts and networks with it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

from drill_client import Nbd, Writer

VOLUME = "mes"
ETCD = "10.0.3.1"
SIZE = 16 << 20
COMPARED = 15 << 20  # what lies behind it is metadata
SHORT_S, LONG_S = 10, 40
POLL_S = 0.03
HERE = os.path.dirname(os.path.abspath(__file__))

CONFIG = """cluster = "drill"
[security]
keys = "{directory}/keys"
[arbiter]
{arbiter}
"""
ARBITERS = {
    "etcd": f"""kind = "etcd"
endpoints = ["http://{ETCD}:2379"]
insecure = true
settled_ms = 500
dwell_ms = 0
automatic_per_hour = 16""",
    "none": 'kind = "none"',
}
NODE = """
[[node]]
name = "{name}"
data = "{data}:7789"
heartbeat = ["{heartbeat}:7790"]
control = "{directory}/{name}.sock"
nbd = [{nbd}]
saved = "{directory}/{name}.saved"
state = "{directory}/{name}.state"
"""
VOLUME_TABLE = """
[[volume]]
name = "mes"
peer_timeout_ms = 1000
ping_interval_ms = 250
[volume.on.alpha]
device = "{directory}/{alpha}"
[volume.on.beta]
device = "{directory}/{beta}"
"""


class Failed(Exception):
    """What was expected did not come; the text says what came instead."""


def wait_until(seconds, what, condition):
    """Polls until `condition` is true; what it returned."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"no {what} in {seconds:g} s")
        time.sleep(POLL_S)
    return value


def run(*command, seconds=SHORT_S):
    """Runs a command to its end; it must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stdout}{done.stderr}".strip())
    return done.stdout


class Host:
    """A network of its own, and processes on it."""

    def __init__(self, name):
        self.name = name
        self.wire = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        wait_until(SHORT_S, "network namespace", lambda: self.namespace() not in (None, ours))
        self.net("ip", "link", "set", "lo", "up")

    def namespace(self):
        """The kernel's name of its network namespace."""
        try:
            return os.readlink(f"/proc/{self.wire.pid}/ns/net")
        except OSError:
            return None

    def inside(self, *command):
        """The command line that runs `command` on it."""
        return ["nsenter", f"--net=/proc/{self.wire.pid}/ns/net", "--", *command]

    def net(self, *command):
        """Runs a command on it."""
        return run(*self.inside(*command))


class Cable:
    """A cable between two hosts."""

    def __init__(self, name, here, address, there, peer):
        self.name, self.ends = name, {here.name: (here, address, peer), there.name: (there, peer, address)}
        here.net("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(there.wire.pid))
        for host, own, other in self.ends.values():
            host.net("ip", "address", "add", own, "peer", other, "dev", name)
            host.net("ip", "link", "set", name, "up")

    def state(self, word):
        """`down` pulls it out, `up` plugs it in: both ends see that."""
        for host, _, _ in self.ends.values():
            host.net("ip", "link", "set", self.name, word)

    def mute(self, sender):
        """What `sender` sends is lost, and nobody is told: it goes to a network card that is not there."""
        host, _, peer = self.ends[sender]
        host.net("ip", "neighbour", "replace", peer, "lladdr", "02:00:00:00:00:99", "dev", self.name, "nud", "permanent")

    def starve(self, rate, burst="16k"):
        """Both directions carry no more than so much."""
        for host, _, _ in self.ends.values():
            host.net("tc", "qdisc", "replace", "dev", self.name, "root", "tbf", "rate", rate, "burst", burst, "latency", "400ms")

    def mend(self):
        """As it was in the beginning."""
        for host, _, peer in self.ends.values():
            subprocess.run(host.inside("tc", "qdisc", "del", "dev", self.name, "root"), capture_output=True, check=False)
            subprocess.run(host.inside("ip", "neighbour", "del", peer, "dev", self.name), capture_output=True, check=False)
        self.state("up")


class Process:
    """A process that can be killed, stopped and started again; its output is appended to a file."""

    def __init__(self, log):
        self.log, self.popen = log, None

    def start(self, command):
        """Starts it; it must not run."""
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def runs(self):
        """Is it there, if only stopped?"""
        return self.popen is not None and self.popen.poll() is None

    def pid(self):
        """The process itself: in a time namespace it is the child of what made that."""
        with open(f"/proc/{self.popen.pid}/cmdline", "rb") as file:
            if not file.read().startswith(b"unshare"):
                return self.popen.pid
        with open(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children", encoding="ascii") as file:
            return int(file.read().split()[0])

    def signal(self, number):
        """Signals it, if it runs."""
        if self.runs():
            os.kill(self.pid(), number)

    def kill(self):
        """SIGKILL, and its end."""
        if self.runs():
            self.signal(signal.SIGKILL)
            self.popen.wait()
        self.popen = None

    def text(self):
        """All its output."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""


class Disk:
    """A disk that can fail: nbdkit's filters, shown as a file by nbdfuse."""

    def __init__(self, directory, name):
        self.trigger, self.rate = f"{directory}/{name}.eio", f"{directory}/{name}.rate"
        socket, mount, image = f"{directory}/{name}.disk.sock", f"{directory}/{name}.disk", f"{directory}/{name}.img"
        os.mkdir(mount)
        self.rate_is("100G")
        self.server, self.fuse = Process(f"{directory}/{name}.disk.log"), Process(f"{directory}/{name}.disk.log")
        self.server.start(["nbdkit", "--foreground", "--unix", socket, "--filter=error", "--filter=rate", "file", image, "error=EIO",
                           "error-rate=100%", f"error-file={self.trigger}", "rate=100G", f"rate-file={self.rate}"])
        wait_until(SHORT_S, "nbdkit", lambda: os.path.exists(socket))
        self.fuse.start(["nbdfuse", f"{mount}/img", f"nbd+unix:///?socket={socket}"])
        wait_until(SHORT_S, "nbdfuse", lambda: os.path.exists(f"{mount}/img"))

    def rate_is(self, rate):
        """Bits in a second."""
        with open(self.rate, "w", encoding="ascii") as file:
            file.write(rate)

    def become(self, state):
        """`eio`, `hang`, `slow` or `good`."""
        self.server.signal(signal.SIGSTOP if state == "hang" else signal.SIGCONT)
        self.rate_is("400k" if state == "slow" else "100G")
        if state == "eio":
            with open(self.trigger, "w", encoding="ascii"):
                pass
        elif os.path.exists(self.trigger):
            os.unlink(self.trigger)


class Node(Process):
    """A daemon and its host."""

    def __init__(self, world, name):
        super().__init__(f"{world.directory}/{name}.log")
        self.world, self.name, self.host = world, name, world.hosts[name]
        self.socket = f"{world.directory}/{name}-nbd.sock"
        self.clock = []

    def boot(self):
        """Starts the daemon and waits until it answers."""
        self.kill()
        self.start(self.host.inside(*self.clock, *self.world.command(self.name, "serve")))
        wait_until(SHORT_S, f"daemon of {self.name}: {self.text()[-300:]}", self.status)

    def cli(self, *words, seconds=20):
        """One command; the finished process."""
        return subprocess.run(self.world.command(self.name, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=seconds, check=False)

    def status(self):
        """The volume's status, or an empty object."""
        try:
            done = self.cli("status", "--json", seconds=3)
        except subprocess.TimeoutExpired:
            return {}
        return json.loads(done.stdout)["volumes"][0] if done.returncode == 0 else {}

    def role(self):
        """The role, as the daemon says it."""
        return self.status().get("role")

    def rule(self):
        """The rule of failover that applies."""
        return self.status().get("failover", {}).get("rule")

    def in_sync(self):
        """Both copies are good and the same."""
        status = self.status()
        peer = (status.get("peers") or [{}])[0]
        return (status.get("disk_state") == peer.get("disk_state") == "uptodate" and peer["connection"] == "connected"
                and peer["replication"] == "established" and peer["out_of_sync_bytes"] == 0)

    def ready(self):
        """Would it take over if its primary were lost?"""
        done = self.cli("plan", "--json")
        plans = [json.loads(line) for line in done.stdout.splitlines()]
        return any(plan["question"] == "peer-lost" and plan["verdict"] == "take-over" for plan in plans)


class World:
    """Everything of one drill."""

    def __init__(self, directory, binary, drill):
        self.directory, self.binary, self.commands = directory, binary, {}
        os.makedirs(directory)
        self.hosts = {name: Host(name) for name in ("alpha", "beta", "db", "arbiter")}
        alpha, beta, db, arbiter = self.hosts.values()
        cables = [("data", alpha, "10.0.0.1", beta, "10.0.0.2"), ("heartbeat", alpha, "10.0.1.1", beta, "10.0.1.2"),
                  ("client-alpha", alpha, "10.0.2.1", db, "192.0.2.1"), ("client-beta", beta, "10.0.2.2", db, "192.0.2.2"),
                  ("etcd-alpha", alpha, "10.0.3.11", arbiter, ETCD), ("etcd-beta", beta, "10.0.3.12", arbiter, ETCD)]
        self.cables = {cable[0]: Cable(*cable) for cable in cables}
        self.etcd, self.impostor = Process(f"{directory}/etcd.log"), Process(f"{directory}/impostor.log")
        self.attach = Process(f"{directory}/attach.log")
        self.disks = {}
        for name in ("alpha", "beta"):
            with open(f"{directory}/{name}.img", "wb") as image:
                image.truncate(SIZE)
            if name in drill.get("disks", []):
                self.disks[name] = Disk(directory, name)
        self.arbitrated = drill.get("kind") != "none"
        self.configure(drill)
        self.nodes = {name: Node(self, name) for name in ("alpha", "beta")}
        for name, offset in drill.get("clocks", {}).items():
            self.set_clock(name, offset)
        self.writers = {}

    def configure(self, drill):
        """The nodes' configuration, and the one of the database host, which knows them by the network only."""
        devices = {name: f"{name}.disk/img" if name in self.disks else f"{name}.img" for name in ("alpha", "beta")}
        for file in ("pair", "host"):
            text = CONFIG.format(directory=self.directory, arbiter=ARBITERS[drill.get("kind", "etcd")])
            for number, name in enumerate(("alpha", "beta"), 1):
                nbd = f'"tcp:10.0.2.{number}:10809"'
                if file == "pair":
                    nbd += f', "unix:{self.directory}/{name}-nbd.sock"'
                text += NODE.format(name=name, data=f"10.0.0.{number}", heartbeat=f"10.0.1.{number}", nbd=nbd, directory=self.directory)
            text += VOLUME_TABLE.format(directory=self.directory, **devices)
            with open(f"{self.directory}/{file}.toml", "w", encoding="utf-8") as config:
                config.write(text)

    def command(self, node, *words):
        """The command line of one `repblk` command to a node."""
        return [self.binary, "--config", f"{self.directory}/pair.toml", "--node", node, *words]

    def set_clock(self, name, offset):
        """From its next start on, the clocks since boot of that node's daemon are so many seconds ahead."""
        shift = str(offset)
        self.nodes[name].clock = ["unshare", "--time", "--boottime", shift, "--monotonic", shift, "--fork", "--kill-child", "--"] if offset else []

    # --- from nothing to a pair that works ---

    def up(self):
        """In sync, `alpha` primary, `beta` ready to take over, writers at work."""
        alpha, beta = self.nodes.values()
        self.start_etcd()
        # The hosts share a file system, so one folder of keys does for both.
        for words in (("init",), ("issue", "db", "--client")):
            run(self.binary, "--config", f"{self.directory}/pair.toml", "cert", *words)
        for node in (alpha, beta):
            done = node.cli("init", VOLUME)
            if done.returncode:
                raise Failed(f"init of {node.name}: {done.stderr.strip()}")
            node.boot()
        wait_until(SHORT_S, "link", lambda: alpha.status()["peers"][0]["connection"] == "connected")
        done = alpha.cli("promote", "--force")
        if done.returncode:
            raise Failed(f"first promotion: {done.stderr.strip()}")
        wait_until(LONG_S, "initial sync", beta.in_sync)
        place = f"{self.directory}/attach-{VOLUME}.nbd"
        self.start_attach()
        self.writers = {"through": [Writer(n, f"through {n}", place, VOLUME, 0.01) for n in (0, 1)],
                        "alpha": [Writer(2, "at alpha", alpha.socket, VOLUME, 0.005)],
                        "beta": [Writer(3, "at beta", beta.socket, VOLUME, 0.005)]}
        if self.arbitrated:
            wait_until(SHORT_S, "standby that is ready", beta.ready)

    def start_attach(self):
        """`repblk attach` on the database host."""
        self.attach.start(self.hosts["db"].inside(self.binary, "--config", f"{self.directory}/host.toml", "attach", VOLUME,
                                                  "--name", "db", "--dir", self.directory))
        wait_until(SHORT_S, f"device: {self.attach.text()}", lambda: os.path.exists(f"{self.directory}/attach-{VOLUME}.nbd"))

    def start_etcd(self):
        """etcd with what it has on its disk."""
        client, peer = f"http://{ETCD}:2379", "http://127.0.0.1:2380"
        self.etcd.start(self.hosts["arbiter"].inside(
            "etcd", "--name", "one", "--data-dir", f"{self.directory}/etcd", "--listen-client-urls", f"{client},http://127.0.0.1:2379",
            "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"one={peer}", "--log-level", "error"))
        wait_until(20, f"etcd: {self.etcd.text()[-300:]}", self.etcd_answers)

    def etcd_answers(self):
        """Does etcd know who leads?"""
        done = subprocess.run(self.hosts["arbiter"].inside("etcdctl", "--endpoints=http://127.0.0.1:2379", "endpoint", "health"),
                              env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, check=False)
        return done.returncode == 0

    def everyone(self):
        """All writers."""
        return [writer for group in self.writers.values() for writer in group]

    # --- back to a pair that works ---

    def heal(self):
        """Everything is mended and switched on; then the pair must find to itself."""
        self.impostor.kill()
        for disk in self.disks.values():
            disk.become("good")
        for process in (self.etcd, self.attach, *self.nodes.values()):
            process.signal(signal.SIGCONT)
        for cable in self.cables.values():
            cable.mend()
        if not self.etcd.runs():
            self.start_etcd()
        for node in self.nodes.values():
            if not node.runs():
                node.boot()
        wait_until(LONG_S, "primary after everything was mended", self.primary)
        wait_until(LONG_S, "two copies in sync after everything was mended", lambda: all(n.in_sync() for n in self.nodes.values()))

    def primary(self):
        """The node that is primary, if there is one."""
        return next((node for node in self.nodes.values() if node.role() == "primary"), None)

    def audit(self):
        """What was lost, what is damaged, and whether the copies are identical."""
        for writer in self.everyone():
            writer.stop()
        primary = wait_until(LONG_S, "primary for the audit", self.primary)
        client = Nbd(primary.socket, VOLUME)
        lost, damaged = [], []
        for writer in self.everyone():
            missing, broken = writer.audit(client)
            lost += missing
            damaged += broken
        client.close()
        wait_until(LONG_S, "two copies in sync for the audit", lambda: all(n.in_sync() for n in self.nodes.values()))
        images = []
        for name in self.nodes:
            with open(f"{self.directory}/{name}.img", "rb") as image:
                images.append(image.read(COMPARED))
        return lost, damaged, images[0] == images[1]

    def changes(self):
        """Every change of the primary that the nodes' logs tell of, in order: (time, node, rule)."""
        found = []
        for node in self.nodes.values():
            text = node.text()
            found += [(when, to, rule) for when, to, rule in re.findall(r'^(\S+) .*the primary changes .*?to="(\w+)".*?rule="([\w-]+)"', text, re.M)]
            found += [(when, node.name, "") for when in re.findall(r'^(\S+) .*what="role" old="secondary" new="primary"', text, re.M)]
        return sorted(found)

    def end(self):
        """Kills everything, without regard."""
        for writer in self.everyone():
            writer.stopping.set()
        for process in (self.impostor, self.attach, *self.nodes.values(), self.etcd):
            process.kill()
        for disk in self.disks.values():
            disk.server.kill()
            disk.fuse.kill()
            subprocess.run(["umount", "--lazy", os.path.dirname(disk.trigger) + "/" + os.path.basename(disk.trigger)[:-4] + ".disk"],
                           capture_output=True, check=False)
        for host in self.hosts.values():
            host.wire.kill()
            host.wire.wait()

    def keep(self, place):
        """Copies logs and configuration elsewhere."""
        os.makedirs(place, exist_ok=True)
        for entry in os.scandir(self.directory):
            if entry.is_file() and entry.name.endswith((".log", ".toml")):
                shutil.copy(entry.path, place)
