"""Expressions of licences, as SPDX has them and as older crates write them."""

import re


def parse(text):
    """`MIT OR (Apache-2.0 AND ISC)` as nested tuples; a slash is an older OR."""
    words = re.findall(r"[()/]|[^\s()/]+", text)
    expression, rest = either(words)
    if rest:
        raise ValueError(f"{rest[0]!r} is one too many")
    return expression


def either(words):
    first, rest = both(words)
    parts = [first]
    while rest and rest[0] in ("OR", "/"):
        part, rest = both(rest[1:])
        parts.append(part)
    return (parts[0] if len(parts) == 1 else ("OR", *parts)), rest


def both(words):
    first, rest = one(words)
    parts = [first]
    while rest and rest[0] == "AND":
        part, rest = one(rest[1:])
        parts.append(part)
    return (parts[0] if len(parts) == 1 else ("AND", *parts)), rest


def one(words):
    if not words:
        raise ValueError("it ends too early")
    word, rest = words[0], words[1:]
    if word == "(":
        inner, rest = either(rest)
        if rest[:1] != [")"]:
            raise ValueError("a parenthesis stays open")
        return inner, rest[1:]
    if word in (")", "OR", "AND", "WITH", "/"):
        raise ValueError(f"{word!r} stands where a licence should")
    if rest[:1] == ["WITH"]:
        if len(rest) < 2:
            raise ValueError("an exception is missing")
        return f"{word} WITH {rest[1]}", rest[2:]
    return word, rest


def choose(expression, allowed):
    """The licences that are taken, the ones first in `allowed` where there is a choice; none when that is not possible."""
    if isinstance(expression, str):
        return [expression] if expression in allowed else None
    kind, *parts = expression
    chosen = [choose(part, allowed) for part in parts]
    if kind == "AND":
        return None if None in chosen else [licence for part in chosen for licence in part]
    possible = [part for part in chosen if part is not None]
    return min(possible, key=lambda part: [allowed.index(licence) for licence in part], default=None)


def self_test():
    """Choices, and what is no expression."""
    allowed = ["MIT", "Apache-2.0", "Unicode-3.0"]
    cases = [
        ("MIT", ["MIT"]), ("MIT/Apache-2.0", ["MIT"]), ("Apache-2.0 OR MIT", ["MIT"]), ("GPL-3.0-only", None),
        ("GPL-3.0-only OR Apache-2.0", ["Apache-2.0"]), ("MIT AND GPL-3.0-only", None),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", ["MIT", "Unicode-3.0"]),
        ("MIT OR Apache-2.0 AND GPL-3.0-only", ["MIT"]), ("Apache-2.0 WITH LLVM-exception", None),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", ["MIT"]),
    ]
    for text, chosen in cases:
        assert choose(parse(text), allowed) == chosen, text
    for wrong in ("", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND MIT", "MIT WITH"):
        try:
            parse(wrong)
        except ValueError:
            continue
        raise AssertionError(f"{wrong!r} is no expression")
