//! A full disk: reads go on, nothing is half accepted, and writes work again when there is space.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::Fixture;
use super::wait_until;
use crate::adapters::adapter::Recovery;
use crate::model::Phase;
use crate::operations::AcceptError;
use crate::operations::ListQuery;
use crate::operations::OperationsApi;
use crate::operations::StoreFault;
use crate::operations::StoreLocation;
use crate::operations::maintenance;
use crate::operations::testing::Reply;
use crate::operations::testing::restore;

/// A small file system that is gone with the test.
struct SmallFileSystem {
    folder: tempfile::TempDir,
}

impl SmallFileSystem {
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

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}

#[tokio::test]
#[ignore = "needs the right to mount a file system"]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn a_full_disk_refuses_changes_answers_reads_and_recovers_when_there_is_space() {
    let small = SmallFileSystem::new();
    let file = small.path().join("operations.db");
    let mut fixture = Fixture::with(Recovery::Listable, |setup| {
        setup.config.store = StoreLocation::File(file);
    })
    .await;
    fixture.adapter.set_task_reply("vm", Reply::Done);
    let first = fixture.accept(restore("vm", "b")).await;
    fixture.wait_for_end(first).await;
    let running = fixture.accept(restore("busy", "b")).await;
    fixture.wait_for_phase(running, Phase::Running).await;
    small.fill();

    // The log may have room in its last page, so a few may still be accepted.
    let mut kept = Vec::new();
    let refused = loop {
        match fixture
            .accept_on("one", restore(&format!("full-{}", kept.len()), "b"))
            .await
        {
            Ok(accepted) => kept.push(accepted.operation().seq),
            Err(error) => break error,
        }
        assert!(kept.len() < 1000, "the disk is full at some point");
    };
    let unavailable = matches!(refused, AcceptError::Store(StoreFault::Unavailable));
    assert!(unavailable, "refused for now, not for good: {refused:?}");
    assert!(
        !fixture.operations.failed().is_given(),
        "the process goes on"
    );
    assert!(
        !fixture.operations.is_ready(),
        "and reports that it accepts nothing"
    );

    let seen = fixture.read(first).await;
    assert_eq!(seen.phase, Phase::Succeeded, "Statuses are read");
    let query = ListQuery {
        limit: 1000,
        ..ListQuery::default()
    };
    let listed = fixture
        .operations
        .list(&query)
        .await
        .expect("lists are read");
    assert_eq!(
        listed.operations.len(),
        kept.len() + 2,
        "nothing is half accepted"
    );
    assert!(
        fixture.metrics_text().contains("unavailable"),
        "it is counted"
    );

    // The VM manager finishes the work meanwhile; its end is recorded once there is space.
    fixture.adapter.set_task_reply("busy", Reply::Done);
    small.free();
    assert_eq!(
        fixture.wait_for_end(running).await.phase,
        Phase::Succeeded,
        "recorded"
    );
    wait_until("ready again", || async {
        maintenance::run_round(&fixture.operations.core).await;
        fixture.operations.is_ready()
    })
    .await;
    let after = fixture.accept(restore("vm", "b")).await;
    assert_eq!(
        fixture.wait_for_end(after).await.phase,
        Phase::Succeeded,
        "works again"
    );
    fixture.restart().await;
    for seq in [first, running, after] {
        let seen = fixture.read(seq).await;
        assert_eq!(seen.phase, Phase::Succeeded, "{seq} is kept");
    }
    fixture.operations.stop().await;
    drop(fixture);
}
