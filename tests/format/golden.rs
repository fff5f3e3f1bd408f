//! Golden images: text files with the bytes that a format version has for ever.
//!
//! One line for each 32 bytes that are not all zero: offset, then the bytes, in hexadecimal. `REPBLK_BLESS=1` writes the
//! files anew; a blessed change of an existing file is a change of the format and needs a new version.

use std::fmt::Write as _;
use std::path::PathBuf;

const LINE_LEN: usize = 32;

/// Compares `bytes` with the golden file `name`, and returns the bytes of the file.
pub(crate) fn check(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/format/golden").join(name);
    if std::env::var_os("REPBLK_BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, dump(bytes)).expect("the golden file can be written");
    }
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; REPBLK_BLESS=1 makes a new golden file", path.display()));
    assert_eq!(text, dump(bytes), "{name}: the bytes of this format version must never change");
    load(&text)
}

fn dump(bytes: &[u8]) -> String {
    let mut text = format!("len {}\n", bytes.len());
    for (i, line) in bytes.chunks(LINE_LEN).enumerate().filter(|(_, line)| line.iter().any(|&b| b != 0)) {
        write!(text, "{:06x}", i * LINE_LEN).expect("text grows");
        for group in line.chunks(4) {
            text.push(' ');
            for byte in group {
                write!(text, "{byte:02x}").expect("text grows");
            }
        }
        text.push('\n');
    }
    text
}

fn load(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let len = lines.next().and_then(|l| l.strip_prefix("len ")).expect("the first line has the length");
    let mut bytes = vec![0; len.parse().expect("a length")];
    for line in lines {
        let (offset, digits) = line.split_once(' ').expect("an offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("an offset");
        let digits = digits.replace(' ', "");
        for (i, pair) in digits.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
            bytes[offset + i] = u8::from_str_radix(pair, 16).expect("a byte");
        }
    }
    bytes
}
