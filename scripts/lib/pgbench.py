"""PostgreSQL's own bench (TPC-B) on devices of several systems, in turns. Used by scripts/bench-peers; needs root."""

import os
import re
import shutil
import subprocess

import rig as rigs

BIN = "/usr/lib/postgresql/15/bin"
SCALE = 10


def lacking():
    """What is missing here to measure it, in words; nothing when it can be measured."""
    missing = [tool for tool in ("nbdfuse", "losetup", "mkfs.ext4", f"{BIN}/pgbench", f"{BIN}/initdb") if not shutil.which(tool)]
    missing += [] if os.path.exists("/dev/fuse") else ["/dev/fuse"]
    if os.geteuid() != 0:
        return "it needs root, for mounts"
    return f"there is no {', '.join(missing)}" if missing else ""


class Database:
    """A server on a system's device; ended by `end`, or with the script."""

    def __init__(self, rig, system):
        self.name, self.directory = system.name, rig.path(system.name + "-pg")
        os.chmod(rig.directory, 0o755)
        os.mkdir(self.directory, 0o755)
        host = os.path.join(rigs.REPO, "scripts/lib/pg_host.sh")
        self.process = rig.start(system.name + "-pg-log", "unshare", "--mount", "--pid", "--fork", "--kill-child", host,
                                 system.uri, self.directory)
        rigs.wait_until(90, f"PostgreSQL on {system.name}", self.is_settled)
        if self.process.poll() is not None:
            raise rigs.Failed(f"PostgreSQL on {system.name} ended: {rig.log_end(system.name + '-pg-log')}")
        self.run("--initialize", f"--scale={SCALE}", "--quiet")

    def command(self, *words):
        """A client's command, as user postgres."""
        return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "env", "-C", "/", *words,
                "--host", os.path.join(self.directory, "socket")]

    def is_settled(self):
        """The server answers, or is gone."""
        ask = subprocess.run(self.command(f"{BIN}/pg_isready", "--quiet"), capture_output=True, check=False)
        return ask.returncode == 0 or self.process.poll() is not None

    def run(self, *options):
        """Runs pgbench; what it printed."""
        done = subprocess.run([*self.command(f"{BIN}/pgbench"), *options, "postgres"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise rigs.Failed(f"pgbench on {self.name}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def transactions_per_second(self, clients, seconds):
        """One run."""
        said = self.run(f"--client={clients}", "--jobs=1", f"--time={seconds}", "--no-vacuum")
        return float(re.search(r"tps = ([\d.]+)", said).group(1))

    def end(self):
        """Ends the server and what it stands on, with its process namespace."""
        self.process.kill()
        self.process.wait(30)


def measure(rig, systems, rounds, seconds):
    """Transactions per second by (clients, system's name): one figure for each round."""
    databases = [Database(rig, system) for system in systems]
    results = {(clients, each.name): [] for clients in (4, 16) for each in databases}
    for _ in range(rounds):
        for clients in (4, 16):
            for each in databases:
                results[clients, each.name].append(each.transactions_per_second(clients, seconds))
    for each in databases:
        each.end()
    return results
