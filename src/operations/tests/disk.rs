//! A disk that is full: reads go on, nothing is half accepted, and it works again when there is space.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::House;
use super::eventually;
use crate::adapters::adapter::Recovery;
use crate::model::Phase;
use crate::operations::AcceptError;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::StoreFault;
use crate::operations::maintenance;
use crate::operations::testing::Say;
use crate::operations::testing::restore;

/// A small file system that is gone with the test.
struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m,mode=700", "snapgate-test"])
            .arg(folder.path())
            .output();
        let is_mounted = mounted.is_ok_and(|output| output.status.success());
        assert!(is_mounted, "this user may mount");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes until there is no space left.
    fn fill(&self) {
        let mut file = fs::File::create(self.path().join("filler")).unwrap();
        let mut size = 65_536;
        while size > 0 {
            if file.write_all(&vec![7; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}

#[tokio::test]
#[ignore = "needs the right to mount a file system"]
async fn a_full_disk_refuses_changes_answers_reads_and_is_forgotten_when_there_is_space() {
    let small = Small::new();
    let file = small.path().join("operations.db");
    let mut house = House::with(Recovery::Listable, |it| it.config.store = file).await;
    house.adapter.say("vm", Say::Done);
    let first = house.accept(restore("vm", "b")).await;
    house.end(first).await;
    let running = house.accept(restore("busy", "b")).await;
    house.reaches(running, Phase::Running).await;
    small.fill();

    // The log may have room in its last page, so a few may still be accepted.
    let mut kept = Vec::new();
    let refused = loop {
        match house
            .try_on("one", restore(&format!("full-{}", kept.len()), "b"))
            .await
        {
            Ok(accepted) => kept.push(accepted.operation().seq),
            Err(error) => break error,
        }
        assert!(kept.len() < 1000, "the disk is full at some point");
    };
    let unavailable = matches!(refused, AcceptError::Store(StoreFault::Unavailable));
    assert!(unavailable, "refused for now, not for good: {refused:?}");
    assert!(!house.room.failed().is_given(), "the process goes on");
    assert!(!house.room.is_ready(), "and tells that it takes nothing");

    let seen = house.operation(first).await;
    assert_eq!(seen.phase, Phase::Succeeded, "Statuses are read");
    let query = ListQuery {
        limit: 1000,
        ..ListQuery::default()
    };
    let listed = house.room.list(&query).await.expect("lists are read");
    assert_eq!(listed.len(), kept.len() + 2, "nothing is half accepted");
    assert!(house.metrics().contains("unavailable"), "it is counted");

    // The work that ran ends over there meanwhile, and is recorded once there is space.
    house.adapter.say("busy", Say::Done);
    small.free();
    assert_eq!(house.end(running).await.phase, Phase::Succeeded, "recorded");
    eventually("ready again", || async {
        maintenance::round(&house.room.core).await;
        house.room.is_ready()
    })
    .await;
    let after = house.accept(restore("vm", "b")).await;
    assert_eq!(
        house.end(after).await.phase,
        Phase::Succeeded,
        "works again"
    );
    house.restart().await;
    for seq in [first, running, after] {
        let seen = house.operation(seq).await;
        assert_eq!(seen.phase, Phase::Succeeded, "{seq} is kept");
    }
    house.room.stop().await;
    drop(house);
}
