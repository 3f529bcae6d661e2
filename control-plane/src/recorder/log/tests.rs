use std::time::Duration;

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{EdgeKey, EdgeTraffic, Side, TrafficReport};

use super::*;
use crate::history::History;

const DAY: u64 = 1_767_225_600_000;

/// Something to write, of some size: connections of a second.
fn batch(history: &mut History, sequence: u64, now: u64, edges: u64, all: bool) -> Batch {
    let edge = |number: u64| {
        let key = EdgeKey {
            side: Side::Outbound,
            service: format!("shop/s{number}:1").into(),
            route: "".into(),
            peer: None,
        };
        EdgeTraffic { connections: 1, ..EdgeTraffic::new(key) }
    };
    let report = TrafficReport {
        epoch: 1,
        sequence,
        length: Duration::from_secs(1),
        ended_ago: Duration::ZERO,
        edges: (0..edges).map(edge).collect(),
        events: vec![],
    };
    let web = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
    history.take(&web, &report, now);
    history.take_unsaved(all).unwrap()
}

fn write(log: &mut Log, history: &mut History, sequences: std::ops::Range<u64>, step: u64, edges: u64) {
    for sequence in sequences {
        let now = DAY + sequence * step;
        let all = log.begins_file(now);
        log.append(batch(history, sequence, now, edges, all), now + 7).unwrap();
    }
}

fn count(log: &mut Log) -> (usize, Vec<Cut>) {
    let mut records = 0;
    let cuts = log.read(|_, _| records += 1).unwrap();
    (records, cuts)
}

#[test]
fn files_of_ten_minutes_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, last) = Log::open(dir.path(), 1 << 30).unwrap();
    assert_eq!(last, None);
    let mut history = History::new(1 << 30, true, DAY);
    write(&mut log, &mut history, 1..31, 60_000, 2);
    drop(log);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");

    let (mut log, last) = Log::open(dir.path(), 1 << 30).unwrap();
    assert_eq!(last, Some((DAY + 1_800_000, DAY + 1_800_007)));
    let mut times = Vec::new();
    assert!(log.read(|saved, _| times.push(saved.at)).unwrap().is_empty());
    assert_eq!(times, (1..31).map(|n| DAY + n * 60_000).collect::<Vec<_>>());
    // It goes on in a new file.
    write(&mut log, &mut history, 31..32, 60_000, 2);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn a_torn_end_is_cut_and_a_broken_byte_costs_what_is_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = History::new(1 << 30, true, DAY);
    let (mut log, _) = Log::open(dir.path(), 1 << 30).unwrap();
    write(&mut log, &mut history, 1..11, 1_000, 3);
    drop(log);
    let path = dir.path().join("0000000001.log");
    let whole = fs::read(&path).unwrap();

    for torn in [1, 5, 9, 40] {
        fs::write(&path, &whole[..whole.len() - torn]).unwrap();
        let (mut log, last) = Log::open(dir.path(), 1 << 30).unwrap();
        assert_eq!(last.unwrap().0, DAY + 9_000);
        let (records, cuts) = count(&mut log);
        assert_eq!((records, cuts.len()), (9, 1), "{torn}");
        assert_eq!(cuts[0].file, "0000000001.log");
        let (records, cuts) = count(&mut Log::open(dir.path(), 1 << 30).unwrap().0);
        assert_eq!((records, cuts.len()), (9, 0), "it is whole from now on");
    }

    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let (records, cuts) = count(&mut Log::open(dir.path(), 1 << 30).unwrap().0);
    assert!((1..10).contains(&records) && cuts.len() == 1);

    for garbage in [&b""[..], b"ORHIST01", b"something else", &[0xff; 100]] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0000000001.log"), garbage).unwrap();
        let (mut log, last) = Log::open(dir.path(), 1 << 30).unwrap();
        assert_eq!((last, count(&mut log).0), (None, 0));
        write(&mut log, &mut history, 100..102, 1_000, 3);
    }
}

#[test]
fn the_oldest_files_go_when_they_are_too_old_or_too_much() {
    let dir = tempfile::tempdir().unwrap();
    let mut history = History::new(1 << 30, true, DAY);
    let (mut log, _) = Log::open(dir.path(), 100_000).unwrap();
    write(&mut log, &mut history, 1..400, 1_000, 100);
    let on_disk = || {
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    assert_eq!(on_disk(), log.bytes());
    assert!(log.bytes() <= 100_000 && log.bytes() > 50_000, "{}", log.bytes());
    let (records, cuts) = count(&mut Log::open(dir.path(), 100_000).unwrap().0);
    assert!(records > 10 && cuts.is_empty());

    write(&mut log, &mut history, 40_000..40_001, 1_000, 1);
    assert!(log.bytes() < 2_000, "ten hours later only the latest is left: {}", log.bytes());
    assert_eq!(on_disk(), log.bytes());
}

#[test]
fn where_nothing_can_be_written_it_says_so_and_goes_on_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("history");
    let mut history = History::new(1 << 30, true, DAY);
    let (mut log, _) = Log::open(&place, 1 << 30).unwrap();
    fs::remove_dir(&place).unwrap();
    let first = batch(&mut history, 1, DAY, 1, true);
    assert!(log.append(first, DAY).is_err());
    assert!(log.begins_file(DAY));
    fs::create_dir(&place).unwrap();
    log.append(batch(&mut history, 2, DAY, 1, true), DAY).unwrap();
    let (records, cuts) = count(&mut Log::open(&place, 1 << 30).unwrap().0);
    assert_eq!((records, cuts.len()), (1, 0));
}
