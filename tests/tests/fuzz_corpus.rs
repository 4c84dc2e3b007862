//! The inputs that fuzzing found worth keeping, through the same targets, without a fuzzer.

use wb_tests::fuzz::TARGETS;

#[test]
fn every_input_of_the_corpus_ends_without_a_panic() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in TARGETS {
        let inputs = std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("corpus of {name}: {error}"));
        let mut paths: Vec<_> = inputs.map(|entry| entry.expect("a directory").path()).collect();
        paths.sort();
        assert!(paths.len() >= 5, "{name} has {} inputs", paths.len());
        for path in paths {
            let bytes = std::fs::read(&path).expect("reads");
            let run = std::panic::catch_unwind(|| target(&bytes));
            assert!(run.is_ok(), "{name} panics at {}", path.display());
        }
    }
}
