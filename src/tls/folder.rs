//! The folder of keys: who keeps what in which file.
//!
//! | file | what | where |
//! |---|---|---|
//! | `ca.pem` | certificates of the authority; each of them is trusted | everywhere |
//! | `ca.key` | the authority's private key | only where certificates are made |
//! | `cluster.secret` | the secret in use, one in a line; those in further lines are accepted too | on each node |
//! | `NAME.pem`, `NAME.key` | certificate and private key of a node or client | with its holder |
//!
//! Every file is made its owner's alone. A private key that others may read is not used, nor anything that others may change. The folder belongs to
//! the daemon's user, and so does what root puts into it, but for the authority's key: that stays with whoever made it, and the daemon cannot read it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{self as unix, DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::authority::{Authority, Issued};
use super::certificate::Certificate;
use crate::wire::sealed::{SECRET_LEN, Secret};

/// Where keys are when the configuration does not say.
pub const DEFAULT_FOLDER: &str = "/etc/repblk/keys";
/// Secrets in the file: the one in use, and the ones it takes over from.
const SECRETS_MAX: usize = 4;

/// A folder of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// Why a file of the folder cannot be used: a sentence with the file, what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}", file = .file.display())]
pub struct FolderError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong, and what to do.
    pub why: String,
}

impl Folder {
    /// The folder at `path`, which may not exist.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_path_buf())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The authority's certificates.
    #[must_use]
    pub fn authority_file(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// The authority's private key.
    #[must_use]
    pub fn authority_key_file(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// The secrets.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.0.join("cluster.secret")
    }

    /// The certificate of `name`.
    #[must_use]
    pub fn certificate_file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    /// The private key of `name`.
    #[must_use]
    pub fn key_file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }

    /// Makes the folder, if it is not there, and gives it to a user and his group if so wished.
    ///
    /// # Errors
    /// When it cannot be made, or given away.
    pub fn make(&self, owner: Option<(u32, u32)>) -> Result<(), FolderError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|error| wrong(&self.0, format!("cannot be made: {error}")))?;
        let Some((user, group)) = owner else { return Ok(()) };
        let given = unix::chown(&self.0, Some(user), Some(group));
        given.map_err(|error| wrong(&self.0, format!("cannot be given to its user: {error}; run this as root")))
    }

    /// The user to whom the folder belongs; none when it is not there.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        fs::metadata(&self.0).ok().map(|facts| facts.uid())
    }

    /// The files of the folder that are for `user` to read, and belong to somebody else, with whom they belong to.
    #[must_use]
    pub fn not_of(&self, user: u32) -> Vec<(PathBuf, u32)> {
        let names = self.names();
        let of_names = names.iter().flat_map(|name| [self.certificate_file(name), self.key_file(name)]);
        let files = [self.authority_file(), self.secret_file()].into_iter().chain(of_names);
        let owner = |file: PathBuf| fs::metadata(&file).ok().map(|facts| (file, facts.uid()));
        files.filter_map(owner).filter(|(_, owner)| *owner != user).collect()
    }

    /// Writes the authority's files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_authority(&self, authority: &Authority) -> Result<(), FolderError> {
        write(&self.authority_key_file(), authority.key(), For::Writer)?;
        write(&self.authority_file(), authority.certificate(), For::Folder)
    }

    /// The authority, where its private key is.
    ///
    /// # Errors
    /// When there is none, or it is not readable.
    pub fn authority(&self) -> Result<Authority, FolderError> {
        let (certificate, key) = (self.authority_file(), self.authority_key_file());
        let unreadable = |error| wrong(&key, format!("is not the key of {}: {error}", certificate.display()));
        Authority::read(&read(&certificate)?, &read_private(&key)?).map_err(unreadable)
    }

    /// Writes the certificate and the key of `name`. A daemon that reads meanwhile finds the old ones, the new ones, or two that do not belong
    /// together, which it does not use.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_issued(&self, name: &str, issued: &Issued) -> Result<(), FolderError> {
        write(&self.key_file(name), &issued.key, For::Folder)?;
        write(&self.certificate_file(name), &issued.certificate, For::Folder)
    }

    /// The certificates that are trusted.
    ///
    /// # Errors
    /// When there is none.
    pub fn trusted(&self) -> Result<Vec<CertificateDer<'static>>, FolderError> {
        certificates(&self.authority_file())
    }

    /// The certificate of `name` with those between it and the authority, if there are any.
    ///
    /// # Errors
    /// When there is none.
    pub fn chain(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, FolderError> {
        certificates(&self.certificate_file(name))
    }

    /// What stands in the certificate of `name`.
    ///
    /// # Errors
    /// When it is not readable.
    pub fn certificate(&self, name: &str) -> Result<Certificate, FolderError> {
        let chain = self.chain(name)?;
        let first = chain.first().and_then(Certificate::read);
        first.ok_or_else(|| wrong(&self.certificate_file(name), "is no certificate"))
    }

    /// The private key of `name`.
    ///
    /// # Errors
    /// When there is none, or others may read it.
    pub fn key(&self, name: &str) -> Result<PrivateKeyDer<'static>, FolderError> {
        private_key(&self.key_file(name))
    }

    /// The secrets, the one in use first.
    ///
    /// # Errors
    /// When there is none, or others may read it.
    pub fn secrets(&self) -> Result<Vec<Secret>, FolderError> {
        let file = self.secret_file();
        let text = read_private(&file)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let secrets: Result<Vec<Secret>, _> = lines.map(|line| Secret::parse(line.trim())).collect();
        let secrets = secrets.map_err(|error| wrong(&file, error.to_string()))?;
        match secrets.len() {
            1..=SECRETS_MAX => Ok(secrets),
            count => Err(wrong(&file, format!("has {count} secrets; 1 to {SECRETS_MAX} are possible"))),
        }
    }

    /// Writes the secrets, the one in use first; of those it takes over from, only the newest are kept.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_secrets(&self, secrets: &[Secret]) -> Result<(), FolderError> {
        let kept = secrets.len().min(SECRETS_MAX);
        let mut text = Zeroizing::new(String::with_capacity(kept * (2 * SECRET_LEN + 1)));
        for secret in &secrets[..kept] {
            text.push_str(&secret.digits());
            text.push('\n');
        }
        write(&self.secret_file(), &text, For::Folder)
    }

    /// A secret that nobody knows.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn fresh_secret() -> io::Result<Secret> {
        let mut bytes = [0; SECRET_LEN];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Secret::new(bytes))
    }

    /// The names of all whose certificate is in the folder, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".pem").map(str::to_owned);
        let mut names: Vec<String> = entries.filter_map(name).filter(|name| name != "ca").collect();
        names.sort();
        names
    }

    /// Changes whenever one of the files of `name` does.
    #[must_use]
    pub fn stamp(&self, name: &str) -> Vec<Option<(i64, i64, u64)>> {
        let files = [self.authority_file(), self.secret_file(), self.certificate_file(name), self.key_file(name)];
        let of = |file: &PathBuf| fs::metadata(file).ok().map(|facts| (facts.ctime(), facts.ctime_nsec(), facts.ino()));
        files.iter().map(of).collect()
    }
}

pub(super) fn wrong(file: &Path, why: impl Into<String>) -> FolderError {
    FolderError { file: file.to_path_buf(), why: why.into() }
}

/// What nobody but a file's owner may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Change it: it says whom this node trusts.
    Unchanged,
    /// Read it, either.
    Secret,
}

impl Care {
    /// Insists on it for a file or folder of these facts.
    fn check(self, file: &Path, facts: &fs::Metadata) -> Result<(), FolderError> {
        let (mode, sticky) = (facts.mode() & 0o777, facts.is_dir() && facts.mode() & 0o1000 != 0);
        let why = match self {
            Self::Secret if mode & 0o077 != 0 => {
                format!("others than its owner may use it (mode {mode:03o}): chmod 600, and renew it if they may have")
            }
            // In a folder such as /tmp nobody takes away what is somebody else's.
            _ if mode & 0o022 != 0 && !sticky => {
                format!("others than its owner may change it (mode {mode:03o}): chmod go-w, and look whether they have")
            }
            _ => return Ok(()),
        };
        Err(wrong(file, why))
    }
}

/// The effective user of this process.
fn own_user() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
}

/// The text of a file, if nobody can have had a hand in it. It is the open file that is judged, so that nothing is put in its place meanwhile.
fn careful(file: &Path, care: Care, absent: &str) -> Result<Zeroizing<String>, FolderError> {
    let unread = |error: io::Error| {
        let next = match error.kind() {
            io::ErrorKind::NotFound => absent,
            io::ErrorKind::PermissionDenied => {
                "; it must belong to the user that repblk runs as (chown), and so must its folder"
            }
            _ => "",
        };
        wrong(file, format!("cannot be read: {error}{next}"))
    };
    let mut open = fs::File::open(file).map_err(unread)?;
    let facts = open.metadata().map_err(unread)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let around = fs::metadata(folder).map_err(unread)?;
    care.check(file, &facts)?;
    Care::Unchanged.check(folder, &around)?;
    if ![Some(0), own_user(), Some(around.uid())].contains(&Some(facts.uid())) {
        let why = format!("belongs to user {}, who is neither root nor repblk's: chown it, and renew it", facts.uid());
        return Err(wrong(file, why));
    }
    // Room for all of it: a text that grows leaves pieces of itself behind.
    let room = usize::try_from(facts.len()).unwrap_or(0).min(TEXT_LEN_USUAL) + 1;
    let mut text = Zeroizing::new(String::with_capacity(room));
    open.read_to_string(&mut text).map_err(unread)?;
    Ok(text)
}

/// Files of keys are shorter than this, in bytes.
const TEXT_LEN_USUAL: usize = 1 << 20;

const UNMADE: &str = "; make it with `repblk cert` on the host that has the authority, and copy it here";

fn read(file: &Path) -> Result<Zeroizing<String>, FolderError> {
    careful(file, Care::Unchanged, UNMADE)
}

fn read_private(file: &Path) -> Result<Zeroizing<String>, FolderError> {
    careful(file, Care::Secret, UNMADE)
}

/// A password that nobody else may read: all of its file but the newline at the end.
///
/// # Errors
/// When there is none, or others may read it.
pub fn password(file: &Path) -> Result<Zeroizing<String>, FolderError> {
    let mut text = careful(file, Care::Secret, "; write the password into it")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Whose a file becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// The owner's of the folder, where root writes it.
    Folder,
    /// The writer's.
    Writer,
}

/// Puts a new file in the place of an old one in one go, its owner's alone from the first byte on.
fn write(file: &Path, text: &str, whose: For) -> Result<(), FolderError> {
    let next = file.with_extension("new");
    let put = || {
        let folder = fs::File::open(file.parent().unwrap_or(Path::new("/")))?;
        // One that was left behind may have another owner or mode.
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        let (has, wanted) = (open.metadata()?, folder.metadata()?);
        if whose == For::Folder && has.uid() != wanted.uid() {
            unix::fchown(&open, Some(wanted.uid()), Some(wanted.gid()))?;
        }
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        fs::rename(&next, file)?;
        folder.sync_all()
    };
    put().map_err(|error| wrong(file, format!("cannot be written: {error}")))
}

/// A private key that nobody else may read.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FolderError> {
    let text = read_private(file)?;
    // What the parser says could repeat some of the key.
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong(file, "is no private key in PEM"))
}

pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FolderError> {
    let text = read(file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(wrong(file, "has no certificate in PEM")),
        Err(error) => Err(wrong(file, format!("is not readable as PEM: {error}"))),
    }
}
