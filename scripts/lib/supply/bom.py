"""What the binary is made of: a bill of materials in CycloneDX 1.5, and the texts of the licences.

Both follow from Cargo.lock, the crates it names, and the tool chain, and are the same bytes each time.
"""

import hashlib
import json
import re
import subprocess
import tomllib
import uuid
from pathlib import Path

import cargo
import spdx

POLICY = Path(__file__).with_name("policy.toml")
# What crates call the files that must go with them.
TEXTS = re.compile(r"(LICEN[SC]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.IGNORECASE)
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "repblk")


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


class Materials:
    """The packages that a build of the binary compiles."""

    def __init__(self, root):
        self.root = root
        graph = cargo.metadata(root)
        # What tests alone want is in the graph too, and in a build it is not.
        compiled = cargo.built(root, "no-dev")
        self.linked = cargo.built(root, "normal,no-proc-macro")
        packages = {package["id"]: package for package in graph["packages"]}
        self.own = packages[graph["resolve"]["root"]]
        self.packages = {id_: p for id_, p in packages.items() if (p["name"], f"v{p['version']}") in compiled and id_ != self.own["id"]}
        self.nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
        self.checksums = {(crate.name, crate.version): crate.checksum for crate in cargo.locked(root / "Cargo.lock")}
        self.rustc = dict(line.split(": ", 1) for line in output("rustc", "-vV").splitlines() if ": " in line)

    def sorted(self):
        return sorted(self.packages.values(), key=lambda p: (p["name"], p["version"]))

    def is_linked(self, package):
        """It is in the binary, and does not only run while others are compiled."""
        return (package["name"], f"v{package['version']}") in self.linked

    def wants(self, package):
        """What a package is compiled with, as package URLs."""
        deps = self.nodes[package["id"]]["deps"]
        ids = [dep["pkg"] for dep in deps if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])]
        return sorted(purl(self.packages[id_]) for id_ in ids if id_ in self.packages)

    def licence(self, package):
        chosen = spdx.choose(spdx.parse(package["license"]), tomllib.loads(POLICY.read_text())["licences"])
        return " AND ".join(dict.fromkeys(chosen)) if chosen else package["license"]


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sbom(root):
    """The bill of materials, as JSON."""
    made = Materials(root)
    std = f"pkg:generic/rust-std@{made.rustc['release']}"
    own = {"type": "application", "bom-ref": purl(made.own), "name": made.own["name"], "version": made.own["version"], "purl": purl(made.own),
           "licenses": [{"expression": made.own["license"]}]}
    components = [
        {
            "type": "library", "bom-ref": purl(package), "name": package["name"], "version": package["version"], "purl": purl(package),
            # What only runs while others are compiled is no part of the binary.
            "scope": "required" if made.is_linked(package) else "excluded",
            "licenses": [{"expression": package["license"].replace(" / ", " OR ").replace("/", " OR ")}],
            "hashes": [{"alg": "SHA-256", "content": made.checksums[package["name"], package["version"]]}],
        }
        for package in made.sorted()
    ]
    components.append({"type": "library", "bom-ref": std, "name": "rust-std", "version": made.rustc["release"], "purl": std, "scope": "required",
                       "licenses": [{"expression": "MIT OR Apache-2.0"}],
                       "properties": [{"name": "commit", "value": made.rustc["commit-hash"]}]})
    dependencies = [{"ref": purl(made.own), "dependsOn": made.wants(made.own) + [std]}]
    dependencies += [{"ref": purl(package), "dependsOn": made.wants(package)} for package in made.sorted()]
    content = {"metadata": {"component": own}, "components": components, "dependencies": dependencies}
    serial = uuid.uuid5(NAMESPACE, hashlib.sha256(json.dumps(content).encode()).hexdigest())
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return json.dumps(head | content, indent=1, ensure_ascii=False) + "\n"


def licences(root):
    """Which licence each crate is taken under, and every text that its package has. A text that several have stands once."""
    made = Materials(root)
    own = f"{made.own['name']} {made.own['version']}"
    texts, without = {(root / "LICENSE").read_text().strip(): [f"{own}: LICENSE"]}, []
    lines = [f"{own} is under {made.own['license']}. It is made of these, each under the licence beside it:\n"]
    for package in filter(made.is_linked, made.sorted()):
        name, folder = f"{package['name']} {package['version']}", Path(package["manifest_path"]).parent
        lines.append(f"  {name:<32} {made.licence(package)}")
        files = sorted(file for file in folder.glob("*") if file.is_file() and TEXTS.match(file.name) and file.suffix != ".rs")
        for file in files:
            texts.setdefault(file.read_text(errors="replace").strip(), []).append(f"{name}: {file.name}")
        if not files:
            without.append(name)
    std = f"rust-std {made.rustc['release']}"
    lines.append(f"  {std:<32} MIT")
    without.append(std)
    lines.append("\nThe packages of these have no file with the text; their licence is one of those below: " + ", ".join(without))
    for text, names in texts.items():
        lines.append("\n" + "-" * 100 + "\n" + "\n".join(names) + "\n\n" + text)
    return "\n".join(lines) + "\n"
