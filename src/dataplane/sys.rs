//! The few system calls that the standard library does not offer, each behind a safe function.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::units::{ByteRange, Moment};

/// The node's monotonic clock; it also runs while the host is suspended.
pub fn now() -> Moment {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that the call may write; CLOCK_BOOTTIME has existed since Linux 2.6.39.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(status, 0, "the clock of a running system can be read");
    let part = |n: i64| u64::try_from(n).expect("time since boot is not negative");
    Moment(part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What a bare system call returned. Bare, where it is made for every write: the C library's functions for these calls are points of
/// cancellation, with two atomic operations each, in a program of several threads.
fn check_long(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn offset(n: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// A counter that wakes an epoll loop.
#[derive(Debug)]
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Makes the descriptor readable.
    pub(super) fn signal(&self) {
        #[expect(clippy::host_endian_bytes, reason = "the counter is read by this host's kernel")]
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes are given. The only failure is a full counter, which wakes just as well.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What epoll said of one descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    /// The number given at registration.
    pub(super) token: u64,
    /// Bytes, an end or an error can be read.
    pub(super) readable: bool,
    /// The other side has ended: a short receive does not mean that nothing more is to come, the end is.
    pub(super) ending: bool,
    /// Bytes or an error can be written.
    pub(super) writable: bool,
}

/// An epoll instance. Descriptors are registered edge-triggered, once; for writing only while somebody wants to know.
#[derive(Debug)]
pub(super) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 64] })
    }

    /// Reports under `token` each time that `fd` has something to read. Closing the descriptor ends it.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, false)
    }

    /// Reports, or does not report any more, also when `fd` has room for bytes. Room that is there already is reported.
    pub(super) fn watch_room(&self, fd: BorrowedFd<'_>, token: u64, on: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, on)
    }

    fn control(&self, what: libc::c_int, fd: BorrowedFd<'_>, token: u64, room: bool) -> io::Result<()> {
        let room = if room { libc::EPOLLOUT } else { 0 };
        let flags = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET | room;
        let mut event = libc::epoll_event { events: flags.cast_unsigned(), u64: token };
        // SAFETY: both descriptors are open, `event` is valid for the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits up to `timeout` (for ever when none) and appends what happened to `out`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Ready>) -> io::Result<()> {
        let spec = timeout.map(|t| libc::timespec {
            tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let room = libc::c_int::try_from(self.events.len()).expect("a small constant");
        let (fd, no_mask) = (self.fd.as_raw_fd(), std::ptr::null::<libc::sigset_t>());
        // SAFETY: `events` has room for `room` events, `spec` is null or points to a timespec that lives over the call,
        // and a null signal mask leaves signals alone.
        let result = check_long(unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, fd, self.events.as_mut_ptr(), room, spec, no_mask, 0usize)
        });
        let count = match result {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        let has = |events: u32, flags: libc::c_int| events & flags.cast_unsigned() != 0;
        out.extend(self.events[..count].iter().map(|event| {
            let (events, token) = (event.events, event.u64);
            let broken = has(events, libc::EPOLLERR | libc::EPOLLHUP);
            Ready {
                token,
                ending: broken || has(events, libc::EPOLLRDHUP),
                readable: broken || has(events, libc::EPOLLIN | libc::EPOLLRDHUP),
                writable: broken || has(events, libc::EPOLLOUT),
            }
        }));
        Ok(())
    }
}

/// Reads what can be read without waiting for the disk.
pub(super) fn read_cached(fd: BorrowedFd<'_>, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let (fd, part) = (fd.as_raw_fd(), std::ptr::from_ref(&part));
    // SAFETY: `part` describes the writable bytes of `buf`, which outlives the call. The offset has an upper half of its own, unused
    // where a word has 64 bits.
    check_long(unsafe { libc::syscall(libc::SYS_preadv2, fd, part, 1usize, offset(at)?, 0usize, libc::RWF_NOWAIT) })
}

/// Fills `buf` from `at`, waiting for the disk where it must.
pub(super) fn read_all(file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        let (fd, len) = (file.as_raw_fd(), buf.len());
        // SAFETY: `buf` is writable for `len` bytes and outlives the call.
        match check_long(unsafe { libc::syscall(libc::SYS_pread64, fd, buf.as_mut_ptr(), len, offset(at)?) }) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                at += u64::try_from(count).expect("usize has at most 64 bits");
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at `at`.
pub(super) fn write_all(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let (fd, len) = (file.as_raw_fd(), bytes.len());
        // SAFETY: `bytes` is readable for `len` bytes and outlives the call.
        match check_long(unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes.as_ptr(), len, offset(at)?) }) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                at += u64::try_from(count).expect("usize has at most 64 bits");
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads up to `len` bytes at `at` into memory owned by a running operation.
///
/// # Safety
/// `address` is valid for writes of `len` bytes, and nobody else looks at them until the call returns.
pub(super) unsafe fn read_into(fd: RawFd, at: u64, address: *mut u8, len: usize) -> io::Result<usize> {
    // SAFETY: as promised by the caller.
    let n = unsafe { libc::pread(fd, address.cast(), len, offset(at)?) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes up to `len` bytes to `at` from memory held by a running operation.
///
/// # Safety
/// `address` is valid for reads of `len` bytes, and nobody changes them until the call returns.
pub(super) unsafe fn write_from(fd: RawFd, at: u64, address: *const u8, len: usize) -> io::Result<usize> {
    // SAFETY: as promised by the caller.
    let n = unsafe { libc::pwrite(fd, address.cast(), len, offset(at)?) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Makes written data stable, with the metadata needed to find it.
pub(super) fn sync_data(fd: RawFd) -> io::Result<()> {
    // SAFETY: the call takes no pointers; a closed descriptor gives an error.
    check(unsafe { libc::fdatasync(fd) }).map(drop)
}

/// The largest page of a common system: mappings start at its multiples everywhere.
const PAGE_MAX: u64 = 64 << 10;

/// As [`sync_data`], for a part of a file: what is dirty beside it does not make the caller wait. Without a ring the one call that takes a range
/// is msync, of a mapping; it covers what was written in any way, and tells of the errors that this open file has not told of yet. The
/// file must be open for writing, since of any other msync makes nothing. All of it is synced where it cannot be mapped.
pub(super) fn sync_part(fd: RawFd, part: ByteRange) -> io::Result<()> {
    let part = part.round_out(PAGE_MAX);
    let start = offset(part.start())?;
    let Ok(len) = usize::try_from(part.len()) else { return sync_data(fd) };
    // SAFETY: a new mapping is asked for, at an address of the kernel's choice. It is never looked into, nor could it be.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, libc::MAP_SHARED, fd, start) };
    if base == libc::MAP_FAILED {
        return sync_data(fd);
    }
    // SAFETY: these are the place and length of the mapping.
    let result = check(unsafe { libc::msync(base, len, libc::MS_SYNC) });
    // SAFETY: as above; nobody else knows of the mapping.
    unsafe { libc::munmap(base, len) };
    result.map(drop)
}

/// The number of cachestat(2), on all but one architecture.
#[cfg(test)]
const CACHESTAT: libc::c_long = 451;

/// Pages of a part of a file that are not on its device yet. None: this kernel does not tell.
#[cfg(test)]
pub(super) fn unstable_pages(file: &File, part: ByteRange) -> Option<u64> {
    let (part, mut counts) = ([part.start(), part.len()], [0u64; 5]);
    let (fd, part, into) = (file.as_raw_fd(), part.as_ptr(), counts.as_mut_ptr());
    // SAFETY: `part` is a cachestat_range and `into` has room for a cachestat; both outlive the call.
    let told = check_long(unsafe { libc::syscall(CACHESTAT, fd, part, into, 0) });
    told.ok().map(|_| counts[1] + counts[2])
}

/// True when this is a regular file on a file system in memory: nothing of it ever waits for a device. The nodes of devices lie on
/// such a file system too, and are asked what they are first.
pub(super) fn is_in_memory(file: &File) -> bool {
    if !file.metadata().is_ok_and(|about| about.is_file()) {
        return false;
    }
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `about` is a statfs structure that the call may write.
    let status = unsafe { libc::fstatfs(file.as_raw_fd(), about.as_mut_ptr()) };
    // SAFETY: the call has succeeded, and then it has filled the structure.
    status == 0 && matches!(unsafe { about.assume_init() }.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC)
}

/// Of linux/magic.h.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// How long the other side of a TCP connection took to answer, as the kernel has it by now.
pub(super) fn round_trip(socket: BorrowedFd<'_>) -> io::Result<Duration> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a small structure");
    // SAFETY: `info` has room for `len` bytes, and an older kernel that writes fewer leaves the rest zero.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len)
    })?;
    // SAFETY: all of it was zeroed or written, and any bytes are a tcp_info.
    Ok(Duration::from_micros(u64::from(unsafe { info.assume_init() }.tcpi_rtt)))
}

/// Changes the allocation of a range; `mode` as of fallocate(2).
pub(super) fn allocate(fd: RawFd, mode: libc::c_int, range: ByteRange) -> io::Result<()> {
    let (start, len) = (offset(range.start())?, offset(range.len())?);
    // SAFETY: the call takes no pointers; a closed descriptor gives an error.
    check(unsafe { libc::fallocate(fd, mode, start, len) }).map(drop)
}

/// The next byte of data (`data`) or of a hole at or after `at`; `None` when there is none.
pub(super) fn seek(file: &File, at: u64, data: bool) -> io::Result<Option<u64>> {
    let whence = if data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
    // SAFETY: the call takes no pointers. The file position it moves is used by nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset(at)?, whence) };
    u64::try_from(found).map(Some).or_else(|_| {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
    })
}

/// Asks the kernel to fetch a range into its cache soon. Only advice: failing changes nothing.
pub(super) fn prefetch(file: &File, range: ByteRange) {
    if let (Ok(start), Ok(len)) = (offset(range.start()), offset(range.len())) {
        // SAFETY: the call takes no pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), start, len, libc::POSIX_FADV_WILLNEED) };
    }
}

/// Ends all processes of a group with SIGKILL. A group that is gone already is none.
pub fn kill_group(leader: u32) {
    let leader = libc::pid_t::try_from(leader).ok().filter(|&leader| leader > 1);
    if let Some(leader) = leader {
        // SAFETY: the call takes no pointers, and a number above 1 names one group.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

/// A process that stays the same one, whatever becomes of its number.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none, or the kernel is older than 5.3.
    pub fn find(number: u32) -> io::Result<Self> {
        let number = libc::pid_t::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the descriptor was just made, if the check passes, and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(fd)?) }))
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// It has ended already, or belongs to somebody else.
    pub fn kill(&self) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and without a siginfo the kernel makes its own.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, none, 0) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The number of a network interface, and its hardware address on an Ethernet, as this process's network has them.
///
/// # Errors
/// There is no such interface.
pub fn interface(name: &str) -> io::Result<(u32, [u8; 6])> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `name` ends with a zero and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = name.as_bytes_with_nul().len();
    // SAFETY: an ifreq is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if bytes > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: both are that long, and they are different memory.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), request.ifr_name.as_mut_ptr(), bytes) };
    let any = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the descriptor is open, and `request` is an ifreq that the call may write.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) })?;
    // SAFETY: the call has succeeded, and then this is the part of the union that it wrote; the first six of its 14 bytes are read.
    let hardware = unsafe { std::ptr::addr_of!(request.ifr_ifru.ifru_hwaddr.sa_data).cast::<[u8; 6]>().read() };
    Ok((index, hardware))
}

/// Sends one ARP packet to everybody on the network of an interface.
///
/// # Errors
/// There is no such interface, or this process may not (CAP_NET_RAW).
pub fn broadcast_arp(interface: u32, packet: &[u8]) -> io::Result<()> {
    let protocol = u16::try_from(libc::ETH_P_ARP).expect("a small constant").to_be();
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let to = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("a small constant"),
        sll_protocol: protocol,
        sll_ifindex: libc::c_int::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("a small structure");
    // SAFETY: `packet` is readable for its length, `to` is a sockaddr_ll of `len` bytes; both outlive the call.
    let sent = unsafe {
        let to = std::ptr::from_ref(&to).cast();
        libc::sendto(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, to, len)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The further groups of the process at the other end of a Unix connection, as they were when it connected.
///
/// # Errors
/// The kernel is older than 4.13, or it is no such connection.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut len = libc::socklen_t::try_from(room).expect("a small list");
        // SAFETY: `groups` has room for `len` bytes, and any bytes are numbers.
        let asked = check(unsafe {
            let place = groups.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, place, &mut len)
        });
        let count = usize::try_from(len).expect("at most what a process can have") / size_of::<libc::gid_t>();
        match asked {
            // There are more, and the kernel has said how many; no process has more than this.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && groups.len() < PROCESS_GROUPS_MAX => {
                groups.resize(count.clamp(groups.len() + 1, PROCESS_GROUPS_MAX), 0);
            }
            asked => {
                asked?;
                groups.truncate(count);
                return Ok(groups);
            }
        }
    }
}

/// `NGROUPS_MAX` of linux/limits.h.
const PROCESS_GROUPS_MAX: usize = 65_536;

/// From here on this process leaves no core dump, and another of the same user cannot look into its memory, where the keys are.
pub fn keep_memory_private() {
    // SAFETY: the call takes no pointers. It fails for no value but a wrong one.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Takes the open-file-description lock on the whole file. False when another open file holds it.
pub(super) fn lock_description(file: &File) -> io::Result<bool> {
    let narrow = |n: libc::c_int| libc::c_short::try_from(n).expect("a small constant");
    let lock =
        libc::flock { l_type: narrow(libc::F_WRLCK), l_whence: narrow(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 };
    // SAFETY: `lock` is a valid flock structure that outlives the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// `_IO(0x12, 94)` of linux/fs.h.
const BLKROGET: libc::Ioctl = 0x125e;

/// True when the block device is set read-only.
pub(super) fn block_device_is_read_only(file: &File) -> io::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &mut read_only) })?;
    Ok(read_only != 0)
}

/// The errno of an error; EIO for one that the kernel did not make, such as an unexpected end of file.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on() {
        let first = now();
        assert!(first.0 > 0 && now() >= first);
    }

    /// A flush of a device must not hold up the thread, though devtmpfs, where its node lies, calls itself a tmpfs.
    #[test]
    fn a_device_is_not_in_memory_whatever_its_node_lies_on() {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
        assert!(is_in_memory(file.as_file()));
        assert!(!is_in_memory(&File::open("/dev/full").expect("present on every Linux")));
        assert!(!is_in_memory(&File::open("/proc/self/stat").expect("present on every Linux")));
    }

    #[test]
    fn groups_are_those_of_the_other_end() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("Linux says so");
        let expected: Vec<u32> = line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        assert_eq!(peer_groups(one.as_fd()).expect("told"), expected);
        let file = File::open("/dev/null").expect("is there");
        assert!(peer_groups(file.as_fd()).is_err(), "a file has no other end");
    }

    #[test]
    fn an_event_descriptor_wakes_once_for_many_signals() {
        let (event, mut epoll) = (EventFd::new().expect("eventfd"), Epoll::new().expect("epoll"));
        epoll.add(event.as_fd(), 7).expect("registered");
        event.signal();
        event.signal();
        let mut woken = || {
            let mut ready = Vec::new();
            epoll.wait(Some(Duration::ZERO), &mut ready).expect("waited");
            ready.iter().any(|r| r.token == 7 && r.readable)
        };
        assert!(woken());
        assert!(!woken());
        event.signal();
        assert!(woken());
    }
}
