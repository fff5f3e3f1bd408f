"""Advisories of RustSec: which versions they are about, and the snapshot of those that matter here."""

import json
import re
import subprocess
import tomllib

# github.com/semver: numbers, then identifiers of a pre-release; what stands behind a plus is no part of the order.
VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?$")


def read(text):
    """How many numbers a version has, and what it is compared by."""
    match = VERSION.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is no version")
    numbers = [int(number) for number in match.groups()[:3] if number is not None]
    pre = match[4]
    # A pre-release comes before its release; a number in it before a word.
    parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".")] if pre else [(2, 0, "")]
    return len(numbers), (tuple(numbers + [0] * (3 - len(numbers))), tuple(parts))


def bump(numbers, place):
    """The first version that differs from `numbers` at `place` or before it, its pre-releases left out too."""
    raised = numbers[:place] + (numbers[place] + 1,) + (0,) * (2 - place)
    return raised, ((0, -1, ""),)


def fits(version, requirement):
    """Whether a version is in a range of an advisory, such as `>= 1.2.3, < 2`."""
    at = read(version)[1]
    for part in requirement.split(","):
        sign, text = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~|)\s*(\S+)\s*", part).groups()
        if text == "*":
            continue
        count, wanted = read(text)
        numbers = wanted[0]
        match sign:
            case ">=":
                good = at >= wanted
            case "<":
                good = at < wanted
            case ">":
                good = at > wanted if count == 3 else at >= bump(numbers, count - 1)
            case "<=":
                good = at <= wanted if count == 3 else at < bump(numbers, count - 1)
            case "=":
                good = at == wanted if count == 3 else wanted <= at < bump(numbers, count - 1)
            case "~":
                good = wanted <= at < bump(numbers, min(count - 1, 1))
            case _:
                # Caret, which is also meant where nothing stands: the first number that is not 0 stays.
                place = next((i for i, number in enumerate(numbers[:count]) if number), count - 1)
                good = wanted <= at < bump(numbers, place)
        if not good:
            return False
    return True


def series(version):
    """Versions of one series take each other's place."""
    major, minor, patch = read(version)[1][0]
    return f"{major}" if major else f"0.{minor}" if minor else f"0.0.{patch}"


def applies(advisory, version):
    """Whether an advisory is about a version."""
    return not any(fits(version, range_) for range_ in advisory["patched"] + advisory["unaffected"])


def snapshot(clone, names):
    """The advisories for the crates called `names` in a clone of the database, and from which day they are."""

    def git(*args):
        return subprocess.run(["git", "-C", str(clone), *args], capture_output=True, text=True, check=True).stdout

    commit, day = git("log", "-1", "--format=%H %cs").split()
    wanted = set(names)
    found = []
    for path in git("ls-tree", "-r", "--name-only", "HEAD", "crates").splitlines():
        parts = path.split("/")
        if len(parts) != 3 or parts[1] not in wanted or not parts[2].endswith(".md"):
            continue
        advisory = parse(git("show", f"HEAD:{path}"))
        if advisory:
            found.append(advisory)
    found.sort(key=lambda advisory: advisory["id"])
    return {"database": "github.com/rustsec/advisory-db", "commit": commit, "date": day, "crates": names, "advisories": found}


def parse(text):
    """An advisory as the snapshot has it; none for one that was withdrawn."""
    head, body = re.search(r"```toml\n(.*?)```\s*(.*)", text, re.DOTALL).groups()
    head = tomllib.loads(head)
    about, versions = head["advisory"], head["versions"]
    if "withdrawn" in about:
        return None
    patched, unaffected = versions.get("patched", []), versions.get("unaffected", [])
    for range_ in patched + unaffected:
        fits("1.0.0", range_)
    title = re.match(r"#\s*(.*)", body)
    kind = about.get("informational", "vulnerability")
    return {
        "id": about["id"], "package": about["package"], "kind": kind, "title": title[1].strip() if title else about["id"],
        "patched": patched, "unaffected": unaffected,
    }


def text(snapshot):
    """The snapshot as its file has it: a line for each advisory."""
    lines = ",\n".join(json.dumps(advisory, ensure_ascii=False) for advisory in snapshot["advisories"])
    head = {key: value for key, value in snapshot.items() if key != "advisories"}
    return json.dumps(head, ensure_ascii=False)[:-1] + ',\n"advisories": [\n' + lines + "\n]}\n"


def self_test():
    """Ranges, at their edges."""
    cases = [
        (">= 1.2.3", "1.2.3 1.2.4 2.0.0", "1.2.2 1.2.3-rc.1 0.9.9"),
        ("< 1.0.0", "0.9.9 1.0.0-alpha", "1.0.0 1.0.1"),
        (">= 0.103.12, < 0.104.0-alpha.1", "0.103.12 0.103.99", "0.103.11 0.104.0-alpha.1 0.104.0"),
        ("0.13.10", "0.13.10 0.13.11", "0.13.9 0.14.0 1.0.0"),
        ("^1.2", "1.2.0 1.9.9", "1.1.9 2.0.0 2.0.0-alpha"),
        ("^0.0.3", "0.0.3", "0.0.4 0.0.2 0.1.0"),
        ("0.20", "0.20.0 0.20.5", "0.19.9 0.21.0"),
        ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
        ("=0.2.1", "0.2.1", "0.2.0 0.2.2 0.2.1-rc1"),
        ("<= 1.2", "1.2.9 0.1.0", "1.3.0"),
        ("> 1.2", "1.3.0", "1.2.9 1.2.0"),
        (">= 1.0.0-alpha.1", "1.0.0-alpha.1 1.0.0-alpha.2 1.0.0-beta 1.0.0 1.0.0+build", "1.0.0-alpha 0.9.0"),
        (">= 1.0.0-alpha.9", "1.0.0-alpha.10", "1.0.0-alpha.2"),
    ]
    for range_, inside, outside in cases:
        for version in inside.split():
            assert fits(version, range_), f"{version} is in {range_}"
        for version in outside.split():
            assert not fits(version, range_), f"{version} is not in {range_}"
    assert [series(version) for version in ("1.2.3", "0.2.17", "0.0.4")] == ["1", "0.2", "0.0.4"]
    assert applies({"patched": [">= 2.0.0", "^1.4.2"], "unaffected": ["< 1.0.0"]}, "1.4.1")
    assert applies({"patched": [], "unaffected": []}, "9.9.9"), "never mended"
    for version in ("0.9.0", "1.4.2", "2.1.0"):
        assert not applies({"patched": [">= 2.0.0", "^1.4.2"], "unaffected": ["< 1.0.0"]}, version), version
