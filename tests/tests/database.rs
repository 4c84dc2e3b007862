//! A database as a witness: SQLite with `synchronous=FULL` on ext4 on the served cache, the daemon killed in the middle of
//! transactions. After each start the file must pass SQLite's own check and hold every transaction that was acknowledged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use wb_tests::daemon::{Place, text};
use wb_tests::mount::Mount;
use wb_tests::programs::{check, run};

const KILLS: u64 = 4;
/// Transactions that a round must see acknowledged before its kill.
const TRANSACTIONS_MIN: u64 = 40;

/// Commits rows one by one from `next` on until the volume is gone; `acknowledged` hears of each, and ends it by false.
fn commit_rows(file: &str, next: u64, mut acknowledged: impl FnMut(u64) -> bool) {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "sqlite3", "-bail", file]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut sqlite = command.spawn().unwrap_or_else(|error| panic!("cannot run sqlite3: {error}; install it"));
    let mut input = sqlite.stdin.take().expect("piped");
    let output = BufReader::new(sqlite.stdout.take().expect("piped"));
    let writer = std::thread::spawn(move || {
        let pragmas = "PRAGMA synchronous=FULL;\n";
        let mut sent = input.write_all(pragmas.as_bytes());
        for row in next.. {
            if sent.is_err() {
                return;
            }
            let line =
                format!("INSERT INTO t VALUES({row}, randomblob(1 + {row} * 7919 % 9000)); SELECT 'row', {row};\n");
            sent = input.write_all(line.as_bytes());
        }
    });
    let (sender, rows) = channel();
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(row) = line.strip_prefix("row|").and_then(|row| row.parse().ok())
                && sender.send(row).is_err()
            {
                return;
            }
        }
    });
    loop {
        match rows.recv_timeout(Duration::from_secs(30)) {
            Ok(row) if acknowledged(row) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("no transaction for 30 s"),
        }
    }
    // The daemon is dead: what sqlite3 waits for fails, or will not come.
    let _ = sqlite.kill();
    let _ = sqlite.wait();
    drop(rows);
    let _ = (writer.join(), reader.join());
}

#[test]
fn sqlite_survives_kills_of_the_daemon_mounted() {
    let place = Place::new(16 << 20, 256 << 10, 128 << 20);
    let mut daemon = place.start();
    let mut mount = Mount::attach(&place.path(""), &place.uri());
    check("e2fsprogs", "mkfs.ext4", &["-q", mount.device()]);
    mount.mount();
    let file = mount.dir.join("rows.db");
    let schema = "PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY, x BLOB);";
    check("sqlite3", "sqlite3", &[text(&file), schema]);
    let mut rows = 0;
    for round in 0..KILLS {
        let mut last = rows;
        let mut running = Some(daemon);
        // Each round dies at another moment: after some transactions, and some microseconds.
        let enough = rows + TRANSACTIONS_MIN + round * 17;
        commit_rows(text(&file), rows + 1, |row| {
            assert_eq!(row, last + 1, "in order");
            last = row;
            if row >= enough
                && let Some(daemon) = running.take()
            {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_micros(700 * round) {
                    std::hint::spin_loop();
                }
                daemon.kill();
            }
            running.is_some()
        });
        assert!(last >= enough, "only {last} transactions, then sqlite3 ended");
        drop(mount);
        place.assert_clean();
        daemon = place.start();
        mount = Mount::attach(&place.path(""), &place.uri());
        mount.mount();
        let query = "PRAGMA integrity_check; SELECT count(*), max(n) FROM t;";
        let said = check("sqlite3", "sqlite3", &[text(&file), query]);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("ok"), "round {round}: {said}");
        let counts: Vec<u64> =
            lines.next().unwrap_or_default().split('|').map(|number| number.parse().expect("a number")).collect();
        assert_eq!(counts[0], counts[1], "round {round}: no row in the middle is missing");
        assert!(counts[1] >= last, "round {round}: {last} rows were acknowledged, {} are there", counts[1]);
        rows = counts[1];
    }
    println!("{rows} rows over {KILLS} kills");
    mount.detach();
    // The backing file alone.
    daemon.drain();
    daemon.stop();
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
    let checked = run("e2fsprogs", "e2fsck", &["-f", "-n", text(&place.backing)]);
    assert!(checked.success(), "{}{}", checked.stdout, checked.stderr);
}
