//! What is on a device: signatures of filesystems, partition tables, RAID, volume managers and other caches.
//!
//! Offsets and magics are those of the formats' own documentation and of the kernel's headers. A wrong alarm costs
//! `--force`, a missed one costs data: in doubt something counts as found.

/// A magic at one fixed offset.
struct Magic {
    name: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { name, offset, bytes }
}

const BCACHE: &[u8] = &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
const BCACHEFS: &[u8] =
    &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

const MAGICS: &[Magic] = &[
    magic("an XFS filesystem", 0, b"XFSB"),
    magic("a Btrfs filesystem", 0x10040, b"_BHRfS_M"),
    magic("an F2FS filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("a ReiserFS filesystem", 65588, b"ReIsEr"),
    magic("a JFS filesystem", 32768, b"JFS1"),
    magic("an ISO 9660 filesystem", 32769, b"CD001"),
    magic("a SquashFS filesystem", 0, b"hsqs"),
    magic("an EROFS filesystem", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic("a GFS2 filesystem", 65536, &[0x01, 0x16, 0x19, 0x70]),
    magic("a NILFS2 filesystem", 1030, &[0x34, 0x34]),
    magic("an NTFS filesystem", 3, b"NTFS    "),
    magic("an exFAT filesystem", 3, b"EXFAT   "),
    magic("a FAT filesystem", 82, b"FAT32   "),
    magic("a FAT filesystem", 54, b"FAT16   "),
    magic("a FAT filesystem", 54, b"FAT12   "),
    magic("a bcachefs filesystem", 4096 + 24, BCACHEFS),
    magic("swap space", 4086, b"SWAPSPACE2"),
    magic("swap space", 4086, b"SWAP-SPACE"),
    magic("swap space", 65526, b"SWAPSPACE2"),
    magic("a suspended system (swap)", 4086, b"S1SUSPEND"),
    magic("an LVM physical volume", 0, b"LABELONE"),
    magic("an LVM physical volume", 512, b"LABELONE"),
    magic("an LVM physical volume", 1024, b"LABELONE"),
    magic("an LVM physical volume", 1536, b"LABELONE"),
    magic("an MD RAID member", 0, MD),
    magic("an MD RAID member", 4096, MD),
    magic("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    magic("a LUKS encrypted volume", 0x4000, b"SKUL\xba\xbe"),
    magic("a GPT partition table", 512, b"EFI PART"),
    magic("a GPT partition table", 4096, b"EFI PART"),
    magic("a bcache device", 4096 + 24, BCACHE),
    magic("a dm-writeboost cache", 0, &[0x74, 0x73, 0x42, 0x57]),
    magic("a dm-writecache cache", 0, &[0x21, 0x93, 0x48, 0x23]),
    magic("a VDO volume", 0, b"dmvdo001"),
    magic("a dm-integrity volume", 0, b"integrt\0"),
    magic("a dm-verity hash device", 0, b"verity\0\0"),
    magic("a Ceph BlueStore device", 0, b"bluestore block device"),
    magic("a QEMU disk image", 0, b"QFI\xfb"),
];

/// Bytes at the beginning and at the end that must be read.
pub const HEAD_BYTES: u64 = 512 << 10;
/// As above.
pub const TAIL_BYTES: u64 = 256 << 10;

/// The beginning and the end of a device.
pub struct Sample<'a> {
    /// Its first bytes, at most [`HEAD_BYTES`].
    pub head: &'a [u8],
    /// Its last bytes, at most [`TAIL_BYTES`].
    pub tail: &'a [u8],
    /// Size of the device.
    pub size_bytes: u64,
}

impl Sample<'_> {
    /// `len` bytes at `offset`, if they were read.
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        if let Some(found) = self.head.get(start..start.checked_add(len)?) {
            return Some(found);
        }
        let tail_start = self.size_bytes - self.tail.len() as u64;
        let start = usize::try_from(offset.checked_sub(tail_start)?).ok()?;
        self.tail.get(start..start.checked_add(len)?)
    }

    fn has(&self, offset: u64, bytes: &[u8]) -> bool {
        self.at(offset, bytes.len()) == Some(bytes)
    }

    fn u32_at(&self, offset: u64) -> u32 {
        self.at(offset, 4).map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }
}

/// The names of everything that was recognised, each once.
pub fn detect(sample: &Sample<'_>) -> Vec<&'static str> {
    let fixed = MAGICS.iter().filter(|magic| sample.has(magic.offset, magic.bytes)).map(|magic| magic.name);
    let mut found: Vec<&'static str> = fixed.collect();
    found.extend(ext(sample));
    found.extend(end_of_device(sample));
    found.extend(zfs(sample));
    // A partition table is said last: FAT and NTFS begin with a boot sector, too.
    if found.is_empty() {
        found.extend(mbr(sample));
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|name| seen.insert(*name));
    found
}

/// ext2, 3 and 4 share a magic and differ in features.
fn ext(sample: &Sample<'_>) -> Option<&'static str> {
    const SUPERBLOCK: u64 = 1024;
    if !sample.has(SUPERBLOCK + 56, &[0x53, 0xef]) || sample.u32_at(SUPERBLOCK + 24) > 6 {
        return None;
    }
    let (compat, incompat) = (sample.u32_at(SUPERBLOCK + 92), sample.u32_at(SUPERBLOCK + 96));
    Some(match (incompat & 0x2c0 != 0, compat & 4 != 0) {
        (true, _) => "an ext4 filesystem",
        (false, true) => "an ext3 filesystem",
        (false, false) => "an ext2 filesystem",
    })
}

/// Signatures whose place is counted from the end.
fn end_of_device(sample: &Sample<'_>) -> Vec<&'static str> {
    let size = sample.size_bytes;
    let mut found = Vec::new();
    let md_old = (size & !0xffff).checked_sub(0x10000);
    let md_new = size.checked_sub(8192).map(|offset| offset & !0xfff);
    if [md_old, md_new].into_iter().flatten().any(|offset| sample.has(offset, MD)) {
        found.push("an MD RAID member");
    }
    let backup = [512u64, 4096].into_iter().filter_map(|sector| size.checked_sub(sector));
    if backup.into_iter().any(|offset| sample.has(offset, b"EFI PART")) {
        found.push("a GPT partition table");
    }
    found
}

/// The ring of uberblocks in the first ZFS label.
fn zfs(sample: &Sample<'_>) -> Option<&'static str> {
    const MAGIC: u64 = 0x00ba_b10c;
    let uberblocks = (128u64 << 10..256 << 10).step_by(1024);
    let hit =
        uberblocks.into_iter().any(|at| sample.has(at, &MAGIC.to_le_bytes()) || sample.has(at, &MAGIC.to_be_bytes()));
    hit.then_some("a ZFS pool member")
}

/// A boot sector's signature with at least one partition in a plausible state.
fn mbr(sample: &Sample<'_>) -> Option<&'static str> {
    let sector = sample.at(0, 512)?;
    let partitions = sector[446..510].chunks_exact(16);
    let plausible = partitions.clone().all(|entry| entry[0] & 0x7f == 0);
    let any = partitions.into_iter().any(|entry| entry[4] != 0);
    (sector[510..] == [0x55, 0xaa] && plausible && any).then_some("an MBR partition table")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4 << 20;

    fn detect_in(disk: &[u8]) -> Vec<&'static str> {
        let (head, tail) = (&disk[..HEAD_BYTES as usize], &disk[disk.len() - TAIL_BYTES as usize..]);
        detect(&Sample { head, tail, size_bytes: disk.len() as u64 })
    }

    #[test]
    fn every_magic_is_found_alone() {
        for magic in MAGICS {
            let mut disk = vec![0; SIZE];
            disk[magic.offset as usize..][..magic.bytes.len()].copy_from_slice(magic.bytes);
            assert_eq!(detect_in(&disk), [magic.name]);
        }
    }

    #[test]
    fn nothing_is_found_in_zeroes_and_pattern() {
        assert!(detect_in(&vec![0; SIZE]).is_empty());
        assert!(detect_in(&vec![0xff; SIZE]).is_empty());
        let empty = Sample { head: &[], tail: &[], size_bytes: 0 };
        assert!(detect(&empty).is_empty());
    }

    #[test]
    fn the_end_of_the_device_is_looked_at() {
        for (offset, bytes, name) in [
            (SIZE - 8192, MD, "an MD RAID member"),
            (SIZE - 0x10000, MD, "an MD RAID member"),
            (SIZE - 512, &b"EFI PART"[..], "a GPT partition table"),
            (SIZE - 4096, &b"EFI PART"[..], "a GPT partition table"),
        ] {
            let mut disk = vec![0; SIZE];
            disk[offset..][..bytes.len()].copy_from_slice(bytes);
            assert_eq!(detect_in(&disk), [name]);
        }
    }

    #[test]
    fn a_boot_sector_needs_a_partition() {
        let mut disk = vec![0; SIZE];
        (disk[510], disk[511]) = (0x55, 0xaa);
        assert!(detect_in(&disk).is_empty());
        disk[446 + 4] = 0x83;
        assert_eq!(detect_in(&disk), ["an MBR partition table"]);
    }

    #[test]
    fn real_filesystems_are_named() {
        for (program, args, name) in [
            ("mkfs.ext4", &["-q", "-F"][..], "an ext4 filesystem"),
            ("mkfs.ext2", &["-q", "-F"][..], "an ext2 filesystem"),
            ("mkswap", &["-q"][..], "swap space"),
        ] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            file.as_file().set_len(SIZE as u64).expect("sized");
            let made = std::process::Command::new(program).args(args).arg(file.path()).output();
            let Ok(made) = made else {
                eprintln!("{program} is not installed: left out");
                continue;
            };
            assert!(made.status.success(), "{program}: {made:?}");
            let disk = std::fs::read(file.path()).expect("readable");
            assert_eq!(detect_in(&disk), [name], "{program}");
        }
    }
}
