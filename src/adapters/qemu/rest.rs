//! Changes to a VM that was stopped when they were begun: begun, finished and found again. See `trail.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::BeginOutcome;
use crate::adapters::adapter::FindOutcome;
use crate::adapters::qemu::Before;
use crate::adapters::qemu::Qemu;
use crate::adapters::qemu::broken_off;
use crate::adapters::qemu::check;
use crate::adapters::qemu::config::Place;
use crate::adapters::qemu::derive;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Guard;
use crate::adapters::qemu::image::Holds;
use crate::adapters::qemu::in_use;
use crate::adapters::qemu::in_use::Stamp;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::qcow2;
use crate::adapters::qemu::qcow2::Kinship;
use crate::adapters::qemu::stopped::Step;
use crate::adapters::qemu::stopped::Work;
use crate::adapters::qemu::trail;
use crate::adapters::qemu::trail::Came;
use crate::adapters::qemu::trail::Trail;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;

/// What a call comes to: these steps on images that are held; `None` when nothing is left to do.
type Plan = Option<(Vec<Step>, Holds)>;

/// The images of a VM as they are while no other program can write to them.
struct Guarded {
    held: Holds,
    disks: Vec<Disk>,
    stamps: Vec<Stamp>,
}

impl Qemu {
    /// What is remembered of a stopped VM before a change, after its disks were marked where that will be needed.
    pub(super) async fn trail(
        &self,
        intent: &Intent,
        place: &Place,
        by: Deadline,
    ) -> Result<Trail, AdapterError> {
        let vm = &intent.target.vm;
        let seen = self.look_stopped(vm, place, Guard::Shared, by).await?;
        let parts = trail::parts(&seen.disks, intent.target.backup.as_str());
        let mut own = None;
        let mut failure = None;
        // What may not begin is left alone, and refused when it is to begin.
        let in_use = in_use::check_stopped(place, &self.ran_last(vm)).await;
        if in_use.is_ok() && check::are_capable(&seen.disks).is_ok() {
            trail::tidy(&self.program, &place.images, &seen.disks, self.left(by)).await;
            let snapshots = match intent.verb() {
                Verb::Create if check::is_distinct(&seen.disks, intent).is_ok() => Some(false),
                Verb::Restore if check::may_restore(&seen.disks, intent).is_ok() => Some(true),
                Verb::Create | Verb::Restore | Verb::Update | Verb::Delete => None,
            };
            if let Some(snapshots) = snapshots {
                let within = self.left(by);
                let made = trail::mark(&self.program, &place.images, snapshots, within).await;
                match made {
                    Ok(tag) => own = snapshots.then_some(tag),
                    Err(error) => failure = Some(unmarked(intent, error)),
                }
            }
        }
        let stamps = in_use::stamps(&place.images).await;
        let stamps = stamps.map_err(QemuError::of_read)?;
        Ok(Trail {
            parts,
            own,
            stamps,
            unmarked: failure,
        })
    }

    pub(super) async fn begin_stopped(
        &self,
        intent: &Intent,
        place: &Place,
        job: &str,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<Option<BeginOutcome>, AdapterError> {
        if self.works.state(job).is_some() {
            return Ok(None);
        }
        let trail = before.and_then(|it| it.trail.as_ref());
        let plan = if intent.verb() == Verb::Restore {
            self.plan_restore(intent, place, before, by).await?
        } else {
            let guarded = self.guarded(intent, place, by).await?;
            let planned = plan(intent, place, &guarded, trail);
            self.with_images(planned, guarded.held, by).await?
        };
        let Some((steps, held)) = plan else {
            return Ok(Some(BeginOutcome::Done));
        };
        let work = Work {
            job: job.to_owned(),
            verb: intent.verb(),
            target: intent.target.clone(),
            steps,
            images: place.images.clone(),
            held,
            before: trail.and_then(|trail| trail.own.clone()),
        };
        let program = self.program.clone();
        let clock = Arc::clone(&self.clock);
        self.works
            .begin(work, program, self.config.image_timeout, clock, &self.tasks);
        Ok(None)
    }

    /// Opens every image for writing, so that whatever would stop the work half-way is known before it begins, and no
    /// other program changes them meanwhile. Then looks at them.
    async fn guarded(
        &self,
        intent: &Intent,
        place: &Place,
        by: Deadline,
    ) -> Result<Guarded, AdapterError> {
        let vm = &intent.target.vm;
        let held = match Holds::take(&self.program, &place.images, self.left(by)).await {
            Ok(held) => held,
            Err(error) => {
                // Where the disks cannot be used at all, that is the better answer.
                let seen = self.look_stopped(vm, place, Guard::Shared, by).await?;
                check::are_capable(&seen.disks)?;
                return Err(error.of_read());
            }
        };
        let looked = async {
            in_use::check_stopped(place, &self.ran_last(vm)).await?;
            let stamps = in_use::stamps(&place.images).await;
            let stamps = stamps.map_err(QemuError::of_read)?;
            let seen = self.look_stopped(vm, place, Guard::Shared, by).await?;
            check::is_distinct(&seen.disks, intent)?;
            Ok((seen.disks.clone(), stamps))
        };
        match looked.await {
            Ok((disks, stamps)) => Ok(Guarded {
                held,
                disks,
                stamps,
            }),
            Err(error) => {
                held.release_all(self.left(by)).await;
                Err(error)
            }
        }
    }

    /// Puts steps and the hold on their images together; where there are no steps, the images are free when this returns.
    async fn with_images(
        &self,
        planned: Result<Option<Vec<Step>>, AdapterError>,
        held: Holds,
        by: Deadline,
    ) -> Result<Plan, AdapterError> {
        if let Ok(Some(steps)) = planned {
            return Ok(Some((steps, held)));
        }
        held.release_all(self.left(by)).await;
        planned.map(|_nothing| None)
    }

    async fn plan_restore(
        &self,
        intent: &Intent,
        place: &Place,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<Plan, AdapterError> {
        if before.is_some_and(|it| it.life.is_some()) {
            return Err(AdapterError::refused(
                FaultKind::Conflict,
                "The VM was stopped before it could be restored; nothing was changed. Ask again.",
            ));
        }
        let trail = before.and_then(|it| it.trail.as_ref());
        let Some((trail, own)) = trail.and_then(|trail| Some((trail, trail.own.as_deref()?)))
        else {
            let guarded = self.guarded(intent, place, by).await?;
            let refused = match check::may_restore(&guarded.disks, intent) {
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
            return self.with_images(refused, guarded.held, by).await;
        };
        let came = self.came(intent, place, trail, own).await?;
        let images = match came {
            Came::Nowhere => place.images.clone(),
            Came::Half(ref split) => split.left.clone(),
            Came::Through | Came::Used(_) | Came::Unclear => {
                return match told(&came, false) {
                    FindOutcome::Done => Ok(None),
                    FindOutcome::Failed(fault) => {
                        Err(AdapterError::refused(fault.kind, fault.text))
                    }
                    FindOutcome::VmChanged => Err(changed()),
                    other @ (FindOutcome::NotBegun
                    | FindOutcome::HalfDone(_)
                    | FindOutcome::Task(_)
                    | FindOutcome::NotYet
                    | FindOutcome::Unknowable) => Err(unclear(&other)),
                };
            }
        };
        let planned = async {
            let guarded = self.guarded(intent, place, by).await?;
            let planned = restoring(intent, place, &guarded, trail, &images);
            self.with_images(planned, guarded.held, by).await
        };
        match planned.await {
            Ok(plan) => Ok(plan),
            // A half is not left by saying that nothing was done.
            Err(error) if matches!(came, Came::Half(_)) => Err(unclear(&error)),
            Err(error) => Err(error),
        }
    }

    /// What became of a change that was begun while the VM was stopped, as it is now.
    pub(super) async fn find_stopped(
        &self,
        intent: &Intent,
        place: &Place,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<FindOutcome, AdapterError> {
        // A qemu-img of a gateway before us may still be running: then this is refused, and asked again later.
        let vm = &intent.target.vm;
        let seen = self.look_stopped(vm, place, Guard::Exclusive, by).await?;
        let Some(trail) = before.and_then(|it| it.trail.as_ref()) else {
            return Ok(derive(intent, before.is_none(), &seen.disks));
        };
        let now = in_use::stamps(&place.images).await;
        let now = now.map_err(QemuError::of_read)?;
        let Some(trail) = trail.aligned(&now) else {
            return self.find_replaced(intent, place, trail, &seen.disks).await;
        };
        let tag = intent.target.backup.as_str();
        let has_changed = (0..now.len()).any(|number| trail.has_changed(number, &now));
        Ok(match intent.verb() {
            Verb::Create => match map::whole(&seen.disks, tag) {
                Some(map::Whole::Partial) if is_ours(&trail) => {
                    half_made(place, &seen.disks, &trail, &now, tag).await
                }
                None if has_changed => FindOutcome::VmChanged,
                None => FindOutcome::NotBegun,
                Some(_) => derive(intent, false, &seen.disks),
            },
            Verb::Delete => {
                let had = trail.parts.iter().flatten().count();
                match left_of(&seen.disks, &trail, tag).count() {
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
                    let came = self.came(intent, place, &trail, own).await?;
                    // Otherwise they are the only evidence, and go when the next change of this VM begins.
                    if came == Came::Through {
                        let within = self.left(by);
                        trail::tidy(&self.program, &place.images, &seen.disks, within).await;
                    }
                    match (may_go_on(&seen.disks, intent, &trail), came) {
                        (Err(error), Came::Nowhere) => FindOutcome::Failed(error.fault),
                        (Err(_), Came::Half(split)) => told(&Came::Used(split), false),
                        (Ok(()) | Err(_), came) => told(&came, false),
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
        place: &Place,
        trail: &Trail,
        disks: &[Disk],
    ) -> Result<FindOutcome, AdapterError> {
        let tag = intent.target.backup.as_str();
        Ok(match (intent.verb(), map::whole(disks, tag)) {
            (Verb::Restore, _) => match &trail.own {
                None => FindOutcome::VmChanged,
                Some(own) => told(&self.came(intent, place, trail, own).await?, false),
            },
            (Verb::Create, None) | (Verb::Delete, Some(map::Whole::Yes | map::Whole::Twice)) => {
                FindOutcome::VmChanged
            }
            (Verb::Create, Some(map::Whole::Partial)) => {
                FindOutcome::Failed(half_created(disks, tag))
            }
            (Verb::Create, Some(map::Whole::Yes | map::Whole::Twice)) => {
                derive(intent, false, disks)
            }
            (Verb::Delete, Some(map::Whole::Partial)) => {
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
        place: &Place,
        trail: &Trail,
    ) -> Result<FindOutcome, AdapterError> {
        let Some(own) = &trail.own else {
            return Ok(FindOutcome::VmChanged);
        };
        Ok(told(&self.came(intent, place, trail, own).await?, true))
    }

    /// How far the restore came. Images that are other files by now are never restored further.
    async fn came(
        &self,
        intent: &Intent,
        place: &Place,
        trail: &Trail,
        own: &str,
    ) -> Result<Came, AdapterError> {
        let tag = intent.target.backup.as_str();
        let came = trail::followed(own, &place.images, tag).await;
        let came = came.map_err(QemuError::of_read)?;
        let now = in_use::stamps(&place.images).await;
        let now = now.map_err(QemuError::of_read)?;
        Ok(match trail.aligned(&now) {
            Some(_same_files) => came,
            None => came.elsewhere(&place.images),
        })
    }
}

/// What is told of a restore that came so far.
fn told(came: &Came, runs: bool) -> FindOutcome {
    match came {
        Came::Through => FindOutcome::Done,
        Came::Nowhere if !runs => FindOutcome::NotBegun,
        Came::Nowhere => FindOutcome::VmChanged,
        Came::Used(split) if split.is_untouched() => FindOutcome::VmChanged,
        Came::Half(split) if !runs => FindOutcome::HalfDone(broken_off(&format!(
            "{}; the others were not restored. Restore the VM again before it is started.",
            split.summary()
        ))),
        Came::Half(split) | Came::Used(split) => FindOutcome::Failed(Fault::new(
            FaultKind::Conflict,
            format!(
                "{}, and the VM was used or an image replaced since: its disks are of two times. Stop the VM and restore it again.",
                split.summary()
            ),
        )),
        Came::Unclear => FindOutcome::Unknowable,
    }
}

/// The VM's disks are not what they were when the change was asked for.
pub(super) fn changed() -> AdapterError {
    AdapterError::refused(
        FaultKind::Conflict,
        "The VM was used or its images were replaced before the change began; nothing was changed. Ask again if it is still wanted.",
    )
}

/// Why the disks could not be marked: the same thing would have stopped the change itself.
fn unmarked(intent: &Intent, error: QemuError) -> Fault {
    let (vm, verb) = (intent.target.vm.as_str(), intent.verb().as_str());
    tracing::warn!(vm, verb, private = %error, "disks could not be marked");
    let fault = error.of_read().fault;
    Fault::new(fault.kind, format!("{} Nothing was changed.", fault.text))
}

/// An earlier call may have had an effect, which is to be looked for.
fn unclear(why: &impl std::fmt::Debug) -> AdapterError {
    AdapterError::uncertain(
        FaultKind::BackendFailed,
        "It is not known yet what became of the restore.",
    )
    .because(format!("{why:?}"))
}

/// Whether the backup is still the one that was there before, and every disk may be restored.
fn may_go_on(disks: &[Disk], intent: &Intent, trail: &Trail) -> Result<(), AdapterError> {
    check::may_restore(disks, intent)?;
    if trail::parts(disks, intent.target.backup.as_str()) == trail.parts {
        return Ok(());
    }
    Err(check::another())
}

fn labels<'a>(disks: impl Iterator<Item = &'a Disk>) -> String {
    let labels: Vec<String> = disks.map(|disk| disk.label.clone()).collect();
    check::listed(&labels)
}

fn half_created(disks: &[Disk], tag: &str) -> Fault {
    let with = labels(disks.iter().filter(|disk| disk.has(tag)));
    broken_off(&format!("The backup was made on {with} only; delete it."))
}

fn half_deleted(disks: &[Disk], tag: &str) -> Fault {
    let with = labels(disks.iter().filter(|disk| disk.has(tag)));
    broken_off(&format!("The backup is still on {with}; delete it again."))
}

/// A backup that is on some disks: it is made anew where no disk was used since, so that it is of the time it was asked for.
async fn half_made(
    place: &Place,
    disks: &[Disk],
    trail: &Trail,
    now: &[Stamp],
    tag: &str,
) -> FindOutcome {
    for (number, (disk, image)) in disks.iter().zip(&place.images).enumerate() {
        let is_used = if disk.has(tag) {
            !matches!(qcow2::kinship(image, tag).await, Ok(Kinship::Same))
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
fn restoring(
    intent: &Intent,
    place: &Place,
    guarded: &Guarded,
    trail: &Trail,
    images: &[PathBuf],
) -> Result<Option<Vec<Step>>, AdapterError> {
    let aligned = trail.aligned(&guarded.stamps).ok_or_else(changed)?;
    may_go_on(&guarded.disks, intent, &aligned)?;
    let tag = intent.target.backup.as_str();
    let mut planned = steps(Act::Apply, tag, images, place, guarded);
    let own = trail.own.as_deref().unwrap_or_default();
    let tidying = steps(Act::Delete, own, &place.images, place, guarded);
    planned.extend(tidying.into_iter().map(|step| Step { own: true, ..step }));
    Ok(Some(planned))
}

/// What is to be done to the images for a create or a delete, be it the first call or a later one.
fn plan(
    intent: &Intent,
    place: &Place,
    guarded: &Guarded,
    trail: Option<&Trail>,
) -> Result<Option<Vec<Step>>, AdapterError> {
    let tag = intent.target.backup.as_str();
    let disks = guarded.disks.as_slice();
    let aligned = match trail {
        Some(trail) => Some(trail.aligned(&guarded.stamps).ok_or_else(changed)?),
        None => None,
    };
    let trail = aligned.as_ref();
    let image = |number: usize| place.images.get(number).cloned();
    let steps = |act, images: &[PathBuf]| steps(act, tag, images, place, guarded);
    let planned = match intent.verb() {
        Verb::Create => {
            check::are_capable(disks)?;
            let mut planned = Vec::new();
            match map::whole(disks, tag) {
                None => {
                    let numbers = 0..guarded.stamps.len();
                    let mut each = numbers.map(|number| {
                        trail.is_some_and(|trail| trail.has_changed(number, &guarded.stamps))
                    });
                    if each.any(|has_changed| has_changed) {
                        return Err(changed());
                    }
                    if let Some(fault) = trail.and_then(|trail| trail.unmarked.clone()) {
                        return Err(AdapterError::refused(fault.kind, fault.text));
                    }
                }
                Some(map::Whole::Yes) => return Ok(None),
                // Its disks would be of two times: all of it is made anew.
                Some(map::Whole::Partial) if trail.is_some_and(is_ours) => {
                    let half: Vec<PathBuf> = with(disks, tag).filter_map(image).collect();
                    planned = steps(Act::Delete, &half);
                }
                Some(map::Whole::Partial | map::Whole::Twice) => return Err(check::half()),
            }
            planned.extend(steps(Act::Create, &place.images));
            planned
        }
        Verb::Delete => {
            let broken = trail.filter(|it| {
                it.parts.iter().any(Option::is_some) && it.parts != trail::parts(disks, tag)
            });
            let numbers: Vec<usize> = match broken {
                // An earlier call checked which backup is meant, and came half-way.
                Some(trail) => left_of(disks, trail, tag).collect(),
                None if check::is_there(disks, intent)? => with(disks, tag).collect(),
                None => return Err(check::none()),
            };
            if numbers.is_empty() {
                return Ok(None);
            }
            let images: Vec<PathBuf> = numbers.into_iter().filter_map(image).collect();
            steps(Act::Delete, &images)
        }
        Verb::Restore | Verb::Update => return Err(check::unsupported()),
    };
    Ok(Some(planned))
}

/// The same act for these images of the VM. Snapshots are applied by their number, which is exact.
fn steps(act: Act, tag: &str, images: &[PathBuf], place: &Place, guarded: &Guarded) -> Vec<Step> {
    let all = place.images.iter().zip(&guarded.disks).zip(&guarded.stamps);
    let wanted = all.filter(|((image, _), _)| images.contains(image));
    let each = wanted.flat_map(|((image, disk), stamp)| {
        let step = Step {
            act,
            name: match act {
                Act::Apply => disk.number(tag).unwrap_or_else(|| tag.to_owned()),
                Act::Create | Act::Delete => tag.to_owned(),
            },
            own: false,
            image: image.clone(),
            inode: stamp.inode,
        };
        // A tag that is on a disk twice is deleted as often.
        let times = match act {
            Act::Delete => disk.tagged(tag).count().max(1),
            Act::Apply | Act::Create => 1,
        };
        std::iter::repeat_n(step, times)
    });
    each.collect()
}

/// Whether no disk had the tag before: then a disk that has it now has it from this operation.
fn is_ours(trail: &Trail) -> bool {
    trail.parts.iter().all(Option::is_none)
}

/// The numbers of the disks that have the tag.
fn with<'a>(disks: &'a [Disk], tag: &'a str) -> impl Iterator<Item = usize> + 'a {
    let numbered = disks.iter().enumerate();
    numbered
        .filter(move |(_, disk)| disk.has(tag))
        .map(|(number, _)| number)
}

/// The numbers of the disks that still have what was there before.
fn left_of<'a>(
    disks: &'a [Disk],
    trail: &'a Trail,
    tag: &'a str,
) -> impl Iterator<Item = usize> + 'a {
    let both = disks.iter().zip(&trail.parts).enumerate();
    both.filter(move |(_, (disk, before))| before.is_some() && disk.part(tag) == **before)
        .map(|(number, _)| number)
}
