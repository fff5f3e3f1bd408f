"""What cargo says of the tree: the lock file, and the packages behind it."""

import json
import subprocess
import tomllib
from dataclasses import dataclass

CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
# The one that is built for.
TARGET = "x86_64-unknown-linux-gnu"


class Failed(Exception):
    """Cargo refuses."""


@dataclass(frozen=True)
class Crate:
    """A package of a lock file."""

    name: str
    version: str
    source: str | None
    checksum: str | None

    @property
    def is_own(self):
        """It has no source: it lies in the tree."""
        return self.source is None

    def __str__(self):
        return f"{self.name} {self.version}"


def locked(file):
    """The packages of a lock file, in its order."""
    packages = tomllib.loads(file.read_text())["package"]
    return [Crate(p["name"], p["version"], p.get("source"), p.get("checksum")) for p in packages]


def run(root, *args):
    """What cargo prints, with a lock file that must not change and without the network."""
    command = ["cargo", *args, "--locked", "--offline", "--manifest-path", str(root / "Cargo.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split())
        raise Failed(f"`{' '.join(command[:2])} --locked` fails: {why}; run cargo build, look at what changes in Cargo.lock, and commit it")
    return done.stdout


def metadata(root):
    """All packages for Linux, those of tests too."""
    return json.loads(run(root, "metadata", "--format-version", "1", "--filter-platform", TARGET))


def built(root, edges):
    """Names and versions of what a build of the binary compiles, over `edges` as `cargo tree` knows them."""
    lines = run(root, "tree", "--target", TARGET, "--edges", edges, "--prefix", "none", "--format", "{p}").splitlines()
    return {tuple(line.split()[:2]) for line in lines if line}
