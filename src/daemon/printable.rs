//! Text of others, made fit for a terminal and a log.

/// `text` as one line: control characters, which could break the line or command the terminal, are shown as escapes.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_name_cannot_break_the_line() {
        assert_eq!(one_line("node é\n\u{1b}[2J\0"), "node é\\n\\u{1b}[2J\\u{0}");
    }
}
