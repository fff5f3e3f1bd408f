//! Starting one volume: open and lock the disk, recover what its metadata says, start the machine's thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::config::{Config, CopySpec, Engine, MetadataPlace, Node, VolumeSpec};
use super::events::EventHub;
use super::handle::{CopyIdentity, VolumeHandle};
use super::identity::{boot_id, cluster_id, random_u64, volume_id};
use crate::dataplane::mailbox::News;
use crate::dataplane::{self, BackendChoice, Disk, DiskConfig, Mailbox, PoolSizes, ThreadParams};
use crate::failover::config::Arbiter;
use crate::meta::{
    DeviceFacts, Layout, PAGE_LEN, PEER_SLOTS, Page, Recovered, RecoveryError, Superblock, SuperblockError, Unrecovered,
};
use crate::units::ByteRange;
use crate::volume::{Limits, PaceLimits, Volume, VolumeConfig};

/// News that may wait for the daemon.
const NEWS_MAX: usize = 1024;
/// A database touches what it works on more often than this, and what it wrote last before that is copied again after a crash in seconds.
const COOL_AFTER: Duration = Duration::from_secs(10);

/// A volume that runs.
pub(super) struct Started {
    pub(super) handle: Arc<VolumeHandle>,
    pub(super) news: mpsc::Receiver<News>,
    pub(super) mailbox: Mailbox,
}

/// Starts `spec` with this node's `copy`.
///
/// # Errors
/// A sentence with what, where, whose fault and what next.
pub(super) fn start(
    config: &Config,
    me: &Node,
    spec: &VolumeSpec,
    copy: &CopySpec,
    events: EventHub,
) -> Result<Started, String> {
    let named = |error: &dyn std::fmt::Display| format!("volume {}: {error}", spec.name);
    let device = || copy.device.display();
    let disk = Disk::open(&disk_config(spec, copy)).map_err(|error| named(&error))?;
    let unrecovered = read(&disk, &copy.metadata).map_err(|error| named(&format!("{}: {error}", device())))?;
    fits(&unrecovered.superblock, config, me, spec).map_err(|error| named(&format!("{}: {error}", device())))?;
    let recovered = recover(&disk, unrecovered);
    let write_through = disk.is_write_through();
    tell(&spec.name, &recovered, write_through);
    let superblock = &recovered.superblock;
    let identity = CopyIdentity {
        cluster: superblock.cluster,
        volume: superblock.volume,
        instance: superblock.instance,
        size: superblock.data_len,
    };
    let entropy = random_u64().map_err(|error| named(&format!("no random number can be had: {error}")))?;
    let volume_len = superblock.data_len;
    let volume = Volume::new(volume_config(config, me, spec, write_through), recovered, entropy);
    let quarter = usize::try_from(spec.pool_bytes / 4).map_err(|error| named(&error))?;
    let pool = PoolSizes { clients: 2 * quarter, reads: quarter, resync: quarter, ..PoolSizes::default() };
    let (name, spin, client_idle) = (spec.name.clone(), spec.spin, config.limits.client_idle);
    let params = ThreadParams { name, volume, disk, volume_len, pool, spin, client_idle };
    let (sender, news) = mpsc::channel(NEWS_MAX);
    let mailbox = dataplane::start(params, sender).map_err(|error| {
        named(&format!("its thread cannot be started: {error}; check limits of memory and processes"))
    })?;
    let posting = mailbox.clone();
    let post = move |letter| posting.post(letter).map_err(|error| error.to_string());
    let leasing = mailbox.clone();
    let lease = move |until| leasing.set_lease(until);
    let handle = VolumeHandle::new(spec.clone(), copy.clone(), identity, events, post, lease);
    Ok(Started { handle: Arc::new(handle), news, mailbox })
}

pub(super) fn disk_config(spec: &VolumeSpec, copy: &CopySpec) -> DiskConfig {
    DiskConfig {
        device: copy.device.clone(),
        metadata: match &copy.metadata {
            MetadataPlace::Internal => dataplane::MetadataPlace::Internal,
            MetadataPlace::External(path) => dataplane::MetadataPlace::External(path.clone()),
        },
        create_metadata: false,
        direct: spec.direct,
        backend: match spec.engine {
            Engine::Auto => BackendChoice::Auto,
            Engine::Thread => BackendChoice::Thread,
        },
    }
}

fn volume_config(config: &Config, me: &Node, spec: &VolumeSpec, write_through: bool) -> VolumeConfig {
    VolumeConfig {
        node: me.name.clone(),
        peers: spec.peers_of(&me.name).map(str::to_owned).collect(),
        mode: spec.mode,
        peer_timeout: spec.peer_timeout,
        ping_interval: spec.ping_interval,
        backlog_bytes_max: spec.backlog_bytes,
        backlog_age_max: spec.backlog_age,
        pace: PaceLimits { rate_max: spec.resync_rate_max.unwrap_or(0), rate_min: spec.resync_rate_min },
        // An operator settles what a fence could not.
        arbitrated: config.arbiter.arbiter() == Arbiter::Etcd,
        resume_primary: spec.resume_primary,
        boot: boot_id(),
        cool_after: COOL_AFTER,
        write_through,
        limits: Limits::default(),
    }
}

/// Reads the superblock.
pub(super) fn read(disk: &Disk, place: &MetadataPlace) -> Result<Unrecovered, String> {
    let page = |copy| -> Result<Box<Page>, String> {
        let range = ByteRange::new(Layout::superblock_offset(copy), u64::try_from(PAGE_LEN).expect("a small constant"));
        let bytes =
            disk.read_meta(range).map_err(|error| format!("the metadata cannot be read: {error}; check the disk"))?;
        bytes.into_boxed_slice().try_into().map_err(|_| "the metadata is cut short; check the disk".to_owned())
    };
    let facts = DeviceFacts { data_len: disk.data_len(), metadata_len: disk.layout().total_len() };
    Unrecovered::read(&*page(0)?, &*page(1)?, facts).map_err(|error| match (&error, place) {
        // What `init` would do then is to give good data up.
        (RecoveryError::Superblock(SuperblockError::NotFormatted), MetadataPlace::Internal) => format!(
            "{error}. If it was formatted before, do not: internal metadata is found from the end of the device, so look \
             whether the device has another length now"
        ),
        _ => error.to_string(),
    })
}

/// Whether the copy is the one that the configuration means.
fn fits(superblock: &Superblock, config: &Config, me: &Node, spec: &VolumeSpec) -> Result<(), String> {
    let expected = (cluster_id(&config.cluster), volume_id(&config.cluster, &spec.name));
    if (superblock.cluster, superblock.volume) != expected {
        return Err(format!(
            "the metadata belongs to volume {:?} of cluster {:?}, and the configuration says volume {:?} of cluster {:?}: \
             correct `device`, or run `repblk init --force` if that copy may be forgotten",
            superblock.volume_name, superblock.cluster_name, spec.name, config.cluster
        ));
    }
    let recorded = |name: &str| superblock.peers.iter().any(|record| record.name == name);
    let free = superblock.peers.iter().filter(|record| !record.is_used()).count();
    let new: Vec<_> = spec.peers_of(&me.name).filter(|name| !recorded(name)).collect();
    if new.len() > free {
        let known: Vec<_> = superblock.peers.iter().map(|record| record.name.as_str()).collect();
        return Err(format!(
            "the metadata has records for {PEER_SLOTS} peers ({}) and no room for {}; name the peers as before, or run \
             `repblk init --force` and let the peer fill this copy afresh",
            known.join(", "),
            new.join(", ")
        ));
    }
    Ok(())
}

/// Reads the other zones. One that cannot be read counts as damaged: more is copied again, nothing is believed.
fn recover(disk: &Disk, unrecovered: Unrecovered) -> Recovered {
    let zone = |what: &str, range: ByteRange| {
        disk.read_meta(range).inspect_err(|error| warn!(%error, "the {what} cannot be read")).ok()
    };
    let log = unrecovered.activity_log_range().and_then(|range| zone("activity log", range)).unwrap_or_default();
    let bitmaps = unrecovered.bitmap_ranges().map(|range| range.and_then(|range| zone("dirty bitmap", range)));
    unrecovered.recover(&log, bitmaps, boot_id())
}

fn tell(volume: &str, recovered: &Recovered, write_through: bool) {
    let superblock = &recovered.superblock;
    info!(
        volume,
        disk = %superblock.disk,
        generation = %superblock.lineage.current,
        term = superblock.term.0,
        instance = %superblock.instance,
        size = superblock.data_len,
        was_primary = superblock.was_primary,
        continuity = ?recovered.continuity,
        hot_extents = recovered.hot_extents,
        write_through,
        "copy attached"
    );
    for note in &recovered.notes {
        warn!(volume, "{note}");
    }
}
