//! "Did you mean": the known word nearest to a mistyped one.

/// The word of `known` that `typed` most likely meant; none when nothing is near.
pub(super) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let tolerated = typed.chars().count().div_ceil(3).clamp(1, 4);
    known
        .into_iter()
        .map(|word| (distance(typed, word), word))
        .filter(|&(distance, _)| distance <= tolerated)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// Insertions, deletions and replacements of one character that lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("mode", "mode", 0), ("mdoe", "mode", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        let known = ["mode", "peer_timeout_ms", "ping_interval_ms", "direct"];
        assert_eq!(nearest("peer_timeot_ms", known), Some("peer_timeout_ms"));
        assert_eq!(nearest("peer_timeout", known), Some("peer_timeout_ms"));
        assert_eq!(nearest("moed", known), Some("mode"));
        assert_eq!(nearest("made up", known), None);
        assert_eq!(nearest("mod", known), Some("mode"));
        assert_eq!(nearest("compression", known), None);
    }
}
