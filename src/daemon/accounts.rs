//! Names of users and groups of this host, as `/etc/passwd` and `/etc/group` have them.
//!
//! A directory on the network is not asked: whoever starts a daemon or promotes a node must not wait for it. Where a group is kept there,
//! its number does as well as its name, and who is a member the kernel knows.

use std::io;

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// The number of the group called `name`; a number names itself.
///
/// # Errors
/// When the groups cannot be read.
pub(crate) fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let text = std::fs::read_to_string(GROUPS)?;
    Ok(entries(&text).find(|entry| entry.name == name).map(|entry| entry.number))
}

/// Number and group of the user called `name`.
///
/// # Errors
/// When the users cannot be read.
pub(crate) fn user(name: &str) -> io::Result<Option<(u32, u32)>> {
    let text = std::fs::read_to_string(USERS)?;
    Ok(entries(&text).find(|entry| entry.name == name).and_then(|entry| Some((entry.number, entry.group?))))
}

/// The name of the user with this number; its digits when it has none here.
pub(crate) fn user_name(number: u32) -> String {
    name_in(USERS, number)
}

/// The same of a group.
pub(crate) fn group_name(number: u32) -> String {
    name_in(GROUPS, number)
}

fn name_in(file: &str, number: u32) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found = entries(&text).find(|entry| entry.number == number).map(|entry| entry.name.to_owned());
    found.unwrap_or_else(|| number.to_string())
}

/// A line of one of the two files: their first fields are the same.
struct Entry<'t> {
    name: &'t str,
    number: u32,
    /// Of a user.
    group: Option<u32>,
}

fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some(Entry { name, number, group: fields.next().and_then(|group| group.parse().ok()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_and_what_is_no_entry_is_passed_over() {
        let text =
            "root:x:0:0:root:/root:/bin/sh\n# a word\nbroken:x:many:0\nrepblk:x:990:991::/:/bin/false\nshort:x\n";
        let found: Vec<_> = entries(text).map(|entry| (entry.name, entry.number, entry.group)).collect();
        assert_eq!(found, [("root", 0, Some(0)), ("repblk", 990, Some(991))]);
        let found: Vec<_> = entries("wheel:x:10:anna,bert\n").map(|entry| (entry.name, entry.number)).collect();
        assert_eq!(found, [("wheel", 10)]);
    }

    #[test]
    fn root_is_known_everywhere_and_a_number_names_itself() {
        assert_eq!((user("root").expect("readable"), user_name(0)), (Some((0, 0)), "root".to_owned()));
        assert_eq!(group("root").expect("readable"), Some(0));
        assert_eq!(group("1500").expect("readable"), Some(1500));
        assert_eq!(group("no such group").expect("readable"), None);
        assert_eq!(user_name(4_000_000_000), "4000000000");
        assert_eq!(name_in("/nowhere", 0), "0");
    }
}
