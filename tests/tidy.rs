//! The house rules, checked over the text of the tree: ranks, purity, sizes, and docs that keep up with the code.
//!
//! Each failure names a file and a line, and what to do. The rules themselves are told in `docs/architecture.md`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use repblk::volume::rule::Rule;

/// Rank and name of each room. A room may use rooms of lower rank.
const ROOMS: &[(u8, &str)] = &[
    (0, "condition"),
    (0, "generation"),
    (0, "marks"),
    (0, "units"),
    (1, "meta"),
    (1, "nbd"),
    (1, "wire"),
    (2, "attach"),
    (2, "volume"),
    (3, "failover"),
    (3, "services"),
    (4, "daemon"),
    (4, "dataplane"),
    (4, "follower"),
    (4, "tls"),
    (5, "cli"),
    (6, "main"),
];

/// Rooms of one rank that may use each other, in this direction.
const BESIDE: &[(&str, &str)] = &[
    ("generation", "units"),
    ("condition", "units"),
    ("daemon", "dataplane"),
    ("follower", "daemon"),
    ("follower", "tls"),
    ("daemon", "tls"),
    ("dataplane", "tls"),
];

/// Rooms that must not meet although the ranks would allow it.
const APART: &[(&str, &str)] = &[("volume", "nbd"), ("failover", "nbd")];

/// What formats and machines must not touch, and where it belongs.
const IMPURE: &[(&str, &str)] = &[
    ("std::fs", "files belong to the shells"),
    ("std::net", "sockets belong to the shells"),
    ("std::os", "the operating system belongs to the shells"),
    ("std::env", "the environment belongs to the shells"),
    ("std::process", "processes belong to the shells"),
    ("std::thread", "threads belong to the shells"),
    ("std::sync", "a machine has one owner; locks belong to the shells"),
    ("Instant", "time comes in as units::Moment"),
    ("SystemTime", "time comes in as units::Moment"),
    ("tokio", "tokio belongs to the daemon"),
    ("HashMap", "its order differs from run to run; use BTreeMap"),
    ("HashSet", "its order differs from run to run; use BTreeSet"),
    ("rand", "randomness comes in as an argument"),
    ("getrandom", "randomness comes in as an argument"),
    ("tracing", "say it as a Report; the shells log"),
    ("println", "say it as a Report; the shells log"),
    ("eprintln", "say it as a Report; the shells log"),
];

const FILE_LINES_MAX: usize = 800;
const FN_LINES_MAX: usize = 100;

/// One source file.
struct Source {
    /// From the root of the tree, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The room, for a file of `src`.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let room = inside.split('/').next().expect("split gives a part");
        let room = room.strip_suffix(".rs").unwrap_or(room);
        (room != "lib").then_some(room)
    }

    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().expect("split gives a part");
        !self.path.starts_with("src/") || name == "tests.rs" || name.ends_with("_tests.rs")
    }

    /// Lines with their numbers, without comments and without what stands in string literals.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, strip(line)))
    }

    /// The same, without the unit tests at the end of the file.
    fn production(&self) -> impl Iterator<Item = (usize, String)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let end = lines
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {"))
            .unwrap_or(lines.len());
        let end = if self.is_test() { 0 } else { end };
        self.code().take(end)
    }
}

/// A line of code without its comment and without the insides of its string literals.
fn strip(line: &str) -> String {
    let mut code = String::new();
    let mut chars = line.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            // The character literal of a quote opens no string.
            '\'' if !quoted && chars.peek() == Some(&'"') => drop((chars.next(), chars.next())),
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(c),
        }
    }
    code
}

/// True when `word` stands in `code` as a whole path or identifier.
fn has_word(code: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part_of_name) && !code[at + word.len()..].starts_with(part_of_name))
}

/// True for a line that begins a function, and not for one that names a function's type.
fn starts_function(line: &str) -> bool {
    strip(line).split_once("fn ").is_some_and(|(before, name)| {
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern"];
        before.split_whitespace().all(|word| qualifiers.contains(&word)) && !name.starts_with('(')
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` that end in `.ext`, sorted.
fn files(dir: &str, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == ext) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> Source {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
    Source { path, text }
}

fn sources(dir: &str) -> Vec<Source> {
    let found: Vec<Source> = files(dir, "rs").iter().map(|path| read(path)).collect();
    assert!(!found.is_empty(), "{dir} has no sources; this test looks in the wrong place");
    found
}

fn all_sources() -> Vec<Source> {
    let benches = files("benches", "rs").into_iter().map(|path| read(&path));
    sources("src").into_iter().chain(sources("tests")).chain(benches).collect()
}

/// What is wrong, one line each.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn add(&mut self, path: &str, line: usize, what: impl std::fmt::Display) {
        writeln!(self.0, "{path}:{line}: {what}").expect("text grows");
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "\n{}", self.0);
    }
}

fn rank(room: &str) -> Option<u8> {
    ROOMS.iter().find(|(_, name)| *name == room).map(|&(rank, _)| rank)
}

/// The rooms that a line of code names after `crate::` or `repblk::`, grouped imports included.
fn rooms_named(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for prefix in ["crate::", "repblk::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            let parts: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().expect("split gives a part").split(',').collect(),
                None => vec![rest],
            };
            for part in parts {
                let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                named.push(name);
            }
        }
    }
    named.retain(|name| !name.is_empty());
    named
}

#[test]
fn imports_point_to_lower_ranks() {
    let mut findings = Findings::default();
    for source in sources("src") {
        let Some(room) = source.room() else { continue };
        let Some(own) = rank(room) else {
            let what = "a room without a rank: give it one in tests/tidy.rs, docs/architecture.md and src/lib.rs";
            findings.add(&source.path, 1, what);
            continue;
        };
        for (line, code) in source.code() {
            for other in rooms_named(&code).into_iter().filter(|other| other != room) {
                let Some(theirs) = rank(&other) else { continue };
                let pair = (room, other.as_str());
                if (theirs >= own && !BESIDE.contains(&pair)) || APART.contains(&pair) {
                    findings.add(
                        &source.path,
                        line,
                        format!("{room} (rank {own}) must not know {other} (rank {theirs}); move what both need down"),
                    );
                }
            }
        }
    }
}

#[test]
fn every_room_says_its_rank() {
    let mut findings = Findings::default();
    for source in sources("src").iter().filter(|source| !source.is_test()) {
        if !source.text.starts_with("//!") {
            findings.add(&source.path, 1, "say what this file is for, in a `//!` comment at its top");
        }
        let room = source.room().unwrap_or("lib");
        let head = source.path == format!("src/{room}.rs") || source.path == format!("src/{room}/mod.rs");
        let expected = rank(room).filter(|&rank| head && rank < 6).map(|rank| format!("//! Rank {rank}"));
        if let Some(expected) = expected.filter(|expected| !source.text.starts_with(expected)) {
            findings.add(&source.path, 1, format!("the room's doc starts with `{expected}, ...`"));
        }
    }
}

#[test]
fn formats_and_machines_are_pure() {
    let mut findings = Findings::default();
    for source in sources("src") {
        let pure = source.room().and_then(rank).is_some_and(|rank| rank <= 3);
        for (line, code) in source.production().filter(|_| pure) {
            for (word, instead) in IMPURE {
                if has_word(&code, word) {
                    findings.add(&source.path, line, format!("`{word}` in a pure room: {instead}"));
                }
            }
            if has_word(&code, "libc") {
                let errors = source.path == "src/nbd/error.rs";
                let constants = code.split("libc::").skip(1).all(|name| name.starts_with('E'));
                if !(errors && constants) {
                    let what = "`libc` in a pure room: only src/nbd/error.rs may name error numbers";
                    findings.add(&source.path, line, what);
                }
            }
        }
    }
}

#[test]
fn unsafe_is_confined_to_the_data_plane() {
    let mut findings = Findings::default();
    for source in all_sources().iter().filter(|source| !source.path.starts_with("src/dataplane/")) {
        for (line, code) in source.code() {
            if has_word(&code, "unsafe") || (has_word(&code, "unsafe_code") && code.contains("allow")) {
                findings.add(&source.path, line, "`unsafe` outside src/dataplane: use a safe crate, or move it there");
            }
        }
    }
}

/// A place with `unsafe`, and what it says of itself.
struct UnsafePlace {
    line: usize,
    /// The function, or the `impl`, that it stands in.
    name: String,
    /// Why it is sound; empty when nothing is said.
    invariant: String,
}

/// The name that a line of code gives to what begins there: a function's, or an `unsafe impl` as it is written.
fn named(code: &str) -> Option<String> {
    if has_word(code, "unsafe") && has_word(code, "impl") {
        return Some(code.trim().trim_end_matches([' ', '{', '}']).trim_start_matches("unsafe ").to_owned());
    }
    let (_, name) = code.split_once("fn ").filter(|_| starts_function(code))?;
    Some(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}

/// Every place with `unsafe` in a file, in its order.
fn unsafe_places(source: &Source) -> Vec<UnsafePlace> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut places = Vec::new();
    let mut name = String::new();
    for (line, code) in source.code() {
        name = named(&code).unwrap_or(name);
        if !has_word(&code, "unsafe") {
            continue;
        }
        // The comment right above it: what stands behind `SAFETY:`, or, for an unsafe function, below `# Safety`.
        let above = lines[..line - 1].iter().rev().map(|line| line.trim()).take_while(|line| line.starts_with("//"));
        let mut comment: Vec<&str> = above.map(|line| line.trim_start_matches('/').trim()).collect();
        comment.reverse();
        let comment = comment.join(" ");
        let said = comment.split_once("SAFETY: ").or_else(|| comment.split_once("# Safety "));
        let invariant = said.map(|(_, why)| why.to_owned()).unwrap_or_default();
        places.push(UnsafePlace { line, name: name.clone(), invariant });
    }
    places
}

/// `docs/unsafe.md` lists every place with `unsafe`, and its invariant in the words of the code. `REPBLK_BLESS=1` writes the list anew.
#[test]
fn every_unsafe_place_is_listed_with_its_invariant() {
    const BEGIN: &str = "<!-- The list: REPBLK_BLESS=1 cargo test --test tidy unsafe -->\n";
    const END: &str = "<!-- The end of the list -->\n";
    let mut findings = Findings::default();
    let (mut list, mut count) = (String::new(), 0);
    for source in sources("src/dataplane") {
        let places = unsafe_places(&source);
        if !places.is_empty() {
            write!(list, "\n### {}\n\n| in | because |\n|---|---|\n", source.path).expect("text grows");
        }
        for UnsafePlace { line, name, invariant } in places {
            if invariant.is_empty() {
                findings.add(&source.path, line, "say in a comment `// SAFETY: ...` right above it why this is sound");
            }
            writeln!(list, "| `{name}` | {} |", invariant.replace('|', "\\|")).expect("text grows");
            count += 1;
        }
    }
    assert!(count > 30, "the places are found: {count}");
    let list = format!("\n{count} places.\n{list}\n");
    let path = root().join("docs/unsafe.md");
    let page = read(&path).text;
    let (before, rest) = page.split_once(BEGIN).expect("the page has the beginning of the list");
    let (listed, after) = rest.split_once(END).expect("the page has the end of the list");
    if std::env::var_os("REPBLK_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, format!("{before}{BEGIN}{list}{END}{after}")).expect("the page can be written");
    } else if listed != list {
        let line = list.lines().zip(listed.lines()).take_while(|(a, b)| a == b).count();
        let (code, page) = (list.lines().nth(line).unwrap_or(""), listed.lines().nth(line).unwrap_or(""));
        let what = format!(
            "the code has {code:?} where the list has {page:?}: judge what changed, then `REPBLK_BLESS=1 cargo test --test tidy unsafe`"
        );
        findings.add("docs/unsafe.md", before.lines().count() + 2 + line, what);
    }
}

/// What the path of a write is made of is named, with the reason to trust it, in `docs/unsafe.md`.
#[test]
fn crates_on_the_path_of_a_write_are_named() {
    const ROOMS: [&str; 6] = ["dataplane", "meta", "nbd", "tls", "volume", "wire"];
    let mut findings = Findings::default();
    let page = read(&root().join("docs/unsafe.md")).text;
    let manifest = read(&root().join("Cargo.toml")).text;
    let own = manifest.split_once("[dependencies]").and_then(|(_, rest)| rest.split_once("\n[")).expect("a table").0;
    let crates: Vec<&str> = own.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    assert!(crates.len() > 15, "the dependencies are found: {crates:?}");
    for room in ROOMS {
        for source in sources(&format!("src/{room}")) {
            for (line, code) in source.production() {
                let named = |name: &&&str| {
                    code.contains(&format!("{}::", name.replace('-', "_"))) && has_word(&code, &name.replace('-', "_"))
                };
                for name in crates.iter().filter(named).filter(|name| !page.contains(&format!("`{name}`"))) {
                    findings.add(
                        &source.path,
                        line,
                        format!("docs/unsafe.md does not name {name}: say what it does there, and why it is trusted"),
                    );
                }
            }
        }
    }
}

#[test]
fn bincode_is_confined_to_the_hello() {
    let mut findings = Findings::default();
    for source in sources("src").iter().filter(|source| source.path != "src/wire/hello.rs") {
        for (line, code) in source.code().filter(|(_, code)| has_word(code, "bincode")) {
            findings.add(&source.path, line, format!("`{}`: bincode belongs to src/wire/hello.rs alone", code.trim()));
        }
    }
}

#[test]
fn nothing_is_left_to_do() {
    let mut findings = Findings::default();
    for source in all_sources() {
        for (line, code) in source.code() {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                if code.contains(word) {
                    findings.add(&source.path, line, format!("`{word}`: finish it or take it away"));
                }
            }
        }
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut findings = Findings::default();
    for source in all_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            let what = format!("{} lines, at most {FILE_LINES_MAX}: split it by nouns", lines.len());
            findings.add(&source.path, lines.len(), what);
        }
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| starts_function(line)) {
            let indent = &line[..line.len() - line.trim_start().len()];
            let end = format!("{indent}}}");
            // rustfmt closes a function at its own indentation; a signature without a body ends at once.
            let Some(len) = lines[at..].iter().position(|l| *l == end) else { continue };
            let declared_only = line.trim_end().ends_with([';', '}']);
            if !declared_only && len + 1 > FN_LINES_MAX {
                let what = format!("a function of {} lines, at most {FN_LINES_MAX}: name its parts", len + 1);
                findings.add(&source.path, at + 1, what);
            }
        }
    }
}

#[test]
fn every_message_is_documented() {
    let mut findings = Findings::default();
    let source = read(&root().join("src/wire/message.rs"));
    let protocol = read(&root().join("docs/protocol.md")).text;
    let body = source.text.split_once("pub enum Message {").expect("the enum is there").1;
    let body = body.split_once("\n}").expect("the enum ends").0;
    let variants: Vec<String> = body
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect();
    assert!(variants.len() > 20, "the messages are found: {variants:?}");
    for variant in variants {
        let mut constant = String::new();
        for c in variant.chars() {
            if c.is_uppercase() && !constant.is_empty() {
                constant.push('_');
            }
            constant.push(c.to_ascii_uppercase());
        }
        let place = source.text.lines().enumerate().find(|(_, l)| l.starts_with(&format!("const {constant}: u16 = ")));
        let Some((at, line)) = place else {
            findings.add(&source.path, 1, format!("no `const {constant}: u16` for the message {variant}"));
            continue;
        };
        let number = line.rsplit_once("= ").expect("an assignment").1.trim_end_matches(';');
        if !protocol.contains(&format!("| {number} | `{variant}` |")) {
            findings.add(
                &source.path,
                at + 1,
                format!("docs/protocol.md needs a row `| {number} | `{variant}` | ...`"),
            );
        }
    }
}

/// The names in `= NUMBER "name"` of a table of rules, with their lines.
fn rule_names(source: &Source) -> Vec<(usize, u16, String)> {
    let rule = |line: &str| {
        let (_, rest) = line.trim().strip_suffix("\",")?.split_once(" = ")?;
        let (number, name) = rest.split_once(" \"")?;
        Some((number.parse().ok()?, name.to_owned()))
    };
    let lines = source.text.lines().enumerate();
    lines.filter_map(|(i, line)| rule(line).map(|(number, name)| (i + 1, number, name))).collect()
}

#[test]
fn every_rule_is_documented() {
    let mut findings = Findings::default();
    let protocol = read(&root().join("docs/protocol.md")).text;
    let refusals = read(&root().join("src/volume/rule.rs"));
    let directions = read(&root().join("src/volume/reconcile.rs"));
    assert_eq!(rule_names(&refusals).len(), Rule::ALL.len(), "the rules that refuse are found in their source");
    assert!(rule_names(&directions).len() >= 18, "the rules of the reconcile table are found in their source");
    for source in [&refusals, &directions] {
        for (line, number, name) in rule_names(source) {
            if !protocol.contains(&format!("| {number} | `{name}` |")) {
                findings.add(&source.path, line, format!("docs/protocol.md needs a row `| {number} | `{name}` | ...`"));
            }
        }
    }
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut findings = Findings::default();
    let mut pages = files("docs", "md");
    pages.extend(["README.md", "README.zh-CN.md"].map(|name| root().join(name)).into_iter().filter(|p| p.exists()));
    assert!(pages.len() > 5, "the docs are found: {pages:?}");
    for path in pages {
        let page = read(&path);
        let dir = path.parent().expect("a page stands in a directory");
        for (i, line) in page.text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let file = target.split('#').next().expect("split gives a part");
                let outside = target.contains("://") || target.starts_with("mailto:");
                if !outside && !file.is_empty() && !dir.join(file).exists() {
                    findings.add(&page.path, i + 1, format!("the link to `{target}` leads nowhere"));
                }
            }
        }
    }
}

#[test]
fn tests_named_in_the_docs_exist() {
    let mut findings = Findings::default();
    let page = read(&root().join("docs/testing.md"));
    let tests: String = all_sources().into_iter().map(|source| source.text).collect();
    let mut names = 0;
    for (i, line) in page.text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        // A cell of a table names tests by their last words; a name of three words or more is a test's.
        let quoted = line.split('`').skip(1).step_by(2).map(|name| name.rsplit("::").next().unwrap_or(name));
        for name in quoted.filter(|name| name.matches('_').count() >= 2 && !name.contains(char::is_uppercase)) {
            names += 1;
            let is_scenario = name.ends_with(".txt") && root().join("tests/failover/scenarios").join(name).exists();
            if !is_scenario && !tests.contains(&format!("fn {name}(")) {
                findings.add(&page.path, i + 1, format!("there is no test `{name}`"));
            }
        }
    }
    assert!(names > 60, "the names are found: {names}");
}

#[test]
fn pages_named_in_the_code_exist() {
    let mut findings = Findings::default();
    for source in sources("src") {
        for (i, line) in source.text.lines().enumerate() {
            for (at, _) in line.match_indices("docs/") {
                let name: String =
                    line[at..].chars().take_while(|c| c.is_alphanumeric() || "/_-.".contains(*c)).collect();
                let name = name.trim_end_matches('.');
                if name.ends_with(".md") && !root().join(name).exists() {
                    findings.add(&source.path, i + 1, format!("`{name}` does not exist: write it or correct the name"));
                }
            }
        }
    }
}

#[test]
fn the_house_is_drawn_completely() {
    let mut findings = Findings::default();
    let map = read(&root().join("src/lib.rs"));
    let page = read(&root().join("docs/architecture.md"));
    for room in sources("src").iter().filter_map(Source::room).filter(|room| *room != "main") {
        if !page.text.contains(&format!("`{room}`")) {
            findings.add(&page.path, 1, format!("the room `{room}` is missing in the table of rooms"));
        }
        if !map.text.contains(&format!("[`{room}`]")) && !map.text.contains(&format!("`{room}`")) {
            findings.add(&map.path, 1, format!("the room `{room}` is missing in the map"));
        }
    }
}

#[test]
fn the_checks_see_what_they_should() {
    assert_eq!(strip("let a = \"std::fs // no\"; // std::fs"), "let a = ; ");
    assert_eq!(strip(r#"let q = '"'; b("\"tokio\"")"#), "let q = ; b()");
    assert!(has_word("use std::fs;", "std::fs") && has_word("x: HashMap<u8, u8>", "HashMap"));
    assert!(!has_word("operand(1)", "rand") && !has_word("IndexHashMap", "HashMap"));
    assert!(starts_function("    pub(crate) async fn f(") && !starts_function("    probe: fn(u8) -> bool,"));
    assert_eq!(rooms_named("use crate::{meta, wire::Message}; crate::nbd::x()"), ["meta", "wire", "nbd"]);
}
