"""What the steps of scripts/lib/drills.toml mean. One step is one line: a verb and its words; `N` is a node, `S` seconds.

    die N | kill N | start N | term N      power lost and links down | SIGKILL | start it, with its links | SIGTERM, and wait for the end
    stop N | cont N                        SIGSTOP | SIGCONT
    cut C... | plug C...                   cables: data heartbeat client-N etcd-N
    mute N C... | starve C RATE | mend C   what N sends on C is lost silently | C carries no more than RATE | as in the beginning
    flap C TIMES S                         C goes down and up, so often, so long each
    etcd kill|start|stop|cont|save|restore the arbiter; save and restore: its data of now, and back to them
    etcd odd HOW | etcd slow TIMES         it answers nonsense instead: error garbage empty hang | it stands still for 0.7 of every 1 s
    disk N eio|hang|slow|good              for nodes in `disks`
    clock N OFFSET                         at its next start its clocks since boot are so many seconds ahead
    attach kill|start                      `repblk attach`
    cli N WORD... | refused N RULE WORD... a command that must succeed | that must be refused by this rule
    try N WORD...                          a command, whatever comes of it
    begin N WORD...                        a command that is not waited for
    kill-at WHO N TEXT                     SIGKILL for WHO (a node or etcd) as soon as the log of N says TEXT from here on
    sleep S
    primary N S                            N is primary within S
    serves N S                             N acknowledges a write sent after the last thing that was done to the pair, within S of that
    flows S                                any node does
    stays N S                              for S only N acknowledges, and never stops for longer than 2 s
    keeps N S                              for S nobody but N is ever primary
    frozen S                               for S nothing is acknowledged that is sent from half a second from now on
    rule N RULE S                          the rule of failover at N becomes RULE within S
    says N TEXT S                          the log of N says TEXT within S
    sync S                                 both copies are good and the same
    ready N S                              N would take over
"""

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time

from drill_client import acked_since, longest_gap
from drill_world import HERE, POLL_S, VOLUME, Failed, wait_until

# What is done to the pair, rather than looked at.
DEEDS = {"die", "kill", "start", "term", "stop", "cont", "cut", "plug", "mute", "starve", "mend", "flap", "etcd", "disk", "cli", "try",
         "begin", "kill-at", "attach"}


class Steps:
    """Carries out the steps of one drill."""

    def __init__(self, world):
        self.world, self.done, self.begun = world, time.monotonic(), []

    def take(self, line):
        """One step."""
        verb, *words = shlex.split(line)
        try:
            getattr(self, "do_" + verb.replace("-", "_"))(*words)
        except Failed as failed:
            raise Failed(f"{line}: {failed}") from None
        if verb in DEEDS:
            self.done = time.monotonic()

    def node(self, name):
        """The node of that name."""
        return self.world.nodes[name]

    def cables_of(self, name):
        """Every cable at that node."""
        return [cable for cable in self.world.cables.values() if name in cable.ends]

    # --- deeds ---

    def do_die(self, name):
        for cable in self.cables_of(name):
            cable.state("down")
        self.node(name).kill()

    def do_kill(self, name):
        self.node(name).kill()

    def do_start(self, name):
        for cable in self.cables_of(name):
            cable.state("up")
        self.node(name).boot()

    def do_term(self, name):
        node = self.node(name)
        node.signal(signal.SIGTERM)
        wait_until(20, f"end of the daemon of {name}", lambda: not node.runs())

    def do_stop(self, name):
        self.node(name).signal(signal.SIGSTOP)

    def do_cont(self, name):
        self.node(name).signal(signal.SIGCONT)

    def do_cut(self, *names):
        for name in names:
            self.world.cables[name].state("down")

    def do_plug(self, *names):
        for name in names:
            self.world.cables[name].state("up")

    def do_mute(self, sender, *names):
        for name in names:
            self.world.cables[name].mute(sender)

    def do_starve(self, name, rate):
        self.world.cables[name].starve(rate)

    def do_mend(self, *names):
        for name in names:
            self.world.cables[name].mend()

    def do_flap(self, name, times, seconds):
        for _ in range(int(times)):
            self.world.cables[name].state("down")
            time.sleep(float(seconds))
            self.world.cables[name].state("up")
            time.sleep(float(seconds))

    def do_etcd(self, what, how=""):
        etcd, data = self.world.etcd, f"{self.world.directory}/etcd"
        if what in ("kill", "save", "restore", "odd"):
            etcd.kill()
        if what == "save":
            shutil.copytree(data, data + ".saved")
        if what == "restore":
            shutil.rmtree(data)
            shutil.copytree(data + ".saved", data)
        if what in ("start", "save", "restore"):
            self.world.impostor.kill()
            self.world.start_etcd()
        if what in ("stop", "cont"):
            etcd.signal(signal.SIGSTOP if what == "stop" else signal.SIGCONT)
        if what == "odd":
            self.world.impostor.kill()
            self.world.impostor.start(self.world.hosts["arbiter"].inside("/usr/bin/python3", "-B", f"{HERE}/drill_impostor.py", how))
        if what == "slow":
            for _ in range(int(how)):
                etcd.signal(signal.SIGSTOP)
                time.sleep(0.7)
                etcd.signal(signal.SIGCONT)
                time.sleep(0.3)

    def do_disk(self, name, state):
        self.world.disks[name].become(state)

    def do_clock(self, name, offset):
        self.world.set_clock(name, int(offset))

    def do_attach(self, what):
        if what == "kill":
            self.world.attach.kill()
        else:
            os.unlink(f"{self.world.directory}/attach-{VOLUME}.nbd")
            self.world.start_attach()

    def do_cli(self, name, *words):
        done = self.node(name).cli(*words)
        if done.returncode:
            raise Failed(f"exit code {done.returncode}: {done.stderr.strip()}")

    def do_refused(self, name, rule, *words):
        done = self.node(name).cli(*words)
        if done.returncode != 1 or rule not in done.stderr:
            raise Failed(f"exit code {done.returncode}: {done.stderr.strip()}")

    def do_try(self, name, *words):
        try:
            self.node(name).cli(*words, seconds=15)
        except subprocess.TimeoutExpired:
            pass

    def do_begin(self, name, *words):
        thread = threading.Thread(target=self.do_try, args=(name, *words), daemon=True)
        self.begun = [node.text() for node in self.world.nodes.values()]
        thread.start()

    def do_kill_at(self, who, name, text):
        node = self.node(name)
        victim = self.world.etcd if who == "etcd" else self.node(who)
        before = len(self.begun[list(self.world.nodes).index(name)])
        end = time.monotonic() + 10
        while text not in node.text()[before:]:
            if time.monotonic() > end:
                raise Failed("it never said so")
            time.sleep(0.0005)
        victim.kill()

    # --- looks ---

    def do_sleep(self, seconds):
        time.sleep(float(seconds))

    def do_primary(self, name, seconds):
        wait_until(float(seconds), f"promotion of {name} (rule {self.node(name).rule()})", lambda: self.node(name).role() == "primary")

    def do_serves(self, name, seconds):
        left = self.done + float(seconds) - time.monotonic()
        wait_until(left, f"acknowledgement of {name} (rule {self.node(name).rule()})",
                   lambda: acked_since(self.world.writers[name], self.done))

    def do_flows(self, seconds):
        left = self.done + float(seconds) - time.monotonic()
        direct = self.world.writers["alpha"] + self.world.writers["beta"]
        wait_until(left, f"acknowledgement ({self.state()})", lambda: acked_since(direct, self.done))

    def state(self):
        """Role and rule of each node."""
        return "; ".join(f"{node.name} {node.role()} {node.rule()}" for node in self.world.nodes.values())

    def do_stays(self, name, seconds):
        began = time.monotonic()
        others = [w for other, ws in self.world.writers.items() if other not in (name, "through") for w in ws]
        time.sleep(float(seconds))
        if count := acked_since(others, began):
            raise Failed(f"{count} writes acknowledged elsewhere")
        gap = longest_gap(self.world.writers[name], began, time.monotonic())
        if gap > 2:
            raise Failed(f"nothing was acknowledged for {gap:.1f} s ({self.state()})")

    def do_keeps(self, name, seconds):
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            for node in self.world.nodes.values():
                if node.name != name and node.role() == "primary":
                    raise Failed(f"{node.name} is primary by {self.world.changes()[-1]}")
            time.sleep(POLL_S)

    def do_frozen(self, seconds):
        time.sleep(0.5)
        began = time.monotonic()
        time.sleep(float(seconds))
        if count := acked_since(self.world.everyone(), began):
            raise Failed(f"{count} writes were acknowledged")

    def do_rule(self, name, rule, seconds):
        node = self.node(name)
        try:
            wait_until(float(seconds), f"rule {rule}", lambda: node.rule() == rule)
        except Failed as failed:
            raise Failed(f"{failed}; it is {node.rule()}") from None

    def do_says(self, name, text, seconds):
        wait_until(float(seconds), f"such line in the log of {name}", lambda: text in self.node(name).text())

    def do_sync(self, seconds):
        wait_until(float(seconds), f"sync ({self.state()})", lambda: all(node.in_sync() for node in self.world.nodes.values()))

    def do_ready(self, name, seconds):
        wait_until(float(seconds), f"readiness of {name}", self.node(name).ready)
