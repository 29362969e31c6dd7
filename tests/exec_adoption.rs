//! Ending descendants that left their group. One test in a process of its own, because it owns all children it has.
//!
//! Laws: L7.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use phone_opus::internals::exec::local::become_subreaper;
use phone_opus::internals::exec::{Adopt, CloseBy, LocalExec, ProcessSession, SpawnSpec, Stdin};

/// Escapes are scripted so that each descendant says its pid and would live for long.
fn shell(script: &str) -> SpawnSpec {
    SpawnSpec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        cwd: "/".into(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        stdin: Stdin::Null,
        adopt: Adopt::Yes,
        descriptors: None,
    }
}

fn exists(pid: &str) -> bool {
    std::path::Path::new("/proc").join(pid).exists()
}

#[tokio::test]
async fn a_descendant_in_its_own_session_is_ended_and_reaped_with_the_process() {
    become_subreaper().unwrap();
    let escape = "setsid sh -c 'trap \"\" TERM HUP; echo $$; sleep 1000 & echo $!; wait' &";
    // (script, whether the owner has to ask, exit code)
    for (script, asked, code) in [
        (format!("{escape} sleep 0.2; exit 3"), false, 3),
        (format!("{escape} {escape} sleep 1000; exit 3"), true, 143),
        // A short-lived orphan must not stay behind as a zombie either.
        ("setsid sh -c 'echo $$; echo $$' & sleep 0.2; exit 0".to_owned(), false, 0),
    ] {
        let session = ProcessSession::new();
        let (mut process, mut tap) = LocalExec::spawn(shell(&script), session.clone(), CloseBy::Backend).unwrap();
        let mut text = String::new();
        while text.lines().count() < script.matches("setsid").count() * 2 {
            let (_, bytes) = tokio::time::timeout(Duration::from_secs(20), tap.next()).await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        if asked {
            process.terminate();
        }
        while tap.next().await.is_some() {}
        let began = Instant::now();
        let end = tokio::time::timeout(Duration::from_secs(20), process.wait_end()).await.unwrap();
        assert_eq!((end.code, end.pipes_leaked), (code, false), "{script}");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(session.has_ended());
        for pid in text.lines().chain([process.pid().to_string().as_str()]) {
            assert!(!exists(pid), "{pid} is left of {script}");
        }
        let killed = if script.contains("trap") { script.matches("setsid").count() * 2 } else { 0 };
        assert_eq!(end.reaped as usize, killed, "{script}");
    }
    let children: String = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default())
        .collect();
    assert_eq!(children, "", "children are left");
}
