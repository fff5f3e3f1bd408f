//! The table `[control]`: who may use the control socket besides root and the daemon's own user.

use super::reader::Section;

/// Members of this group may do everything, where the host has it and nothing else is said.
const GROUP_DEFAULT: &str = "repblk";
/// Longest name of a group, as `groupadd` has it.
const GROUP_LEN_MAX: usize = 32;

/// Who may use the control socket besides root and the daemon's own user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSpec {
    /// The group whose members may do everything: a name, or a number.
    pub group: String,
    /// The group stands in the configuration. One that is missing on the host is a mistake then.
    pub group_is_named: bool,
    /// Who may look, and change nothing.
    pub read: Readers,
}

/// Who may look at everything, and change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readers {
    /// Nobody but those who may do everything.
    #[default]
    Group,
    /// Every user of the host.
    Everyone,
}

/// Reads the table; `section` is none when there is none.
pub(super) fn control(section: Option<Section<'_>>) -> ControlSpec {
    let mut spec = ControlSpec { group: GROUP_DEFAULT.to_owned(), group_is_named: false, read: Readers::default() };
    let Some(mut section) = section else { return spec };
    if let Some(group) = section.parsed("group", "it must be the name of a group, or its number", group) {
        (spec.group, spec.group_is_named) = (group.value, true);
    }
    let read = section.parsed("read", "it must be \"group\" or \"everyone\"", |text| match text {
        "group" => Some(Readers::Group),
        "everyone" => Some(Readers::Everyone),
        _ => None,
    });
    spec.read = read.map_or_else(Readers::default, |at| at.value);
    section.finish();
    spec
}

fn group(text: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let good = !text.is_empty() && text.len() <= GROUP_LEN_MAX && text.bytes().all(fits) && !text.starts_with('-');
    good.then(|| text.to_owned())
}
