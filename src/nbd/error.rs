//! The errors a client can be told, and what a disk's `errno` becomes.

use super::constants;

/// An error value of the protocol (NBD, "Error values").
///
/// `ENOMEM` is left out on purpose: a server's want of memory is not the client's affair, and the protocol asks servers
/// to avoid it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NbdError {
    /// A write to a read-only export.
    #[error("operation not permitted")]
    NotPermitted,
    /// The data could not be read or written.
    #[error("input/output error")]
    Io,
    /// The request is wrong.
    #[error("invalid argument")]
    Invalid,
    /// A write past the end, or a full disk.
    #[error("no space left on device")]
    NoSpace,
    /// A request without payload that is too long to answer at once.
    #[error("value too large")]
    Overflow,
    /// A `FAST_ZERO` that would be no faster than a write; for nothing else.
    #[error("operation not supported")]
    NotSupported,
    /// The server is shutting down. A kernel client turns it into an I/O error, so closing is usually kinder.
    #[error("server is shutting down")]
    ShuttingDown,
}

impl NbdError {
    /// The value on the wire; never 0.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::NotPermitted => constants::EPERM,
            Self::Io => constants::EIO,
            Self::Invalid => constants::EINVAL,
            Self::NoSpace => constants::ENOSPC,
            Self::Overflow => constants::EOVERFLOW,
            Self::NotSupported => constants::ENOTSUP,
            Self::ShuttingDown => constants::ESHUTDOWN,
        }
    }

    /// The error of a value on the wire. One that this server never sends counts as [`NbdError::Io`].
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            constants::EPERM => Self::NotPermitted,
            constants::EINVAL => Self::Invalid,
            constants::ENOSPC => Self::NoSpace,
            constants::EOVERFLOW => Self::Overflow,
            constants::ENOTSUP => Self::NotSupported,
            constants::ESHUTDOWN => Self::ShuttingDown,
            _ => Self::Io,
        }
    }

    /// What a client is told of a failed system call, given its positive `errno`.
    ///
    /// `EDQUOT` and `EFBIG` become `ENOSPC` as the protocol asks. `EOPNOTSUPP`, `EOVERFLOW`, `ESHUTDOWN` and `ENOMEM` of
    /// a disk are I/O errors to the client, since the protocol reserves their namesakes for other cases.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => Self::NotPermitted,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EINVAL => Self::Invalid,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_becomes_what_the_protocol_knows() {
        let table = [
            (libc::EPERM, 1),
            (libc::EACCES, 1),
            (libc::EROFS, 1),
            (libc::EIO, 5),
            (libc::ENOMEM, 5),
            (libc::ETIMEDOUT, 5),
            (libc::EOPNOTSUPP, 5),
            (libc::ESHUTDOWN, 5),
            (libc::EOVERFLOW, 5),
            (0, 5),
            (-1, 5),
            (libc::EINVAL, 22),
            (libc::ENOSPC, 28),
            (libc::EDQUOT, 28),
            (libc::EFBIG, 28),
        ];
        for (errno, code) in table {
            assert_eq!(NbdError::from_errno(errno).code(), code, "errno {errno}");
        }
    }
}
