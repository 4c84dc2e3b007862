//! The checked-in inputs of the fuzz targets, and small changes of each: the targets end without a panic, and soon.
//! `tests/fuzz.sh` looks for new ones.

use std::path::Path;
use std::time::{Duration, Instant};
use wb_tests::fuzz::TARGETS;

/// An input takes milliseconds. What takes this long is on its way to not ending.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn every_input_of_the_corpus_ends_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in TARGETS {
        let entries = std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
        paths.sort();
        assert!(paths.len() >= 5, "{name} has a corpus");
        for path in paths {
            let bytes = std::fs::read(&path).expect("an input");
            let mut inputs = vec![bytes.clone()];
            if let Some(last) = bytes.len().checked_sub(1) {
                inputs.push(bytes[..last].to_vec());
                let mut other = bytes.clone();
                other[last / 2] ^= 0x80;
                inputs.push(other);
            }
            for input in inputs {
                let begun = Instant::now();
                target(&input);
                assert!(begun.elapsed() < PATIENCE, "{}: {:?}", path.display(), begun.elapsed());
            }
        }
    }
}
