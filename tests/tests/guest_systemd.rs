//! Unit and udev rule under a real systemd: start, fstab, restart, reload, stop, boot and shutdown.

use wb_tests::guest::{SparseDisk, ours, systemd_guest};
use wb_tests::tool::tool;

#[test]
fn the_service_serves_a_mount_from_boot_to_shutdown_and_through_its_own_deaths() {
    let (ssd, disk) = (SparseDisk::new(256 << 20), SparseDisk::new(512 << 20));
    let config = "[[cache]]\nname = \"data\"\ndevice = \"/dev/disk/by-id/virtio-ssd\"\n\
                  backing = \"/dev/disk/by-id/virtio-disk\"\nublk = true\n";
    for (boot, noauto) in [("first", "noauto,"), ("second", "")] {
        let mut guest = systemd_guest(&ours(&format!("tests/guest/systemd-{boot}-boot.sh")));
        let fstab = format!("/dev/writeboost/data /srv ext4 {noauto}x-systemd.after=writeboost@data.service 0 2\n");
        guest.image.file("etc/writeboost.toml", 0o644, config).file("etc/fstab", 0o644, fstab);
        if boot == "second" {
            // As `systemctl enable` does it.
            guest.image.link(
                "etc/systemd/system/local-fs.target.wants/writeboost@data.service",
                "/usr/lib/systemd/system/writeboost@.service",
            );
        }
        guest.disk(ssd.disk().serial("ssd")).disk(disk.disk().serial("disk"));
        let outcome = guest.run().expect("QEMU runs");
        eprintln!("{boot} boot:\n{}", outcome.console);
        outcome.check().unwrap_or_else(|error| panic!("{boot} boot: {error:#}"));
        let mut dump = tool("wb-dump");
        let dump = dump.args(["--json", "summary", "--cache"]).arg(ssd.path()).output().expect("wb-dump runs");
        let summary = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(summary.contains("\"clean_shutdown\": true"), "after the {boot} boot: {summary}");
    }
}
