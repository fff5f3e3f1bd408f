//! Encoding of the server's half of the negotiation: the greeting and the replies to options.

use super::constants::{self, STRING_MAX};
use super::export::{ExportInfo, ExportListing, Mode};

/// Writes the server's greeting (NBD, "Newstyle negotiation").
pub(super) fn greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&constants::INIT_MAGIC.to_be_bytes());
    out.extend_from_slice(&constants::OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&(constants::FLAG_FIXED_NEWSTYLE | constants::FLAG_NO_ZEROES).to_be_bytes());
}

/// Writes the answer to a successful `EXPORT_NAME`, which has no header.
pub(super) fn export_name(out: &mut Vec<u8>, export: &ExportInfo, mode: Mode, zeroes: bool) {
    out.extend_from_slice(&export.size.to_be_bytes());
    out.extend_from_slice(&export.transmission_flags(mode).to_be_bytes());
    if zeroes {
        out.extend_from_slice(&[0; constants::EXPORT_NAME_ZEROES]);
    }
}

/// Replies to one option: all carry its code.
#[derive(Debug)]
pub(super) struct OptionReplies<'a> {
    /// The option's code, as the client sent it.
    pub(super) option: u32,
    /// Where the bytes go.
    pub(super) out: &'a mut Vec<u8>,
}

impl OptionReplies<'_> {
    /// The option has succeeded; nothing follows.
    pub(super) fn ack(&mut self) {
        self.reply(constants::REP_ACK, &[]);
    }

    /// The option has failed for the reason in `message`; nothing follows.
    pub(super) fn error(&mut self, kind: u32, message: &str) {
        debug_assert!(kind & constants::REP_FLAG_ERROR != 0, "{kind:#x} is no error reply");
        self.reply(kind, &[clip(message).as_bytes()]);
    }

    /// One export of a listing.
    pub(super) fn server(&mut self, listing: &ExportListing) {
        let name = clip(&listing.name).as_bytes();
        let parts = [&length(name.len()).to_be_bytes(), name, clip(&listing.description).as_bytes()];
        self.reply(constants::REP_SERVER, &parts);
    }

    /// Size and transmission flags.
    pub(super) fn info_export(&mut self, export: &ExportInfo, mode: Mode) {
        let (size, flags) = (export.size.to_be_bytes(), export.transmission_flags(mode).to_be_bytes());
        self.info(constants::INFO_EXPORT, &[&size, &flags]);
    }

    /// Canonical name.
    pub(super) fn info_name(&mut self, export: &ExportInfo) {
        self.info(constants::INFO_NAME, &[clip(&export.name).as_bytes()]);
    }

    /// Description for humans.
    pub(super) fn info_description(&mut self, export: &ExportInfo) {
        self.info(constants::INFO_DESCRIPTION, &[clip(&export.description).as_bytes()]);
    }

    /// Size constraints.
    pub(super) fn info_block_size(&mut self, export: &ExportInfo) {
        let [min, preferred, payload] =
            [export.min_block, export.preferred_block, export.max_payload].map(u32::to_be_bytes);
        self.info(constants::INFO_BLOCK_SIZE, &[&min, &preferred, &payload]);
    }

    /// The context `base:allocation` under `id`; listings use id 0.
    pub(super) fn meta_context(&mut self, id: u32) {
        let parts = [&id.to_be_bytes(), constants::BASE_ALLOCATION.as_bytes()];
        self.reply(constants::REP_META_CONTEXT, &parts);
    }

    fn info(&mut self, kind: u16, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + 2;
        self.header(constants::REP_INFO, len);
        self.out.extend_from_slice(&kind.to_be_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        self.header(kind, parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    fn header(&mut self, kind: u32, len: usize) {
        self.out.extend_from_slice(&constants::OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend_from_slice(&self.option.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&length(len).to_be_bytes());
    }
}

/// The longest start of `text` that is a legal string of the protocol.
pub(super) fn clip(text: &str) -> &str {
    let mut end = text.len().min(STRING_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("strings are clipped, so a reply is a few KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = format!("{}é", "a".repeat(STRING_MAX - 1));
        assert_eq!(clip(&text).len(), STRING_MAX - 1);
        assert_eq!(clip("shört"), "shört");
    }
}
