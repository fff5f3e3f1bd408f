//! A disk with a cache that is lost when the power goes, for a real daemon.
//!
//! The disk lives in the test's process, with the simulator's model of a medium: every write is in the cache until a flush
//! that began after it; when the power goes, each sector that was not flushed keeps its stable content or any version written
//! since, each for itself. It is served over NBD, with the product's own formats, to an `nbdfuse` that shows it to the
//! daemon as a file. FUSE passes each write on before the daemon's write(2) returns, and fsync(2) as a flush, so the
//! kernel's page cache never holds what this cache does not, and a daemon that is only killed loses nothing.
//!
//! `nbdfuse` and its mount live in the daemon's own mount namespace and end with the daemon, whatever ends it.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use repblk::nbd::{
    ExportInfo, ExportListing, ExportRefusal, Exports, Handover, NbdError, Negotiation, Next, Request, header_len,
    parse_header, reply, validate,
};
use repblk::units::ByteRange;

use crate::media::{Loss, Media};
use crate::rng::Rng;
use crate::tools::{SHORT, wait_for};

const SECTOR: usize = 512;
/// How often the thread that accepts looks whether something changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
type Sector = [u8; SECTOR];

/// What is wrong with the disk at present.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) reads_fail: bool,
    pub(crate) writes_fail: bool,
    /// A flush fails, and what it covered is never stable again.
    pub(crate) flushes_fail: bool,
    /// How long a flush takes. What is written meanwhile is not covered by it.
    pub(crate) flush_time: Duration,
    pub(crate) write_time: Duration,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        reads_fail: false,
        writes_fail: false,
        flushes_fail: false,
        flush_time: Duration::ZERO,
        write_time: Duration::ZERO,
    };
}

struct Disk {
    media: Media<Sector>,
    faults: Faults,
    /// Nothing is done and nothing answered.
    frozen: bool,
    over: bool,
    /// Counts power losses: what was asked for before one is not done after it.
    era: u64,
    streams: Vec<UnixStream>,
    open: usize,
    flushes: u64,
}

struct Shared {
    disk: Mutex<Disk>,
    changed: Condvar,
    bytes: u64,
}

/// The disk; it ends when dropped.
pub(crate) struct Shim {
    shared: Arc<Shared>,
    socket: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

impl Shim {
    /// A disk with the content of the file `image`, all of it stable, served at the Unix socket `socket`.
    pub(crate) fn start(image: &Path, socket: &Path) -> Self {
        let content = std::fs::read(image).expect("the image was made by the test");
        let bytes = u64::try_from(content.len()).expect("64 bits");
        let mut media = Media::new(content.len() / SECTOR, [0; SECTOR]);
        for (number, sector) in content.chunks_exact(SECTOR).enumerate().filter(|(_, sector)| **sector != [0; SECTOR]) {
            media.write(number, sector.try_into().expect("whole sectors"));
        }
        media.flushed(media.mark());
        let disk = Disk {
            media,
            faults: Faults::NONE,
            frozen: false,
            over: false,
            era: 0,
            streams: Vec::new(),
            open: 0,
            flushes: 0,
        };
        let shared = Arc::new(Shared { disk: Mutex::new(disk), changed: Condvar::new(), bytes });
        let listener = UnixListener::bind(socket).expect("the test's folder can be written");
        listener.set_nonblocking(true).expect("sockets can do that");
        let serving = Arc::clone(&shared);
        let accepting = thread::spawn(move || serving.accept(&listener));
        Self { shared, socket: socket.to_owned(), accepting: Some(accepting) }
    }

    /// Shell that shows the disk as the file `place` in the present mount namespace, for as long as the process lives that
    /// runs it.
    pub(crate) fn mounting(&self, place: &Path) -> String {
        let pid = self.socket.with_extension("pid");
        format!(
            "rm -f {pid} && {{ setpriv --pdeathsig KILL nbdfuse -P {pid} {place} --unix {socket} & }} && n=0 && \
             until test -s {pid}; do n=$((n + 1)); test $n -lt 1000; sleep 0.01; done",
            pid = pid.display(),
            place = place.display(),
            socket = self.socket.display(),
        )
    }

    /// From now on nothing is done and nothing answered: the disk hangs, or the power goes.
    pub(crate) fn freeze(&self) {
        self.disk().frozen = true;
    }

    /// It goes on with what it was asked for.
    pub(crate) fn thaw(&self) {
        self.disk().frozen = false;
        self.shared.changed.notify_all();
    }

    /// The power is lost, and back. The daemon must have been killed, between [`Shim::freeze`] and this.
    pub(crate) fn lose_power(&self, loss: Loss, rng: &mut Rng) {
        let mut disk = self.disk();
        disk.media.power_loss(loss, rng);
        disk.era += 1;
        disk.frozen = false;
        drop(disk);
        self.shared.changed.notify_all();
    }

    pub(crate) fn set(&self, faults: Faults) {
        self.disk().faults = faults;
    }

    /// Flushes that were done.
    pub(crate) fn flushes(&self) -> u64 {
        self.disk().flushes
    }

    /// Waits until nobody is connected: nothing that a dead daemon asked for can still be done.
    pub(crate) fn settle(&self) {
        wait_for("the disk to be let go", SHORT, || (self.disk().open == 0).then_some(()));
    }

    /// What a reader of the disk sees.
    pub(crate) fn view(&self, at: u64, len: u64) -> Vec<u8> {
        let sector = |at: u64| usize::try_from(at).expect("64 bits") / SECTOR;
        self.disk().media.view()[sector(at)..sector(at + len)].concat()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.shared.disk()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let mut disk = self.disk();
        disk.over = true;
        disk.frozen = false;
        disk.era += 1;
        for stream in disk.streams.drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(disk);
        self.shared.changed.notify_all();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Exports for Shared {
    fn find(&self, _: &[u8]) -> Result<ExportInfo, ExportRefusal> {
        Ok(ExportInfo { fast_zero: false, ..ExportInfo::new("", self.bytes) })
    }

    fn list(&self) -> Vec<ExportListing> {
        Vec::new()
    }

    fn shutting_down(&self) -> bool {
        false
    }
}

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("nobody panics with the disk in hand")
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        while !self.disk().over {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(LOOK_INTERVAL);
                    continue;
                }
                Err(error) => panic!("the disk cannot be served: {error}"),
            };
            stream.set_nonblocking(false).expect("sockets can do that");
            let mut disk = self.disk();
            disk.open += 1;
            disk.streams.push(stream.try_clone().expect("there are descriptors left"));
            drop(disk);
            let shared = Arc::clone(&self);
            thread::spawn(move || {
                // A daemon that is killed takes its nbdfuse with it in the middle of anything.
                let _ = shared.converse(stream);
                shared.disk().open -= 1;
            });
        }
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let handover = self.negotiate(&mut stream)?;
        let terms = handover.terms();
        let mut head = vec![0; header_len(terms.mode)];
        loop {
            stream.read_exact(&mut head)?;
            let header = parse_header(&terms, &head).map_err(io::Error::other)?.expect("the header is whole");
            let mut payload = vec![0; usize::try_from(header.payload_len(terms.mode)).expect("bounded")];
            stream.read_exact(&mut payload)?;
            let to = header.reply_to(terms.mode);
            let mut answer = Vec::new();
            match validate(&terms, &header).map_err(|reject| reject.error) {
                Ok(Request::Disconnect) => return Ok(()),
                Ok(request) => match self.execute(&request, &payload) {
                    Ok(data) => {
                        let head = match request {
                            Request::Read { range, .. } => reply::read(to, range),
                            _ => reply::success(to),
                        };
                        answer.extend_from_slice(head.as_slice());
                        answer.extend(data);
                    }
                    Err(Refusal::Error(error)) => reply::error(to, error, "", &mut answer),
                    Err(Refusal::PowerLost) => return Ok(()),
                },
                Err(error) => reply::error(to, error, "", &mut answer),
            }
            stream.write_all(&answer)?;
        }
    }

    fn negotiate(&self, stream: &mut UnixStream) -> io::Result<Box<Handover>> {
        let mut out = Vec::new();
        let mut negotiation = Negotiation::start(&mut out);
        let mut wanted = negotiation.wanted();
        loop {
            stream.write_all(&std::mem::take(&mut out))?;
            let mut bytes = vec![0; wanted];
            stream.read_exact(&mut bytes)?;
            match negotiation.receive(&bytes, self, &mut out).next {
                Next::Read(len) => wanted = len,
                Next::Transmission(handover) => {
                    stream.write_all(&out)?;
                    return Ok(handover);
                }
                Next::StartTls => return Err(io::Error::other("TLS was not offered")),
                Next::Close(reason) => {
                    stream.write_all(&out)?;
                    return Err(io::Error::other(reason));
                }
            }
        }
    }

    fn execute(&self, request: &Request, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
        let disk = self.disk();
        let era = disk.era;
        let disk = self.alive(disk, era)?;
        let faults = disk.faults;
        match *request {
            Request::Read { .. } if faults.reads_fail => Err(Refusal::Error(NbdError::Io)),
            Request::Read { range, .. } => Ok(disk.read(range)),
            Request::Write { .. } | Request::WriteZeroes { .. } | Request::Trim { .. } if faults.writes_fail => {
                Err(Refusal::Error(NbdError::Io))
            }
            Request::Write { range, fua } => self.write(disk, range, payload, fua),
            Request::WriteZeroes { range, fua, .. } | Request::Trim { range, fua } => {
                self.write(disk, range, &vec![0; usize::try_from(range.len()).expect("a small disk")], fua)
            }
            Request::Flush => self.flush(disk),
            Request::Cache { .. } | Request::Nothing => Ok(Vec::new()),
            Request::BlockStatus { .. } | Request::Disconnect => Err(Refusal::Error(NbdError::Invalid)),
        }
    }

    fn write<'a>(
        &'a self,
        mut disk: MutexGuard<'a, Disk>,
        range: ByteRange,
        bytes: &[u8],
        fua: bool,
    ) -> Result<Vec<u8>, Refusal> {
        let (era, time) = (disk.era, disk.faults.write_time);
        if !time.is_zero() {
            drop(disk);
            thread::sleep(time);
            disk = self.alive(self.disk(), era)?;
        }
        disk.write(range, bytes);
        if fua { self.flush(disk) } else { Ok(Vec::new()) }
    }

    fn flush(&self, disk: MutexGuard<'_, Disk>) -> Result<Vec<u8>, Refusal> {
        let (era, mark, faults) = (disk.era, disk.media.mark(), disk.faults);
        drop(disk);
        thread::sleep(faults.flush_time);
        let mut disk = self.alive(self.disk(), era)?;
        if faults.flushes_fail {
            disk.media.flush_failed(mark);
            return Err(Refusal::Error(NbdError::Io));
        }
        disk.media.flushed(mark);
        disk.flushes += 1;
        Ok(Vec::new())
    }

    /// Waits while the disk is frozen.
    fn alive<'a>(&self, disk: MutexGuard<'a, Disk>, era: u64) -> Result<MutexGuard<'a, Disk>, Refusal> {
        let disk = self.changed.wait_while(disk, |disk| disk.frozen).expect("as in `disk`");
        if disk.era == era { Ok(disk) } else { Err(Refusal::PowerLost) }
    }
}

enum Refusal {
    Error(NbdError),
    /// There is nobody left to answer to.
    PowerLost,
}

impl Disk {
    fn read(&self, range: ByteRange) -> Vec<u8> {
        let (sectors, skip) = touched(range);
        let bytes = self.media.view()[sectors].concat();
        bytes[skip..skip + usize::try_from(range.len()).expect("64 bits")].to_vec()
    }

    fn write(&mut self, range: ByteRange, bytes: &[u8]) {
        let (sectors, skip) = touched(range);
        let mut whole = self.media.view()[sectors.clone()].concat();
        whole[skip..skip + bytes.len()].copy_from_slice(bytes);
        for (number, sector) in sectors.zip(whole.chunks_exact(SECTOR)) {
            self.media.write(number, sector.try_into().expect("whole sectors"));
        }
    }
}

/// The sectors that hold any of `range`, and where in the first one it starts.
fn touched(range: ByteRange) -> (std::ops::Range<usize>, usize) {
    let number = |at: u64| usize::try_from(at).expect("64 bits");
    (number(range.start()) / SECTOR..number(range.end()).div_ceil(SECTOR), number(range.start()) % SECTOR)
}

/// Writes an identity of a boot that no other call has written, for a daemon that shall believe that its host was restarted.
pub(crate) fn new_boot(file: &Path, number: u64) {
    let text = format!("00000000-0000-4000-8000-{number:012x}\n");
    // In place: the file may be bound over the kernel's.
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(file).expect("can be written");
    file.write_all(text.as_bytes()).expect("can be written");
}
