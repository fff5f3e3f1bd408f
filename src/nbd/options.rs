//! The data of the options that carry some: parsed without copying, without trusting a length, without allocating.

use super::constants::{self, STRING_MAX};
use super::fields::Fields;

/// Why an option's data is refused: the sentence that goes with `ERR_INVALID`.
pub(super) type Malformed = &'static str;

/// The data of `INFO` and `GO` (NBD, "Option types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InfoRequest<'a> {
    /// The name the client uses.
    pub(super) export: &'a [u8],
    /// The client asks for the canonical name.
    pub(super) name: bool,
    /// The client asks for the description.
    pub(super) description: bool,
    /// The client asks for the size constraints.
    pub(super) block_size: bool,
}

impl<'a> InfoRequest<'a> {
    /// Reads the option's data. Unknown information requests are ignored, repeated ones are answered once.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        const SHORT: Malformed = "the data is shorter than its name and its list of information requests";
        let mut fields = Fields(data);
        let export = string(&mut fields, SHORT)?;
        let count = fields.u16().ok_or(SHORT)?;
        let mut request = Self { export, name: false, description: false, block_size: false };
        for _ in 0..count {
            match fields.u16().ok_or(SHORT)? {
                constants::INFO_NAME => request.name = true,
                constants::INFO_DESCRIPTION => request.description = true,
                constants::INFO_BLOCK_SIZE => request.block_size = true,
                // INFO_EXPORT is always sent; others are not known here.
                _ => {}
            }
        }
        nothing_left(fields)?;
        Ok(request)
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`, reduced to what this server can answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MetaRequest<'a> {
    /// The name the client uses.
    pub(super) export: &'a [u8],
    /// No query was sent: all contexts when listing, none when setting.
    pub(super) no_queries: bool,
    /// A query was `base:`, the wildcard of the listing.
    pub(super) base: bool,
    /// A query was `base:allocation`.
    pub(super) allocation: bool,
}

impl<'a> MetaRequest<'a> {
    /// Reads the option's data. Queries of other namespaces and unknown names in `base:` are ignored.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        const SHORT: Malformed = "the data is shorter than its export name and its queries";
        let mut fields = Fields(data);
        let export = string(&mut fields, SHORT)?;
        let count = fields.u32().ok_or(SHORT)?;
        let mut request = Self { export, no_queries: count == 0, base: false, allocation: false };
        // A count that the data cannot hold ends at the first query that is missing.
        for _ in 0..count {
            let query = string(&mut fields, SHORT)?;
            if !query.contains(&b':') {
                return Err("a metadata query needs a namespace and a colon, as in base:allocation");
            }
            request.base |= query == constants::BASE_NAMESPACE;
            request.allocation |= query == constants::BASE_ALLOCATION.as_bytes();
        }
        nothing_left(fields)?;
        Ok(request)
    }
}

/// A string behind its 32-bit length.
fn string<'a>(fields: &mut Fields<'a>, short: Malformed) -> Result<&'a [u8], Malformed> {
    let len = fields.u32().ok_or(short)?;
    let text = fields.bytes(len).ok_or(short)?;
    if text.len() > STRING_MAX { Err("a string is longer than 4096 bytes") } else { Ok(text) }
}

fn nothing_left(fields: Fields<'_>) -> Result<(), Malformed> {
    if fields.is_empty() { Ok(()) } else { Err("the data is longer than what it announces") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name_len: u32, name: &[u8], count: u16, requests: &[u16]) -> Vec<u8> {
        let mut data = name_len.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&count.to_be_bytes());
        data.extend(requests.iter().flat_map(|r| r.to_be_bytes()));
        data
    }

    fn meta(name: &[u8], count: u32, queries: &[&[u8]]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&count.to_be_bytes());
        for query in queries {
            data.extend_from_slice(&u32::try_from(query.len()).expect("short").to_be_bytes());
            data.extend_from_slice(query);
        }
        data
    }

    #[test]
    fn info_requests_are_read_and_unknown_ones_ignored() {
        let data = info(3, b"a\0b", 5, &[3, 77, 0, 3, 1]);
        let expected = InfoRequest { export: b"a\0b", name: true, description: false, block_size: true };
        assert_eq!(InfoRequest::parse(&data), Ok(expected));
    }

    #[test]
    fn info_lengths_that_do_not_fit_are_malformed() {
        for data in [
            vec![],
            vec![0, 0, 0],
            info(4, b"abc", 0, &[])[..6].to_vec(),
            info(u32::MAX, b"abc", 0, &[]),
            info(u32::MAX - 5, b"abc", 0, &[]),
            info(3, b"abc", 1, &[]),
            info(3, b"abc", u16::MAX, &[1, 2]),
            info(3, b"abc", 0, &[1]),
            info(4097, &[b'a'; 4097], 0, &[]),
        ] {
            assert!(InfoRequest::parse(&data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn meta_queries_select_what_is_known() {
        let none = MetaRequest { export: b"v", no_queries: false, base: false, allocation: false };
        let cases: [(&[&[u8]], MetaRequest<'_>); 5] = [
            (&[], MetaRequest { no_queries: true, ..none }),
            (&[b"base:allocation", b"base:allocation"], MetaRequest { allocation: true, ..none }),
            (&[b"base:"], MetaRequest { base: true, ..none }),
            (&[b"qemu:dirty-bitmap:x", b"base:allocationx", b"Base:allocation", b":"], none),
            (&[b"base:other", b"base:allocation"], MetaRequest { allocation: true, ..none }),
        ];
        for (queries, expected) in cases {
            let count = u32::try_from(queries.len()).expect("few");
            assert_eq!(MetaRequest::parse(&meta(b"v", count, queries)), Ok(expected));
        }
    }

    #[test]
    fn meta_queries_that_do_not_fit_are_malformed() {
        for data in [
            vec![],
            meta(b"v", 1, &[]),
            meta(b"v", u32::MAX, &[b"base:allocation"]),
            meta(b"v", 0, &[b"base:allocation"]),
            meta(b"v", 1, &[b"base"]),
            meta(b"v", 1, &[b""]),
            meta(b"v", 1, &[&[b':'; 4097]]),
            [&meta(b"v", 1, &[])[..], &[0xff; 4]].concat(),
        ] {
            assert!(MetaRequest::parse(&data).is_err(), "{data:?}");
        }
    }
}
