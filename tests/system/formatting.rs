//! `repblk init` on devices that hold something.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::pair::{MIB, Pair, Setup};
use crate::tools::{SHORT, noise, run};

fn mkfs(device: &std::path::Path, blocks: Option<&str>) {
    let mut args = vec!["-q", "-F", "-b", "4096"];
    let name = device.display().to_string();
    args.push(&name);
    args.extend(blocks);
    run("mkfs.ext4", args, SHORT).ok();
}

#[test]
fn a_file_system_and_older_metadata_are_not_overwritten() {
    let pair = Pair::new(&Setup::default());
    let device = &pair.alpha.device;
    mkfs(device, None);
    let before = std::fs::read(device).expect("is there");
    let refused = pair.alpha.cli(&["init"]).exits(1);
    assert!(refused.contains("ext") && refused.contains("--adopt") && refused.contains("--force"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    // Adopting it in place would damage its end.
    let refused = pair.alpha.cli(&["init", "--adopt"]).exits(1);
    assert!(refused.contains("Shrink the file system"), "{refused}");
    assert!(std::fs::read(device).expect("is there") == before, "what was refused changed nothing");
    pair.alpha.cli(&["init", "--force"]).ok();
    let refused = pair.alpha.cli(&["init"]).exits(1);
    assert!(refused.contains("metadata of volume \"mes\"") && refused.contains("--force"), "{refused}");
    let refused = pair.alpha.cli(&["init", "--adopt"]).exits(1);
    assert!(refused.contains("metadata of volume \"mes\""), "{refused}");
    pair.alpha.cli(&["init", "--force"]).ok();
}

#[test]
fn adopted_data_is_kept_and_fills_the_peer() {
    // The first resync is slow enough that the empty copy is still being filled when it is asked.
    let mut pair = Pair::new(&Setup { volume_keys: "resync_rate_max_mib_s = 8", ..Setup::default() });
    // 28 MiB of file system on a device of 32 MiB leave room for the metadata.
    mkfs(&pair.alpha.device, Some("7168"));
    let device = File::options().write(true).open(&pair.alpha.device).expect("opens");
    device.write_all_at(&noise(3, 4096), 20 * MIB).expect("writes");
    let before = std::fs::read(&pair.alpha.device).expect("is there");
    let said = pair.alpha.cli(&["init", "--adopt"]).ok();
    assert!(said.contains("the good copy"), "{said}");
    pair.beta.cli(&["init"]).ok();
    pair.alpha.start();
    pair.beta.start();
    pair.wait_connected();
    // The empty copy is not made the good one by a slip.
    let refused = pair.beta.cli(&["promote"]).exits(1);
    assert!(refused.contains("refused by the rule"), "{refused}");
    pair.alpha.cli(&["promote"]).ok();
    pair.assert_identical();
    let len = usize::try_from(28 * MIB).expect("small");
    for node in [&pair.alpha, &pair.beta] {
        assert!(node.read_device(&node.device, 0, len) == before[..len], "{} has the adopted data", node.name);
    }
    run("e2fsck", ["-fn", &pair.beta.device.display().to_string()], SHORT);
}
