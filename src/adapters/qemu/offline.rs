//! Changes to a VM that was stopped when they were begun: begun, finished and found again. See `restore_markers.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::qemu::Before;
use crate::adapters::qemu::Qemu;
use crate::adapters::qemu::broken_off;
use crate::adapters::qemu::check;
use crate::adapters::qemu::conclude_from_disks;
use crate::adapters::qemu::config::VmPaths;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::HeldImages;
use crate::adapters::qemu::image::ImageLocking;
use crate::adapters::qemu::image::SnapshotAction;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::in_use::FileStamp;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::offline_worker::ImageStep;
use crate::adapters::qemu::offline_worker::OfflineJob;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::SnapshotRelation;
use crate::adapters::qemu::restore_markers;
use crate::adapters::qemu::restore_markers::OfflineBaseline;
use crate::adapters::qemu::restore_markers::RestoreProgress;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;

/// What a call comes to: these steps on images that are held; `None` when nothing is left to do.
type PlannedSteps = Option<(Vec<ImageStep>, HeldImages)>;

/// The images of a VM as they are while no other program can write to them.
struct LockedImages {
    held: HeldImages,
    disks: Vec<Disk>,
    stamps: Vec<FileStamp>,
}

impl Qemu {
    /// What is remembered of a stopped VM before a change, after its disks were marked where that will be needed.
    pub(super) async fn trail(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        by: Deadline,
    ) -> Result<OfflineBaseline, AdapterError> {
        let vm = &intent.target.vm;
        let seen = self
            .read_offline_vm(vm, paths, ImageLocking::Shared, by)
            .await?;
        let parts = restore_markers::parts(&seen.disks, intent.target.backup.as_str());
        let mut own = None;
        let mut failure = None;
        // What may not begin is left alone, and refused when it is to begin.
        let in_use = in_use::check_stopped(paths, &self.last_written(vm)).await;
        if in_use.is_ok() && check::are_capable(&seen.disks).is_ok() {
            restore_markers::delete_own_snapshots(
                &self.program,
                &paths.images,
                &seen.disks,
                self.time_left(by),
            )
            .await;
            let snapshots = match intent.verb() {
                Verb::Create if check::is_distinct(&seen.disks, intent).is_ok() => Some(false),
                Verb::Restore if check::may_restore(&seen.disks, intent).is_ok() => Some(true),
                Verb::Create | Verb::Restore | Verb::Update | Verb::Delete => None,
            };
            if let Some(snapshots) = snapshots {
                let within = self.time_left(by);
                let made =
                    restore_markers::mark(&self.program, &paths.images, snapshots, within).await;
                match made {
                    Ok(tag) => own = snapshots.then_some(tag),
                    Err(error) => failure = Some(marking_fault(intent, error)),
                }
            }
        }
        let stamps = in_use::read_stamps(&paths.images).await;
        let stamps = stamps.map_err(QemuError::into_read_error)?;
        Ok(OfflineBaseline {
            parts,
            own,
            stamps,
            unmarked: failure,
        })
    }

    pub(super) async fn begin_stopped(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        job: &str,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<Option<BeginOutcome>, AdapterError> {
        if self.worker.state(job).is_some() {
            return Ok(None);
        }
        let trail = before.and_then(|it| it.trail.as_ref());
        let plan = if intent.verb() == Verb::Restore {
            self.plan_restore(intent, paths, before, by).await?
        } else {
            let locked = self.locked(intent, paths, by).await?;
            let planned = plan_create_or_delete(intent, paths, &locked, trail);
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
            before: trail.and_then(|trail| trail.own.clone()),
        };
        let program = self.program.clone();
        let clock = Arc::clone(&self.clock);
        self.worker
            .begin(work, program, self.config.image_timeout, clock, &self.tasks);
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
        let held = match HeldImages::take(&self.program, &paths.images, self.time_left(by)).await {
            Ok(held) => held,
            Err(error) => {
                // Where the disks cannot be used at all, that is the better answer.
                let seen = self
                    .read_offline_vm(vm, paths, ImageLocking::Shared, by)
                    .await?;
                check::are_capable(&seen.disks)?;
                return Err(error.into_read_error());
            }
        };
        let looked = async {
            in_use::check_stopped(paths, &self.last_written(vm)).await?;
            let stamps = in_use::read_stamps(&paths.images).await;
            let stamps = stamps.map_err(QemuError::into_read_error)?;
            let seen = self
                .read_offline_vm(vm, paths, ImageLocking::Shared, by)
                .await?;
            check::is_distinct(&seen.disks, intent)?;
            Ok((seen.disks.clone(), stamps))
        };
        match looked.await {
            Ok((disks, stamps)) => Ok(LockedImages {
                held,
                disks,
                stamps,
            }),
            Err(error) => {
                held.release_all(self.time_left(by)).await;
                Err(error)
            }
        }
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
        held.release_all(self.time_left(by)).await;
        planned.map(|_nothing| None)
    }

    async fn plan_restore(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<PlannedSteps, AdapterError> {
        if before.is_some_and(|it| it.life.is_some()) {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                "The VM was stopped before it could be restored; nothing was changed. Ask again.",
            ));
        }
        let trail = before.and_then(|it| it.trail.as_ref());
        let Some((trail, own)) = trail.and_then(|trail| Some((trail, trail.own.as_deref()?)))
        else {
            let locked = self.locked(intent, paths, by).await?;
            let refused = match check::may_restore(&locked.disks, intent) {
                Ok(()) => Err(
                    match before.and_then(|it| it.trail.as_ref()?.unmarked.clone()) {
                        Some(fault) => AdapterError::refused(fault.kind, fault.text),
                        None => AdapterError::refused(
                            FaultKind::Busy,
                            "The VM changed while its restore was prepared; nothing was changed. Try again.",
                        ),
                    },
                ),
                Err(error) => Err(error),
            };
            return self.with_images(refused, locked.held, by).await;
        };
        let progress = self.read_progress(intent, paths, trail, own).await?;
        let images = match progress {
            RestoreProgress::NotStarted => paths.images.clone(),
            RestoreProgress::Partial(ref split) => split.not_restored.clone(),
            RestoreProgress::Complete
            | RestoreProgress::DisksUsed(_)
            | RestoreProgress::Unclear => {
                return match restore_outcome(&progress, false) {
                    FindOutcome::Done => Ok(None),
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
            let planned = plan_restore_steps(intent, paths, &locked, trail, &images);
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
    pub(super) async fn find_stopped(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        // A qemu-img of a gateway before us may still be running: then this is refused, and asked again later.
        let vm = &intent.target.vm;
        let seen = self
            .read_offline_vm(vm, paths, ImageLocking::Exclusive, by)
            .await?;
        let Some(trail) = before.and_then(|it| it.trail.as_ref()) else {
            return Ok(conclude_from_disks(intent, before.is_none(), &seen.disks));
        };
        let now = in_use::read_stamps(&paths.images).await;
        let now = now.map_err(QemuError::into_read_error)?;
        let Some(trail) = trail.aligned(&now) else {
            return self.find_replaced(intent, paths, trail, &seen.disks).await;
        };
        let tag = intent.target.backup.as_str();
        let has_changed = (0..now.len()).any(|number| trail.has_changed(number, &now));
        Ok(match intent.verb() {
            Verb::Create => match map::tag_coverage(&seen.disks, tag) {
                Some(map::TagCoverage::Partial) if had_no_tag(&trail) => {
                    judge_partial_create(paths, &seen.disks, &trail, &now, tag).await
                }
                None if has_changed => FindOutcome::VmChanged,
                None => FindOutcome::NotBegun,
                Some(_) => conclude_from_disks(intent, false, &seen.disks),
            },
            Verb::Delete => {
                let had = trail.parts.iter().flatten().count();
                match disks_still_holding(&seen.disks, &trail, tag).count() {
                    0 => FindOutcome::Done,
                    left if left == had => FindOutcome::NotBegun,
                    _ => FindOutcome::HalfDone(half_deleted(&seen.disks, tag)),
                }
            }
            Verb::Restore => match &trail.own {
                // It was never let begin.
                None if has_changed => FindOutcome::VmChanged,
                None => FindOutcome::NotBegun,
                Some(own) => {
                    let progress = self.read_progress(intent, paths, &trail, own).await?;
                    // Otherwise they are the only evidence, and go when the next change of this VM begins.
                    if progress == RestoreProgress::Complete {
                        let within = self.time_left(by);
                        restore_markers::delete_own_snapshots(
                            &self.program,
                            &paths.images,
                            &seen.disks,
                            within,
                        )
                        .await;
                    }
                    match (may_continue_restore(&seen.disks, intent, &trail), progress) {
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
        trail: &OfflineBaseline,
        disks: &[Disk],
    ) -> Result<FindOutcome, AdapterError> {
        let tag = intent.target.backup.as_str();
        Ok(match (intent.verb(), map::tag_coverage(disks, tag)) {
            (Verb::Restore, _) => match &trail.own {
                None => FindOutcome::VmChanged,
                Some(own) => {
                    restore_outcome(&self.read_progress(intent, paths, trail, own).await?, false)
                }
            },
            (Verb::Create, None)
            | (Verb::Delete, Some(map::TagCoverage::Complete | map::TagCoverage::Duplicated)) => {
                FindOutcome::VmChanged
            }
            (Verb::Create, Some(map::TagCoverage::Partial)) => {
                FindOutcome::Failed(half_created(disks, tag))
            }
            (Verb::Create, Some(map::TagCoverage::Complete | map::TagCoverage::Duplicated)) => {
                conclude_from_disks(intent, false, disks)
            }
            (Verb::Delete, Some(map::TagCoverage::Partial)) => {
                FindOutcome::Failed(half_deleted(disks, tag))
            }
            (Verb::Delete, None) => FindOutcome::Done,
            (Verb::Update, _) => FindOutcome::NotBegun,
        })
    }

    /// What became of a restore that was asked for while the VM was stopped, which runs now: it is left alone.
    pub(super) async fn find_started(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        trail: &OfflineBaseline,
    ) -> Result<FindOutcome, AdapterError> {
        let Some(own) = &trail.own else {
            return Ok(FindOutcome::VmChanged);
        };
        Ok(restore_outcome(
            &self.read_progress(intent, paths, trail, own).await?,
            true,
        ))
    }

    /// How far the restore came. Images that are other files by now are never restored further.
    async fn read_progress(
        &self,
        intent: &Intent,
        paths: &VmPaths,
        trail: &OfflineBaseline,
        own: &str,
    ) -> Result<RestoreProgress, AdapterError> {
        let tag = intent.target.backup.as_str();
        let progress = restore_markers::read_restore_progress(own, &paths.images, tag).await;
        let progress = progress.map_err(QemuError::into_read_error)?;
        let now = in_use::read_stamps(&paths.images).await;
        let now = now.map_err(QemuError::into_read_error)?;
        Ok(match trail.aligned(&now) {
            Some(_same_files) => progress,
            None => progress.elsewhere(&paths.images),
        })
    }
}

/// What is told of a restore that came so far.
fn restore_outcome(progress: &RestoreProgress, runs: bool) -> FindOutcome {
    match progress {
        RestoreProgress::Complete => FindOutcome::Done,
        RestoreProgress::NotStarted if !runs => FindOutcome::NotBegun,
        RestoreProgress::NotStarted => FindOutcome::VmChanged,
        RestoreProgress::DisksUsed(split) if split.is_untouched() => FindOutcome::VmChanged,
        RestoreProgress::Partial(split) if !runs => FindOutcome::HalfDone(broken_off(&format!(
            "{}; the others were not restored. Restore the VM again before it is started.",
            split.summary()
        ))),
        RestoreProgress::Partial(split) | RestoreProgress::DisksUsed(split) => {
            FindOutcome::Failed(Fault::new(
                FaultKind::Conflict,
                format!(
                    "{}, and the VM was used or an image replaced since: its disks are of two times. Stop the VM and restore it again.",
                    split.summary()
                ),
            ))
        }
        RestoreProgress::Unclear => FindOutcome::Unknowable,
    }
}

/// The VM's disks are not what they were when the change was asked for.
pub(super) fn vm_changed() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        "The VM was used or its images were replaced before the change began; nothing was changed. Ask again if it is still wanted.",
    )
}

/// Why the disks could not be marked: the same thing would have stopped the change itself.
fn marking_fault(intent: &Intent, error: QemuError) -> Fault {
    let (vm, verb) = (intent.target.vm.as_str(), intent.verb().as_str());
    tracing::warn!(vm, verb, private = %error, "disks could not be marked");
    let fault = error.into_read_error().fault;
    Fault::new(fault.kind, format!("{} Nothing was changed.", fault.text))
}

/// An earlier call may have had an effect, which is to be looked for.
fn outcome_unclear(why: &impl std::fmt::Debug) -> AdapterError {
    AdapterError::uncertain(
        FaultKind::BackendFailed,
        "It is not known yet what became of the restore.",
    )
    .because(format!("{why:?}"))
}

/// Whether the backup is still the one that was there before, and every disk may be restored.
fn may_continue_restore(
    disks: &[Disk],
    intent: &Intent,
    trail: &OfflineBaseline,
) -> Result<(), AdapterError> {
    check::may_restore(disks, intent)?;
    if restore_markers::parts(disks, intent.target.backup.as_str()) == trail.parts {
        return Ok(());
    }
    Err(check::other_backup_under_id())
}

fn labels<'a>(disks: impl Iterator<Item = &'a Disk>) -> String {
    let labels: Vec<String> = disks.map(|disk| disk.label.clone()).collect();
    check::list_disks(&labels)
}

fn half_created(disks: &[Disk], tag: &str) -> Fault {
    let with = labels(disks.iter().filter(|disk| disk.has_tag(tag)));
    broken_off(&format!("The backup was made on {with} only; delete it."))
}

fn half_deleted(disks: &[Disk], tag: &str) -> Fault {
    let with = labels(disks.iter().filter(|disk| disk.has_tag(tag)));
    broken_off(&format!("The backup is still on {with}; delete it again."))
}

/// A backup that is on some disks: it is made anew where no disk was used since, so that it is of the time it was asked for.
async fn judge_partial_create(
    paths: &VmPaths,
    disks: &[Disk],
    trail: &OfflineBaseline,
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
            trail.has_changed(number, now)
        };
        if is_used {
            return FindOutcome::Failed(half_created(disks, tag));
        }
    }
    FindOutcome::HalfDone(half_created(disks, tag))
}

/// What is to be done to the images for a restore: these are restored, and our own snapshots go from all.
fn plan_restore_steps(
    intent: &Intent,
    paths: &VmPaths,
    locked: &LockedImages,
    trail: &OfflineBaseline,
    images: &[PathBuf],
) -> Result<Option<Vec<ImageStep>>, AdapterError> {
    let aligned = trail.aligned(&locked.stamps).ok_or_else(vm_changed)?;
    may_continue_restore(&locked.disks, intent, &aligned)?;
    let tag = intent.target.backup.as_str();
    let mut planned = steps(SnapshotAction::Apply, tag, images, paths, locked);
    let own = trail.own.as_deref().unwrap_or_default();
    let tidying = steps(SnapshotAction::Delete, own, &paths.images, paths, locked);
    planned.extend(
        tidying
            .into_iter()
            .map(|step| ImageStep { own: true, ..step }),
    );
    Ok(Some(planned))
}

/// What is to be done to the images for a create or a delete, be it the first call or a later one.
fn plan_create_or_delete(
    intent: &Intent,
    paths: &VmPaths,
    locked: &LockedImages,
    trail: Option<&OfflineBaseline>,
) -> Result<Option<Vec<ImageStep>>, AdapterError> {
    let tag = intent.target.backup.as_str();
    let disks = locked.disks.as_slice();
    let aligned = match trail {
        Some(trail) => Some(trail.aligned(&locked.stamps).ok_or_else(vm_changed)?),
        None => None,
    };
    let trail = aligned.as_ref();
    let image = |number: usize| paths.images.get(number).cloned();
    let steps = |action, images: &[PathBuf]| steps(action, tag, images, paths, locked);
    let planned = match intent.verb() {
        Verb::Create => {
            check::are_capable(disks)?;
            let mut planned = Vec::new();
            match map::tag_coverage(disks, tag) {
                None => {
                    let numbers = 0..locked.stamps.len();
                    let mut each = numbers.map(|number| {
                        trail.is_some_and(|trail| trail.has_changed(number, &locked.stamps))
                    });
                    if each.any(|has_changed| has_changed) {
                        return Err(vm_changed());
                    }
                    if let Some(fault) = trail.and_then(|trail| trail.unmarked.clone()) {
                        return Err(AdapterError::refused(fault.kind, fault.text));
                    }
                }
                Some(map::TagCoverage::Complete) => return Ok(None),
                // Its disks would be of two times: all of it is made anew.
                Some(map::TagCoverage::Partial) if trail.is_some_and(had_no_tag) => {
                    let half: Vec<PathBuf> = disks_with_tag(disks, tag).filter_map(image).collect();
                    planned = steps(SnapshotAction::Delete, &half);
                }
                Some(map::TagCoverage::Partial | map::TagCoverage::Duplicated) => {
                    return Err(check::partial_backup_exists());
                }
            }
            planned.extend(steps(SnapshotAction::Create, &paths.images));
            planned
        }
        Verb::Delete => {
            let broken = trail.filter(|it| {
                it.parts.iter().any(Option::is_some)
                    && it.parts != restore_markers::parts(disks, tag)
            });
            let numbers: Vec<usize> = match broken {
                // An earlier call checked which backup is meant, and came half-way.
                Some(trail) => disks_still_holding(disks, trail, tag).collect(),
                None if check::holds_meant_backup(disks, intent)? => {
                    disks_with_tag(disks, tag).collect()
                }
                None => return Err(check::no_such_backup()),
            };
            if numbers.is_empty() {
                return Ok(None);
            }
            let images: Vec<PathBuf> = numbers.into_iter().filter_map(image).collect();
            steps(SnapshotAction::Delete, &images)
        }
        Verb::Restore | Verb::Update => return Err(check::metadata_unsupported()),
    };
    Ok(Some(planned))
}

/// The same act for these images of the VM. Snapshots are applied by their number, which is exact.
fn steps(
    action: SnapshotAction,
    tag: &str,
    images: &[PathBuf],
    paths: &VmPaths,
    locked: &LockedImages,
) -> Vec<ImageStep> {
    let all = paths.images.iter().zip(&locked.disks).zip(&locked.stamps);
    let wanted = all.filter(|((image, _), _)| images.contains(image));
    let each = wanted.flat_map(|((image, disk), stamp)| {
        let step = ImageStep {
            action,
            name: match action {
                SnapshotAction::Apply => {
                    disk.snapshot_number(tag).unwrap_or_else(|| tag.to_owned())
                }
                SnapshotAction::Create | SnapshotAction::Delete => tag.to_owned(),
            },
            own: false,
            image: image.clone(),
            inode: stamp.inode,
        };
        // A tag that is on a disk twice is deleted as often.
        let times = match action {
            SnapshotAction::Delete => disk.snapshots_tagged(tag).count().max(1),
            SnapshotAction::Apply | SnapshotAction::Create => 1,
        };
        std::iter::repeat_n(step, times)
    });
    each.collect()
}

/// Whether no disk had the tag before: then a disk that has it now has it from this operation.
fn had_no_tag(trail: &OfflineBaseline) -> bool {
    trail.parts.iter().all(Option::is_none)
}

/// The numbers of the disks that have the tag.
fn disks_with_tag<'a>(disks: &'a [Disk], tag: &'a str) -> impl Iterator<Item = usize> + 'a {
    let numbered = disks.iter().enumerate();
    numbered
        .filter(move |(_, disk)| disk.has_tag(tag))
        .map(|(number, _)| number)
}

/// The numbers of the disks that still have what was there before.
fn disks_still_holding<'a>(
    disks: &'a [Disk],
    trail: &'a OfflineBaseline,
    tag: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let both = disks.iter().zip(&trail.parts).enumerate();
    both.filter(move |(_, (disk, before))| before.is_some() && disk.identity_part(tag) == **before)
        .map(|(number, _)| number)
}
