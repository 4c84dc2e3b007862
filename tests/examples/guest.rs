//! Runs one shell script in a guest with our tools, SSDs (/dev/vda, /dev/vdc) and disks (/dev/vdb, /dev/vdd): for trying things out.
//!
//!     cargo build --workspace --bins && WB_BIN_DIR=target/debug cargo run -p wb-tests --example guest SCRIPT

use wb_tests::guest::{Disk, guest};

fn main() -> anyhow::Result<()> {
    let script = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("name a script"))?;
    let dir = tempfile::tempdir_in("/var/tmp")?;
    let mut guest = guest(&std::fs::read_to_string(script)?);
    for (name, bytes) in [("ssd", 256u64 << 20), ("disk", 1 << 30), ("ssd2", 256 << 20), ("disk2", 1 << 30)] {
        let path = dir.path().join(name);
        std::fs::File::create(&path)?.set_len(bytes)?;
        guest.disk(Disk::file(&path).serial(name));
    }
    guest.echo = true;
    let outcome = guest.run()?;
    println!(
        "artefacts: {:?}",
        std::fs::read_dir(outcome.artefacts())?.flatten().map(|e| e.file_name()).collect::<Vec<_>>()
    );
    outcome.check()
}
