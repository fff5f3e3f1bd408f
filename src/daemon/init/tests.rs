use super::*;
use crate::meta::{DeviceFacts, Unrecovered};

const LEN: u64 = 8 << 20;

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("is readable")
}

struct Place {
    folder: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new() -> Self {
        let text = include_str!("../../../docs/repblk.example.toml");
        let mut config = Config::parse(text, Path::new("example")).expect("the example is right");
        let folder = tempfile::tempdir().expect("a folder");
        let device = folder.path().join("disk");
        File::create(&device).and_then(|file| file.set_len(LEN)).expect("makes a disk");
        config.volumes[0].copies[0].device = device;
        Self { folder, config }
    }

    fn device(&self) -> &Path {
        &self.config.volumes[0].copies[0].device
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.device()).expect("opens");
        file.write_all_at(bytes, offset).expect("writes");
    }

    fn external(&mut self) -> PathBuf {
        let path = self.folder.path().join("metadata");
        self.config.volumes[0].copies[0].metadata = MetadataPlace::External(path.clone());
        path
    }

    fn init(&self, force: bool, adopt: bool) -> Result<Initialised, InitError> {
        let volume = &self.config.volumes[0];
        init(&self.config, volume, &volume.copies[0], Permission { force, adopt })
    }

    fn refused(&self, force: bool, adopt: bool) -> String {
        let before = bytes_of(self.device());
        let error = self.init(force, adopt).expect_err("must be refused");
        assert!(matches!(error, InitError::Refused(_)), "{error}");
        assert_eq!(bytes_of(self.device()), before, "a refusal changes nothing");
        error.to_string()
    }

    fn superblock(&self, file: &Path, offset: u64) -> Superblock {
        let file = File::open(file).expect("opens");
        let page = |copy| read_page(&file, offset + Layout::superblock_offset(copy), Path::new("m")).expect("reads");
        let facts = DeviceFacts { data_len: u64::MAX >> 1, metadata_len: u64::MAX >> 1 };
        Unrecovered::read(&page(0), &page(1), facts).expect("is formatted").superblock
    }
}

/// The start of an ext4 file system of `len` bytes.
fn ext4(len: u64) -> Vec<u8> {
    let mut head = vec![0; 2048];
    head[1080..1082].copy_from_slice(b"\x53\xef");
    head[1028..1032].copy_from_slice(&u32::try_from(len / 4096).expect("small").to_le_bytes());
    head[1048..1052].copy_from_slice(&2_u32.to_le_bytes());
    head
}

#[test]
fn an_empty_device_becomes_a_fresh_copy() {
    let place = Place::new();
    let made = place.init(false, false).expect("is empty");
    let found = place.superblock(place.device(), made.data_len);
    assert_eq!((found.instance, found.data_len), (made.instance, made.data_len));
    assert_eq!((found.cluster_name.as_str(), found.volume_name.as_str()), ("plant7", "mes"));
    assert_eq!((found.cluster, found.volume), (cluster_id("plant7"), volume_id("plant7", "mes")));
    assert!(found.lineage.is_fresh() && found.disk == DiskState::Inconsistent);
    assert!(made.data_len + made.metadata_len <= LEN);
}

#[test]
fn older_metadata_is_kept_unless_forced() {
    let mut place = Place::new();
    let first = place.init(false, false).expect("is empty");
    let refused = place.refused(false, false);
    assert!(refused.contains("volume \"mes\"") && refused.contains("--force"), "{refused}");
    place.external();
    assert!(place.refused(false, false).contains("volume \"mes\""), "also when the metadata would go elsewhere");
    let second = place.init(true, false).expect("is forced");
    assert_ne!(first.instance, second.instance);
}

#[test]
fn metadata_without_its_superblocks_is_kept_unless_forced() {
    let place = Place::new();
    let made = place.init(false, false).expect("is empty");
    for copy in [0, 1] {
        place.put(made.data_len + Layout::superblock_offset(copy), &[0; PAGE_LEN]);
    }
    let refused = place.refused(false, false);
    assert!(refused.contains("both superblocks are gone") && refused.contains("--force"), "{refused}");
    place.init(true, false).expect("is forced");
}

#[test]
fn a_file_system_is_named_and_kept() {
    let place = Place::new();
    place.put(0, &ext4(4 << 20));
    let refused = place.refused(false, false);
    assert!(refused.contains("ext4") && refused.contains("--adopt") && refused.contains("--force"), "{refused}");
    place.init(true, false).expect("is forced");
}

#[test]
fn adopted_data_is_kept_and_good() {
    let place = Place::new();
    place.put(0, &ext4(4 << 20));
    let before = bytes_of(place.device());
    let made = place.init(false, true).expect("the file system ends before the metadata");
    let data = usize::try_from(made.data_len).expect("small");
    assert_eq!(bytes_of(place.device())[..data], before[..data]);
    let found = place.superblock(place.device(), made.data_len);
    assert_eq!(found.lineage, Lineage::starting_with(made.generation));
    assert_eq!(found.disk, DiskState::UpToDate);
}

#[test]
fn adoption_does_not_cut_a_file_system() {
    let mut place = Place::new();
    place.put(0, &ext4(LEN));
    let refused = place.refused(true, true);
    assert!(refused.contains("Shrink the file system") && refused.contains("metadata ="), "{refused}");
    let path = place.external();
    let made = place.init(false, true).expect("the device is all data");
    assert_eq!(made.data_len, LEN);
    assert_eq!(place.superblock(&path, 0).instance, made.instance);
}

#[test]
fn adoption_of_the_unknown_needs_force() {
    let place = Place::new();
    place.put(0, b"some application's own format");
    assert!(place.refused(false, true).contains("add --force"));
    place.init(true, true).expect("the operator vouches");
}

#[test]
fn devices_that_cannot_serve_say_why() {
    let mut place = Place::new();
    let truncate = |len| OpenOptions::new().write(true).open(place.device()).and_then(|file| file.set_len(len));
    truncate(0).expect("truncates");
    assert!(place.refused(false, false).contains("has no bytes"));
    truncate(4096).expect("truncates");
    assert!(place.refused(false, false).contains("a volume needs at least"));
    place.config.volumes[0].copies[0].device = place.folder.path().join("gone");
    let missing = place.init(false, false).expect_err("is not there").to_string();
    assert!(missing.contains("cannot open") && missing.contains("that the disk is there"), "{missing}");
    place.config.volumes[0].copies[0].device = place.folder.path().to_path_buf();
    let folder = place.init(true, false).expect_err("is a folder").to_string();
    assert!(folder.contains("neither a block device nor a file"), "{folder}");
}
