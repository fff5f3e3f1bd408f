//! What stands on a device already: the table of signatures that `repblk init` knows.
//!
//! Pure: the caller reads the first [`HEAD_LEN`] and the last [`TAIL_LEN`] bytes. The table errs towards finding
//! something, since the cost of a false alarm is a `--force`, and that of a miss somebody's data.

/// Bytes at the start of a device that are looked at.
pub const HEAD_LEN: usize = 256 << 10;
/// Bytes at the end of a device that are looked at.
pub const TAIL_LEN: usize = 128 << 10;

/// Something that stands on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub what: &'static str,
    /// Bytes from the start of the device that it uses, where its header tells.
    pub len: Option<u64>,
}

/// One line of the table: `bytes` at `offset` from the start.
struct Magic {
    what: &'static str,
    offset: usize,
    bytes: &'static [u8],
    len: fn(&[u8]) -> Option<u64>,
}

const fn magic(what: &'static str, offset: usize, bytes: &'static [u8]) -> Magic {
    Magic { what, offset, bytes, len: |_| None }
}

/// In the order of trust: long magics that name one thing first.
const TABLE: &[Magic] = &[
    Magic { what: "an XFS file system", offset: 0, bytes: b"XFSB", len: xfs_len },
    Magic { what: "a btrfs file system", offset: 65_600, bytes: b"_BHRfS_M", len: btrfs_len },
    magic("a LUKS encrypted device", 0, b"LUKS\xba\xbe"),
    magic("an LVM physical volume", 0, b"LABELONE"),
    magic("an LVM physical volume", 512, b"LABELONE"),
    magic("an LVM physical volume", 1024, b"LABELONE"),
    magic("an LVM physical volume", 1536, b"LABELONE"),
    magic("a GPT partition table", 512, b"EFI PART"),
    magic("a GPT partition table", 4096, b"EFI PART"),
    magic("a qcow2 image", 0, b"QFI\xfb"),
    magic("a VMDK image", 0, b"KDMV"),
    magic("a swap area", 4086, b"SWAPSPACE2"),
    magic("a swap area", 4086, b"SWAP-SPACE"),
    magic("an NTFS file system", 3, b"NTFS    "),
    magic("an exFAT file system", 3, b"EXFAT   "),
    magic("a FAT file system", 54, b"FAT1"),
    magic("a FAT file system", 82, b"FAT32"),
    magic("an ISO 9660 file system", 32_769, b"CD001"),
    magic("a bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    magic("a member of an md RAID", 0, b"\xfc\x4e\x2b\xa9"),
    magic("a member of an md RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    magic("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    Magic { what: "an ext2, ext3 or ext4 file system", offset: 1080, bytes: b"\x53\xef", len: ext_len },
    magic("a boot sector or MBR partition table", 510, b"\x55\xaa"),
];

/// The first thing recognised in the start (`head`) and the end (`tail`) of a device of `device_len` bytes.
#[must_use]
pub fn recognise(head: &[u8], tail: &[u8], device_len: u64) -> Option<Found> {
    let by_table = TABLE.iter().find(|m| head.get(m.offset..m.offset + m.bytes.len()) == Some(m.bytes));
    let by_table = by_table.map(|m| Found { what: m.what, len: (m.len)(head) });
    by_table
        .or_else(|| zfs(head))
        .or_else(|| md_at_the_end(tail, device_len))
        .or_else(|| drbd_at_the_end(tail, device_len))
}

/// The name in "a file system called" of the bytes of an uberblock, in either byte order.
fn zfs(head: &[u8]) -> Option<Found> {
    const UBERBLOCK: u64 = 0x00ba_b10c;
    let found = (128 << 10..256 << 10)
        .step_by(1024)
        .filter_map(|at| head.get(at..at + 8)?.try_into().ok())
        .any(|bytes| u64::from_le_bytes(bytes) == UBERBLOCK || u64::from_be_bytes(bytes) == UBERBLOCK);
    found.then_some(Found { what: "a member of a ZFS pool", len: None })
}

/// md metadata 0.90 stands in the last whole 64 KiB but one, 1.0 at least 8 KiB before the end.
fn md_at_the_end(tail: &[u8], device_len: u64) -> Option<Found> {
    let old = (device_len & !0xffff).checked_sub(0x1_0000);
    let new = device_len.checked_sub(8 << 10).map(|at| at & !0xfff);
    let found = [old, new].into_iter().flatten().any(|at| at_the_end(tail, device_len, at) == Some(0xa92b_4efc));
    found.then_some(Found { what: "a member of an md RAID", len: None })
}

/// DRBD's internal metadata: a big-endian magic in the last 4 KiB.
fn drbd_at_the_end(tail: &[u8], device_len: u64) -> Option<Found> {
    let at = (device_len & !0xfff).checked_sub(4096)? + 60;
    let found = matches!(at_the_end(tail, device_len, at)?.swap_bytes(), 0x8374_026b..=0x8374_026d);
    found.then_some(Found { what: "DRBD metadata", len: None })
}

/// The little-endian number at `offset` from the start of the device, if the tail has it.
fn at_the_end(tail: &[u8], device_len: u64, offset: u64) -> Option<u32> {
    let tail_start = device_len - u64::try_from(tail.len()).ok()?;
    let at = usize::try_from(offset.checked_sub(tail_start)?).ok()?;
    le32(tail, at)
}

fn ext_len(head: &[u8]) -> Option<u64> {
    const HAS_64_BITS: u32 = 0x80;
    let low = u64::from(le32(head, 1028)?);
    let high = if le32(head, 1120)? & HAS_64_BITS != 0 { u64::from(le32(head, 1360)?) } else { 0 };
    let block = 1024_u64.checked_shl(le32(head, 1048)?).filter(|&block| block <= 1 << 16)?;
    (high << 32 | low).checked_mul(block)
}

fn xfs_len(head: &[u8]) -> Option<u64> {
    let block = u32::from_be_bytes(head.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
    blocks.checked_mul(block.into())
}

fn btrfs_len(head: &[u8]) -> Option<u64> {
    // Of the pool, which is the device's when the pool has one device (number at 0x88).
    let devices = u64::from_le_bytes(head.get(65_672..65_680)?.try_into().ok()?);
    let total = u64::from_le_bytes(head.get(65_648..65_656)?.try_into().ok()?);
    (devices == 1).then_some(total)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 1 << 30;

    fn head_with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN];
        head[offset..offset + bytes.len()].copy_from_slice(bytes);
        head
    }

    #[test]
    fn an_empty_device_is_nothing() {
        assert_eq!(recognise(&vec![0; HEAD_LEN], &vec![0; TAIL_LEN], LEN), None);
        assert_eq!(recognise(&[], &[], 0), None);
    }

    #[test]
    fn every_line_of_the_table_is_found() {
        for line in TABLE {
            let found = recognise(&head_with(line.offset, line.bytes), &vec![0; TAIL_LEN], LEN);
            assert_eq!(found.map(|f| f.what), Some(line.what));
        }
        let zfs = head_with((128 << 10) + 3072, &0x00ba_b10c_u64.to_le_bytes());
        assert_eq!(recognise(&zfs, &[], LEN).map(|f| f.what), Some("a member of a ZFS pool"));
    }

    #[test]
    fn what_stands_at_the_end_is_found() {
        let head = vec![0; HEAD_LEN];
        for (from_end, bytes, what) in [
            (8 << 10, 0xa92b_4efc_u32.to_le_bytes(), "a member of an md RAID"),
            (64 << 10, 0xa92b_4efc_u32.to_le_bytes(), "a member of an md RAID"),
            (4096 - 60, 0x8374_026d_u32.to_be_bytes(), "DRBD metadata"),
        ] {
            let mut tail = vec![0; TAIL_LEN];
            let at = TAIL_LEN - from_end;
            tail[at..at + 4].copy_from_slice(&bytes);
            assert_eq!(recognise(&head, &tail, LEN).map(|f| f.what), Some(what));
        }
    }

    #[test]
    fn file_systems_tell_their_length() {
        let mut ext = head_with(1080, b"\x53\xef");
        ext[1028..1032].copy_from_slice(&1000_u32.to_le_bytes());
        ext[1048..1052].copy_from_slice(&2_u32.to_le_bytes());
        assert_eq!(recognise(&ext, &[], LEN).and_then(|f| f.len), Some(4_096_000));
        ext[1120..1124].copy_from_slice(&0x80_u32.to_le_bytes());
        ext[1360..1364].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(recognise(&ext, &[], LEN).and_then(|f| f.len), Some((1 << 44) + 4_096_000));
        let mut xfs = head_with(0, b"XFSB");
        xfs[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        xfs[8..16].copy_from_slice(&500_u64.to_be_bytes());
        assert_eq!(recognise(&xfs, &[], LEN).and_then(|f| f.len), Some(2_048_000));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(head in proptest::collection::vec(any::<u8>(), 0..70_000), len in any::<u64>()) {
            let tail = &head[..head.len().min(usize::try_from(len).unwrap_or(usize::MAX))];
            let _ = recognise(&head, tail, len);
        }
    }
}
