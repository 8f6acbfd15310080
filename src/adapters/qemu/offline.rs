//! Changes of a VM that was off when they were requested: begun, finished and found again.
//!
//! See `restore_markers.rs` for how a gateway that comes after one that died learns what was done.

use std::sync::Arc;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::checks::Checks;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::disk::Disk;
use crate::adapters::qemu::disk::TagCoverage;
use crate::adapters::qemu::disk::tag_coverage;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::HeldImages;
use crate::adapters::qemu::image::ImageLocking;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::in_use::FileStamp;
use crate::adapters::qemu::offline_plan::LockedImages;
use crate::adapters::qemu::offline_plan::disks_still_holding;
use crate::adapters::qemu::offline_plan::had_no_tag;
use crate::adapters::qemu::offline_plan::may_continue_restore;
use crate::adapters::qemu::offline_plan::plan_create_or_delete;
use crate::adapters::qemu::offline_plan::plan_restore_steps;
use crate::adapters::qemu::offline_plan::vm_changed;
use crate::adapters::qemu::offline_worker::ImageStep;
use crate::adapters::qemu::offline_worker::OfflineJob;
use crate::adapters::qemu::offline_worker::OfflineWorker;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::adapters::qemu::records::Baseline;
use crate::adapters::qemu::records::conclude_from_disks;
use crate::adapters::qemu::records::interrupted;
use crate::adapters::qemu::restore_markers;
use crate::adapters::qemu::restore_markers::OfflineBaseline;
use crate::adapters::qemu::restore_markers::RestoreProgress;
use crate::adapters::qemu::vm_access::VmAccess;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;
use crate::public_text;

/// What a call comes to: these steps on images that are held; `None` when nothing is left to do.
type PlannedSteps = Option<(Vec<ImageStep>, HeldImages)>;

/// Changes of VMs that are off, for one adapter.
#[derive(Debug)]
pub(super) struct OfflineChanges<'a> {
    pub(super) access: &'a VmAccess,
    pub(super) worker: &'a Arc<OfflineWorker>,
}

impl OfflineChanges<'_> {
    /// What is remembered of a stopped VM before a change, after its disks were marked where that will be needed.
    pub(super) async fn prepare(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<OfflineBaseline, AdapterError> {
        let vm = &intent.target.vm;
        let seen = self
            .access
            .read_offline_vm(vm, paths, ImageLocking::Shared, by)
            .await?;
        // As the disks are before anything is marked: a mark would count as a change.
        let parts = restore_markers::parts(&seen.disks, intent.target.backup.as_str());
        let mut own = None;
        let mut failure = None;
        // What may not begin is left alone, and refused when it is to begin.
        let in_use = in_use::check_stopped(paths, &self.access.last_written(vm)).await;
        if in_use.is_ok() && check::are_capable(&seen.disks).is_ok() {
            restore_markers::delete_own_snapshots(
                &self.access.program,
                &paths.images,
                &seen.disks,
                self.access.time_left(by),
            )
            .await;
            let snapshots = match intent.verb() {
                // A mark is enough for a new backup. A restore needs a snapshot of each disk as well, by which a half
                // is found.
                Verb::Create if check::is_distinct(&seen.disks, intent).is_ok() => Some(false),
                Verb::Restore if check::may_restore(&seen.disks, intent).is_ok() => Some(true),
                Verb::Create | Verb::Restore | Verb::Update | Verb::Delete => None,
            };
            if let Some(snapshots) = snapshots {
                let within = self.access.time_left(by);
                let made =
                    restore_markers::mark(&self.access.program, &paths.images, snapshots, within)
                        .await;
                match made {
                    Ok(tag) => own = snapshots.then_some(tag),
                    // Not an error of this call: the baseline is still worth keeping, and the change itself is
                    // refused with this reason.
                    Err(error) => failure = Some(marking_fault(intent, error)),
                }
            }
        }
        let stamps = in_use::read_stamps(&paths.images).await?;
        Ok(OfflineBaseline {
            parts,
            own,
            stamps,
            unmarked: failure,
        })
    }

    pub(super) async fn begin(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        job: &str,
        before: Option<&Baseline>,
        by: Deadline,
    ) -> Result<Option<BeginOutcome>, AdapterError> {
        // A repeated call after a lost answer: the work is under way or has ended, and is only followed.
        if self.worker.state(job).is_some() {
            return Ok(None);
        }
        let offline = before.and_then(|before| before.offline.as_ref());
        let plan = if intent.verb() == Verb::Restore {
            self.plan_restore(intent, paths, before, by).await?
        } else {
            let locked = self.locked(intent, paths, by).await?;
            // Planned on what was seen under the locks. Before them a VM could have started on the images.
            let planned = plan_create_or_delete(intent, paths, &locked, offline);
            self.with_images(planned, locked.held, by).await?
        };
        let Some((steps, held)) = plan else {
            return Ok(Some(BeginOutcome::Done));
        };
        let work = OfflineJob {
            job: job.to_owned(),
            verb: intent.verb(),
            target: intent.target.clone(),
            steps,
            images: paths.images.clone(),
            held,
            before: offline.and_then(|offline| offline.own.clone()),
        };
        let program = self.access.program.clone();
        let clock = Arc::clone(&self.access.clock);
        self.worker.begin(
            work,
            program,
            self.access.config.image_timeout,
            clock,
            &self.access.tasks,
        );
        Ok(None)
    }

    /// Opens every image for writing, so that whatever would stop the work half-way is known before it begins, and no
    /// other program changes them meanwhile. Then looks at them.
    async fn locked(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<LockedImages, AdapterError> {
        let vm = &intent.target.vm;
        let held = match HeldImages::take(
            &self.access.program,
            &paths.images,
            self.access.time_left(by),
        )
        .await
        {
            Ok(held) => held,
            Err(error) => {
                // Where the disks cannot be used at all, that is the better answer.
                let seen = self
                    .access
                    .read_offline_vm(vm, paths, ImageLocking::Shared, by)
                    .await?;
                check::are_capable(&seen.disks)?;
                return Err(error.into());
            }
        };
        let looked = async {
            let mut checks = Checks::until_first();
            let stamps = in_use::read_stamps(&paths.images).await?;
            let disks = self.check_images(intent, paths, &mut checks, by).await?;
            Ok((disks, stamps))
        };
        match looked.await {
            Ok((disks, stamps)) => Ok(LockedImages {
                held,
                disks,
                stamps,
            }),
            Err(error) => {
                held.release_all(self.access.time_left(by)).await;
                Err(error)
            }
        }
    }

    /// Everything about the images that would refuse a change, whatever it is. Returns what is on them.
    async fn check_images(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<Vec<Disk>, AdapterError> {
        let vm = &intent.target.vm;
        let used = in_use::check_stopped(paths, &self.access.last_written(vm)).await;
        checks.record(used)?;
        let seen = self
            .access
            .read_offline_vm(vm, paths, ImageLocking::Shared, by)
            .await?;
        checks.record(check::is_distinct(&seen.disks, intent))?;
        Ok(seen.disks.clone())
    }

    /// Everything that would refuse a restore or a delete, found without opening an image for writing as the change would: a VM that is
    /// started in that moment would fail.
    pub(super) async fn check_change(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        checks: &mut Checks,
        by: Deadline,
    ) -> Result<(), AdapterError> {
        let vm = &intent.target.vm;
        if let Err(error) = in_use::check_writable(&paths.images).await {
            // In the order of `locked`: where the disks cannot be used at all, that is the better answer.
            let locking = ImageLocking::Shared;
            let seen = self.access.read_offline_vm(vm, paths, locking, by).await?;
            checks.record(check::are_capable(&seen.disks))?;
            checks.record(Err::<(), _>(AdapterError::from(error)))?;
        }
        let disks = self.check_images(intent, paths, checks, by).await?;
        match intent.verb() {
            Verb::Restore => check::check_restore(&disks, intent, checks)?,
            Verb::Create | Verb::Update | Verb::Delete => {
                checks.record(check::check_meant(&disks, intent))?;
            }
        }
        Ok(())
    }

    /// Puts steps and the hold on their images together; where there are no steps, the images are free when this returns.
    async fn with_images(
        &self,
        planned: Result<Option<Vec<ImageStep>>, AdapterError>,
        held: HeldImages,
        by: Deadline,
    ) -> Result<PlannedSteps, AdapterError> {
        if let Ok(Some(steps)) = planned {
            return Ok(Some((steps, held)));
        }
        held.release_all(self.access.time_left(by)).await;
        planned.map(|_nothing| None)
    }

    async fn plan_restore(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        before: Option<&Baseline>,
        by: Deadline,
    ) -> Result<PlannedSteps, AdapterError> {
        // The baseline is of a running VM, whose snapshots QEMU takes another way; the evidence of one says nothing
        // about the other.
        if before.is_some_and(|before| before.process.is_some()) {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                public_text!(
                    "The VM was stopped before the restore began; nothing was changed. Request the restore again."
                ),
            ));
        }
        let offline = before.and_then(|before| before.offline.as_ref());
        let Some((offline, own)) =
            // Without marks a half looks like a restore that never began, so it does not begin.
            offline.and_then(|offline| Some((offline, offline.own.as_deref()?)))
        else {
            let locked = self.locked(intent, paths, by).await?;
            let refused = match check::may_restore(&locked.disks, intent) {
                Ok(()) => Err(
                    match before.and_then(|before| before.offline.as_ref()?.unmarked.clone()) {
                        Some(fault) => AdapterError::refused(fault.kind, fault.text),
                        None => AdapterError::refused(
                            FaultKind::Busy,
                            public_text!(
                                "The VM was changed by another program while its restore was prepared; the restore did not begin. Try again."
                            ),
                        ),
                    },
                ),
                Err(error) => Err(error),
            };
            return self.with_images(refused, locked.held, by).await;
        };
        // A repeated call continues where the first one ended, disk by disk.
        let progress = self.read_progress(intent, paths, offline, own).await?;
        let images = match progress {
            RestoreProgress::NotStarted => paths.images.clone(),
            RestoreProgress::Partial(ref split) => split.not_restored.clone(),
            RestoreProgress::Complete
            | RestoreProgress::DisksUsed(_)
            | RestoreProgress::Unclear => {
                return match restore_outcome(&progress, false) {
                    FindOutcome::Done(_) => Ok(None),
                    FindOutcome::Failed(fault) => {
                        Err(AdapterError::refused(fault.kind, fault.text))
                    }
                    FindOutcome::VmChanged => Err(vm_changed()),
                    other @ (FindOutcome::NotBegun
                    | FindOutcome::HalfDone(_)
                    | FindOutcome::Task(_)
                    | FindOutcome::NotYet
                    | FindOutcome::Unknowable) => Err(outcome_unclear(&other)),
                };
            }
        };
        let planned = async {
            let locked = self.locked(intent, paths, by).await?;
            let planned = plan_restore_steps(intent, paths, &locked, offline, &images);
            self.with_images(planned, locked.held, by).await
        };
        match planned.await {
            Ok(plan) => Ok(plan),
            // A half is not left by saying that nothing was done.
            Err(error) if matches!(progress, RestoreProgress::Partial(_)) => {
                Err(outcome_unclear(&error))
            }
            Err(error) => Err(error),
        }
    }

    /// What became of a change that was begun while the VM was stopped, as it is now.
    pub(super) async fn find(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        before: Option<&Baseline>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        // A qemu-img of a gateway before us may still be running: then this is refused, and asked again later.
        let vm = &intent.target.vm;
        let seen = self
            .access
            .read_offline_vm(vm, paths, ImageLocking::Exclusive, by)
            .await?;
        // A baseline of an older version, or none: the disks are all the evidence there is.
        let Some(offline) = before.and_then(|before| before.offline.as_ref()) else {
            return Ok(conclude_from_disks(intent, before.is_none(), &seen.disks));
        };
        let now = in_use::read_stamps(&paths.images).await?;
        // The same paths may hold other files by now, about which the baseline says nothing.
        let Some(offline) = offline.aligned(&now) else {
            return self
                .find_replaced(intent, paths, offline, &seen.disks)
                .await;
        };
        let tag = intent.target.backup.as_str();
        let has_changed = (0..now.len()).any(|number| offline.has_changed(number, &now));
        Ok(match intent.verb() {
            Verb::Create => match tag_coverage(&seen.disks, tag) {
                Some(TagCoverage::Partial) if had_no_tag(&offline) => {
                    judge_partial_create(paths, &seen.disks, &offline, &now, tag).await
                }
                None if has_changed => FindOutcome::VmChanged,
                None => FindOutcome::NotBegun,
                Some(_) => conclude_from_disks(intent, false, &seen.disks),
            },
            Verb::Delete => {
                // Compared with what there was before, because a backup may never have been on every disk.
                let had = offline.parts.iter().flatten().count();
                match disks_still_holding(&seen.disks, &offline, tag).count() {
                    0 => FindOutcome::Done(None),
                    // All of it is still there, so deleting it again has the effect of deleting it once.
                    left if left == had => FindOutcome::NotBegun,
                    _ => FindOutcome::HalfDone(half_deleted(&seen.disks, tag)),
                }
            }
            Verb::Restore => match &offline.own {
                // It was never let begin.
                None if has_changed => FindOutcome::VmChanged,
                None => FindOutcome::NotBegun,
                Some(own) => {
                    let progress = self.read_progress(intent, paths, &offline, own).await?;
                    // Otherwise they are the only evidence, and go when the next change of this VM begins.
                    if progress == RestoreProgress::Complete {
                        let within = self.access.time_left(by);
                        restore_markers::delete_own_snapshots(
                            &self.access.program,
                            &paths.images,
                            &seen.disks,
                            within,
                        )
                        .await;
                    }
                    match (
                        may_continue_restore(&seen.disks, intent, &offline),
                        progress,
                    ) {
                        (Err(error), RestoreProgress::NotStarted) => {
                            FindOutcome::Failed(error.fault)
                        }
                        (Err(_), RestoreProgress::Partial(split)) => {
                            restore_outcome(&RestoreProgress::DisksUsed(split), false)
                        }
                        (Ok(()) | Err(_), progress) => restore_outcome(&progress, false),
                    }
                }
            },
            Verb::Update => FindOutcome::NotBegun,
        })
    }

    /// The same where an image is another file by now: nothing is done to it for a request that was about the other one.
    async fn find_replaced(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        offline: &OfflineBaseline,
        disks: &[Disk],
    ) -> Result<FindOutcome, AdapterError> {
        let tag = intent.target.backup.as_str();
        Ok(match (intent.verb(), tag_coverage(disks, tag)) {
            (Verb::Restore, _) => match &offline.own {
                None => FindOutcome::VmChanged,
                Some(own) => restore_outcome(
                    &self.read_progress(intent, paths, offline, own).await?,
                    false,
                ),
            },
            (Verb::Create, None)
            | (Verb::Delete, Some(TagCoverage::Complete | TagCoverage::Duplicated)) => {
                FindOutcome::VmChanged
            }
            (Verb::Create, Some(TagCoverage::Partial)) => {
                FindOutcome::Failed(half_created(disks, tag))
            }
            (Verb::Create, Some(TagCoverage::Complete | TagCoverage::Duplicated)) => {
                conclude_from_disks(intent, false, disks)
            }
            (Verb::Delete, Some(TagCoverage::Partial)) => {
                FindOutcome::Failed(half_deleted(disks, tag))
            }
            (Verb::Delete, None) => FindOutcome::Done(None),
            (Verb::Update, _) => FindOutcome::NotBegun,
        })
    }

    /// What became of a restore that was asked for while the VM was stopped, which runs now: it is left alone.
    pub(super) async fn find_started(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        offline: &OfflineBaseline,
    ) -> Result<FindOutcome, AdapterError> {
        let Some(own) = &offline.own else {
            return Ok(FindOutcome::VmChanged);
        };
        Ok(restore_outcome(
            &self.read_progress(intent, paths, offline, own).await?,
            true,
        ))
    }

    /// How far the restore came. Images that are other files by now are never restored further.
    async fn read_progress(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        offline: &OfflineBaseline,
        own: &str,
    ) -> Result<RestoreProgress, AdapterError> {
        let tag = intent.target.backup.as_str();
        let progress = restore_markers::read_restore_progress(own, &paths.images, tag).await?;
        let now = in_use::read_stamps(&paths.images).await?;
        Ok(match offline.aligned(&now) {
            Some(_same_files) => progress,
            None => progress.elsewhere(&paths.images),
        })
    }
}

/// What to answer about a restore that came so far. `runs`: the VM is running now, so that nothing more may be done.
fn restore_outcome(progress: &RestoreProgress, runs: bool) -> FindOutcome {
    match progress {
        RestoreProgress::Complete => FindOutcome::Done(None),
        RestoreProgress::NotStarted if !runs => FindOutcome::NotBegun,
        RestoreProgress::NotStarted => FindOutcome::VmChanged,
        RestoreProgress::DisksUsed(split) if split.is_untouched() => FindOutcome::VmChanged,
        RestoreProgress::Partial(split) if !runs => {
            let disks = split.summary();
            FindOutcome::HalfDone(interrupted(public_text!(
                "The restore was interrupted and is incomplete ({disks}). Restore the VM again before it is started."
            )))
        }
        RestoreProgress::Partial(split) | RestoreProgress::DisksUsed(split) => {
            let disks = split.summary();
            FindOutcome::Failed(Fault::new(
                FaultKind::Conflict,
                public_text!(
                    "The restore is incomplete ({disks}), and the VM was used or an image was replaced since: its disks hold data from different points in time. Stop the VM and restore it again."
                ),
            ))
        }
        RestoreProgress::Unclear => FindOutcome::Unknowable,
    }
}

/// Why the disks could not be marked: the same cause would have stopped the change itself.
fn marking_fault(intent: &Intent, error: QemuError) -> Fault {
    let (vm, verb) = (intent.target.vm.as_str(), intent.verb().as_str());
    tracing::warn!(vm, verb, %error, "disks not marked before a change");
    let fault = AdapterError::from(error).fault;
    let text = fault
        .text
        .followed_by(&public_text!("Nothing was changed."));
    Fault::new(fault.kind, text)
}

/// An earlier call may have had an effect, which is to be looked for.
fn outcome_unclear(why: &impl std::fmt::Debug) -> AdapterError {
    AdapterError::uncertain(
        FaultKind::BackendFailed,
        public_text!("The outcome of the restore is not known yet. It is being determined."),
    )
    .because(format!("{why:?}"))
}

/// The disks that have the tag, in a sentence.
fn list_disks_with(disks: &[Disk], tag: &str) -> String {
    let with = disks.iter().filter(|disk| disk.has_tag(tag));
    let labels: Vec<String> = with.map(|disk| disk.label.clone()).collect();
    check::list_disks(&labels)
}

fn half_created(disks: &[Disk], tag: &str) -> Fault {
    let with = list_disks_with(disks, tag);
    interrupted(public_text!(
        "The backup was made on {with} only. Delete it and create a new one."
    ))
}

fn half_deleted(disks: &[Disk], tag: &str) -> Fault {
    let with = list_disks_with(disks, tag);
    interrupted(public_text!(
        "The backup was deleted on some disks only and still exists on {with}. Delete it again."
    ))
}

/// A backup that is on some disks: it is made anew where no disk was used since, so that it is of the time it was asked for.
async fn judge_partial_create(
    paths: &VmPaths,
    disks: &[Disk],
    offline: &OfflineBaseline,
    now: &[FileStamp],
    tag: &str,
) -> FindOutcome {
    for (number, (disk, image)) in disks.iter().zip(&paths.images).enumerate() {
        let is_used = if disk.has_tag(tag) {
            !matches!(
                qcow2::relation_to_snapshot(image, tag).await,
                Ok(SnapshotRelation::Identical)
            )
        } else {
            offline.has_changed(number, now)
        };
        if is_used {
            return FindOutcome::Failed(half_created(disks, tag));
        }
    }
    FindOutcome::HalfDone(half_created(disks, tag))
}
