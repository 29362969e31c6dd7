use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const PLAN: u64 = 0x1234_5678_9abc_def0;

fn file_tally(path: &Path, plan: u64, rules: usize) -> Tally {
    Tally::new(FaultCounters::File(path.to_owned()), plan, rules).expect("a file that can be used")
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = dir.path().join("faults.counts");
    (dir, path)
}

/// Raises rule 0 and says at which count, by being due never.
fn raise(tally: &Tally) -> u64 {
    let seen = std::cell::Cell::new(0);
    tally.raise(1, |_, hits| {
        seen.set(hits);
        false
    });
    seen.get()
}

#[test]
fn two_handles_of_one_file_count_together() {
    let (_dir, path) = scratch();
    let (a, b) = (file_tally(&path, PLAN, 2), file_tally(&path, PLAN, 2));
    assert_eq!([raise(&a), raise(&b), raise(&b), raise(&a)], [1, 2, 3, 4]);
    assert_eq!(b.raise(0b11, |index, _| index == 1), Some(1), "the first that is due fires, and both are counted");
    let expected = [Count { hits: 5, fired: 0 }, Count { hits: 1, fired: 1 }];
    assert_eq!((a.counts(), b.counts()), (expected.to_vec(), expected.to_vec()));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    // Whoever comes later knows all of it.
    assert_eq!(raise(&file_tally(&path, PLAN, 2)), 6);
}

#[test]
fn eight_threads_see_each_count_once() {
    const THREADS: u64 = 8;
    const EACH: u64 = 400;
    let (_dir, path) = scratch();
    let tallies = [Tally::new(FaultCounters::Memory, PLAN, 2).expect("memory"), file_tally(&path, PLAN, 2)];
    for shared in tallies {
        let mut seen: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|n| {
                    let (shared, path) = (&shared, &path);
                    scope.spawn(move || {
                        // With a file, half of the threads have handles of their own.
                        let own = (shared.file.is_some() && n % 2 == 0).then(|| file_tally(path, PLAN, 2));
                        let tally = own.as_ref().unwrap_or(shared);
                        let count = |_| {
                            let seen = std::cell::Cell::new(0);
                            tally.raise(0b01, |_, hits| {
                                seen.set(hits);
                                hits == 1_000
                            });
                            seen.get()
                        };
                        (0..EACH).map(count).collect::<Vec<u64>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(1..=THREADS * EACH), "each count is seen once");
        assert_eq!(shared.counts(), [Count { hits: THREADS * EACH, fired: 1 }, Count::default()]);
        assert!(shared.file.as_ref().is_none_or(|file| !file.given_up.load(Ordering::Relaxed)));
    }
}

#[test]
fn a_torn_file_is_replaced_by_what_the_process_knows() {
    let (_dir, path) = scratch();
    let tally = file_tally(&path, PLAN, 3);
    let mut count = raise(&tally);
    let whole = fs::read(&path).expect("readable");
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    let flipped = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x11;
        bytes
    });
    let others = [vec![0; 20_000], vec![0xff; 100], b"\n\n\n".to_vec(), [&whole[..], &whole[..]].concat()];
    for bytes in cut.chain(flipped).chain(others) {
        fs::write(&path, &bytes).expect("written");
        count += 1;
        assert_eq!(raise(&tally), count, "after {:?}", String::from_utf8_lossy(&bytes));
        // Whole again, for everybody.
        assert_eq!(file_tally(&path, PLAN, 3).counts()[0].hits, count);
    }
    fs::write(&path, "torn").expect("written");
    assert_eq!(tally.counts()[0].hits, count, "looking does not fail either");
}

#[test]
fn a_file_that_was_removed_is_made_again_with_what_the_process_knows() {
    let (_dir, path) = scratch();
    let tally = file_tally(&path, PLAN, 1);
    assert_eq!([raise(&tally), raise(&tally)], [1, 2]);
    fs::remove_file(&path).expect("removed");
    assert_eq!(raise(&tally), 3);
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(raise(&file_tally(&path, PLAN, 1)), 4);
    fs::remove_file(&path).expect("removed");
    assert_eq!(raise(&file_tally(&path, PLAN, 1)), 1, "a process that knows nothing begins anew");
    assert_eq!(raise(&tally), 4, "and one that knows more goes on from there");
    assert_eq!(raise(&file_tally(&path, PLAN, 1)), 5, "for both");
}

#[test]
fn counts_of_another_plan_are_not_taken_over() {
    let (_dir, path) = scratch();
    let old = file_tally(&path, PLAN, 1);
    assert_eq!([raise(&old), raise(&old)], [1, 2]);
    let new = file_tally(&path, PLAN + 1, 2);
    assert_eq!(new.counts(), [Count::default(); 2]);
    assert_eq!([raise(&new), raise(&new), raise(&new)], [1, 2, 3]);
    // A process that still follows the old plan goes on with what it knows.
    assert_eq!(raise(&old), 3);
    assert_eq!(raise(&new), 4);
}

#[test]
fn a_file_that_cannot_be_used_any_more_costs_the_sharing_and_not_the_counting() {
    let (_dir, path) = scratch();
    let tally = file_tally(&path, PLAN, 1);
    assert_eq!([raise(&tally), raise(&tally)], [1, 2]);
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("something in its place");
    assert_eq!(raise(&tally), 3);
    assert_eq!(tally.counts()[0].hits, 3);
    fs::remove_dir(&path).expect("removed");
    assert_eq!(raise(&tally), 4);
    assert!(!path.exists(), "it counts alone from then on");
}

#[test]
fn a_lock_that_is_never_given_back_stalls_a_hit_once_and_not_for_ever() {
    let (_dir, path) = scratch();
    let tally = file_tally(&path, PLAN, 1);
    assert_eq!(raise(&tally), 1);
    let stopped = open_private(&path).expect("opened");
    flock(&stopped, FlockOperation::LockExclusive).expect("locked");
    let began = Instant::now();
    assert_eq!(raise(&tally), 2);
    assert!(began.elapsed() >= PATIENCE, "it was waited for: {:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(raise(&tally), 3);
    assert!(began.elapsed() < PATIENCE, "and not again: {:?}", began.elapsed());
}

#[test]
fn a_place_that_cannot_hold_counts_is_refused_at_once() {
    let (dir, path) = scratch();
    let target = dir.path().join("target");
    fs::write(&target, "somebody's").expect("written");
    symlink(&target, &path).expect("linked");
    for path in [path, dir.path().to_owned(), dir.path().join("no/such/directory"), PathBuf::from("/dev/null")] {
        let error = Tally::new(FaultCounters::File(path.clone()), PLAN, 1).expect_err("it cannot be used");
        assert!(error.to_string().starts_with(&format!("use {} to count faults: ", path.display())), "{error}");
    }
    assert_eq!(fs::read_to_string(&target).expect("readable"), "somebody's");
    let device = fs::metadata("/dev/null").expect("there").permissions().mode();
    assert_ne!(device & 0o777, 0o600, "it is everybody's still");
}

#[test]
fn a_new_file_is_private_and_nobodys() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let made: Vec<FaultCounters> = (0..2).map(|_| FaultCounters::new_file_in(dir.path()).expect("made")).collect();
    assert_ne!(made[0], made[1]);
    for counters in made {
        let FaultCounters::File(path) = &counters else { panic!("a file") };
        assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(raise(&Tally::new(counters, PLAN, 1).expect("usable")), 1);
    }
    FaultCounters::new_file_in(&dir.path().join("nowhere")).expect_err("there is no such directory");
}

#[test]
fn the_environment_names_the_file_by_an_absolute_path() {
    let counters = |value: &str| {
        let value = OsString::from(value);
        FaultCounters::from_environment(move |name| (name == FAULT_COUNTERS).then(|| value.clone()))
    };
    assert_eq!(FaultCounters::from_environment(|_| None), Ok(FaultCounters::Memory));
    assert_eq!(counters(""), Ok(FaultCounters::Memory));
    assert_eq!(counters("/a/b"), Ok(FaultCounters::File("/a/b".into())));
    let error = counters("a/b").expect_err("relative").to_string();
    assert!(error.starts_with("PHONE_OPUS_FAULT_COUNTERS: \"a/b\" is not an absolute path; accepted: "), "{error}");
}
