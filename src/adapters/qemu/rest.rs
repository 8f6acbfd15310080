//! Changes to a VM that was stopped when they were begun: begun, finished and found again. See `trail.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::port::AdapterError;
use crate::adapters::port::Begun;
use crate::adapters::port::Found;
use crate::adapters::qemu::Before;
use crate::adapters::qemu::Qemu;
use crate::adapters::qemu::broken_off;
use crate::adapters::qemu::config::Place;
use crate::adapters::qemu::derive;
use crate::adapters::qemu::error::QemuError;
use crate::adapters::qemu::image::Act;
use crate::adapters::qemu::image::Guard;
use crate::adapters::qemu::map;
use crate::adapters::qemu::map::Disk;
use crate::adapters::qemu::running;
use crate::adapters::qemu::stopped::Step;
use crate::adapters::qemu::stopped::Work;
use crate::adapters::qemu::trail;
use crate::adapters::qemu::trail::Came;
use crate::adapters::qemu::trail::Restored;
use crate::adapters::qemu::trail::Trail;
use crate::model::Deadline;
use crate::model::Fault;
use crate::model::FaultKind;
use crate::model::Intent;
use crate::model::Verb;

/// What a call comes to.
enum Plan {
    /// Nothing is left to do.
    Done,
    /// These steps, in this order.
    Steps(Vec<Step>),
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
        trail::tidy(&self.program, &place.images, &seen.disks, self.left(by)).await;
        // What may not begin is left alone, and refused when it is to begin.
        if intent.verb() == Verb::Restore && running::may_restore(&seen.disks, intent).is_ok() {
            match trail::mark(&self.program, &place.images, self.left(by)).await {
                Ok(made) => own = Some(made),
                Err(error) => tracing::warn!(private = %error, "disks not marked"),
            }
        }
        Ok(Trail { parts, own })
    }

    pub(super) async fn begin_stopped(
        &self,
        intent: &Intent,
        place: &Place,
        job: &str,
        before: Option<&Before>,
        by: Deadline,
    ) -> Result<Option<Begun>, AdapterError> {
        if self.works.state(job).is_some() {
            return Ok(None);
        }
        let tag = intent.target.backup.as_str();
        if tag.parse::<u64>().is_ok() {
            // qemu-img would take it for the number of a snapshot in one command and for its name in another.
            return Err(AdapterError::refused(
                FaultKind::Unsupported,
                "A backup whose id is a number can be used only while the VM runs.",
            ));
        }
        let trail = before.and_then(|it| it.trail.as_ref());
        let plan = if intent.verb() == Verb::Restore {
            self.plan_restore(intent, place, before, by).await?
        } else {
            // Without the guard a QEMU that has the images open would be overlooked.
            let vm = &intent.target.vm;
            let seen = self.look_stopped(vm, place, Guard::Exclusive, by).await?;
            plan(intent, place, &seen.disks, trail)?
        };
        let steps = match plan {
            Plan::Done => return Ok(Some(Begun::Done)),
            Plan::Steps(steps) => steps,
        };
        let work = Work {
            job: job.to_owned(),
            verb: intent.verb(),
            target: intent.target.clone(),
            steps,
        };
        let program = self.program.clone();
        let clock = Arc::clone(&self.clock);
        self.works
            .begin(work, program, self.config.image_timeout, clock, &self.tasks);
        Ok(None)
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
        let vm = &intent.target.vm;
        let trail = before.and_then(|it| it.trail.as_ref());
        let Some((trail, own)) = trail.and_then(|it| Some((it, it.own.as_deref()?))) else {
            let seen = self.look_stopped(vm, place, Guard::Exclusive, by).await?;
            running::may_restore(&seen.disks, intent)?;
            return Err(AdapterError::refused(
                FaultKind::Busy,
                "The images of the VM could not be marked for the restore; try again later.",
            ));
        };
        let came = followed(intent, place, own).await?;
        let images = match came {
            Came::Nowhere => place.images.clone(),
            Came::Half(ref left) => left.clone(),
            Came::Through | Came::Used(_) | Came::Unclear => {
                return match told(&came, false) {
                    Found::Done => Ok(Plan::Done),
                    Found::Failed(fault) => Err(AdapterError::refused(fault.kind, fault.text)),
                    other @ (Found::NotBegun
                    | Found::VmChanged
                    | Found::HalfDone(_)
                    | Found::Task(_)
                    | Found::NotYet
                    | Found::Unknowable) => Err(unclear(&other)),
                };
            }
        };
        // Without the guard a QEMU that has the images open would be overlooked.
        let checked = match self.look_stopped(vm, place, Guard::Exclusive, by).await {
            Ok(seen) => may_go_on(&seen.disks, intent, trail),
            Err(error) => Err(error),
        };
        match checked {
            Ok(()) => {
                let tidying = place.images.iter().map(|image| Step {
                    act: Act::Delete,
                    own: Some(own.to_owned()),
                    image: image.clone(),
                });
                let mut planned = steps(Act::Apply, images);
                planned.extend(tidying);
                Ok(Plan::Steps(planned))
            }
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
    ) -> Result<Found, AdapterError> {
        // A qemu-img of a gateway before us may still be at work: then this is refused, and asked again later.
        let vm = &intent.target.vm;
        let seen = self.look_stopped(vm, place, Guard::Exclusive, by).await?;
        let Some(trail) = before.and_then(|it| it.trail.as_ref()) else {
            return Ok(derive(intent, before.is_none(), &seen.disks));
        };
        let tag = intent.target.backup.as_str();
        Ok(match intent.verb() {
            Verb::Create => match map::whole(&seen.disks, tag) {
                Some(map::Whole::Partial) if is_ours(trail) => Found::HalfDone(broken_off(
                    "The backup was made on some disks only; delete it.",
                )),
                None => Found::NotBegun,
                Some(_) => derive(intent, false, &seen.disks),
            },
            Verb::Delete => {
                let had = trail.parts.iter().flatten().count();
                match left_of(&seen.disks, trail, tag).count() {
                    0 => Found::Done,
                    left if left == had => Found::NotBegun,
                    _ => Found::HalfDone(broken_off(
                        "The backup was deleted on some disks only; delete it again.",
                    )),
                }
            }
            Verb::Restore => match &trail.own {
                // It was never let begin.
                None => Found::NotBegun,
                Some(own) => {
                    let came = followed(intent, place, own).await?;
                    // Otherwise they are the only evidence, and go when the next change of this VM begins.
                    if came == Came::Through {
                        let within = self.left(by);
                        trail::tidy(&self.program, &place.images, &seen.disks, within).await;
                    }
                    match may_go_on(&seen.disks, intent, trail) {
                        Err(error) if came == Came::Nowhere => Found::Failed(error.fault),
                        Err(_) if matches!(came, Came::Half(_)) => {
                            told(&Came::Used(Restored::Some), false)
                        }
                        Ok(()) | Err(_) => told(&came, false),
                    }
                }
            },
            Verb::Update => Found::NotBegun,
        })
    }

    /// What became of a restore that was asked for while the VM was stopped, which runs now: it is left alone.
    pub(super) async fn find_started(
        &self,
        intent: &Intent,
        place: &Place,
        trail: &Trail,
    ) -> Result<Found, AdapterError> {
        let Some(own) = &trail.own else {
            return Ok(Found::NotBegun);
        };
        Ok(told(&followed(intent, place, own).await?, true))
    }
}

async fn followed(intent: &Intent, place: &Place, own: &str) -> Result<Came, AdapterError> {
    let tag = intent.target.backup.as_str();
    let came = trail::followed(own, &place.images, tag).await;
    came.map_err(QemuError::of_read)
}

/// What is told of a restore that came so far.
fn told(came: &Came, runs: bool) -> Found {
    let conflict = |text| Found::Failed(Fault::new(FaultKind::Conflict, text));
    match came {
        Came::Through => Found::Done,
        Came::Nowhere if !runs => Found::NotBegun,
        Came::Nowhere | Came::Used(Restored::None) => conflict(
            "The VM was started before it could be restored; nothing was changed. Ask again if it is still wanted.",
        ),
        Came::Half(_) if !runs => Found::HalfDone(broken_off(
            "Some disks were restored and others were not: restore the VM again before it is started.",
        )),
        Came::Half(_) | Came::Used(Restored::Some) => conflict(
            "The VM was used after some of its disks were restored and before the others were: its disks are of two times. Stop it and restore it again.",
        ),
        Came::Unclear => Found::Unknowable,
    }
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
    running::may_restore(disks, intent)?;
    if trail::parts(disks, intent.target.backup.as_str()) == trail.parts {
        return Ok(());
    }
    Err(AdapterError::refused(
        FaultKind::NoSuchBackup,
        "The VM has another backup under this id.",
    ))
}

/// What is to be done to the images for a create or a delete, be it the first call or a later one.
fn plan(
    intent: &Intent,
    place: &Place,
    disks: &[Disk],
    trail: Option<&Trail>,
) -> Result<Plan, AdapterError> {
    let tag = intent.target.backup.as_str();
    let image = |number: usize| place.images.get(number).cloned();
    match intent.verb() {
        Verb::Create => {
            running::check_disks(disks)?;
            let mut planned = Vec::new();
            match map::whole(disks, tag) {
                None => {}
                Some(map::Whole::Yes) => return Ok(Plan::Done),
                // Its disks would be of two times: all of it is made anew.
                Some(map::Whole::Partial) if trail.is_some_and(is_ours) => {
                    let half = with(disks, tag).filter_map(image);
                    planned = steps(Act::Delete, half.collect());
                }
                Some(map::Whole::Partial | map::Whole::Twice) => return Err(running::half()),
            }
            planned.extend(steps(Act::Create, place.images.clone()));
            Ok(Plan::Steps(planned))
        }
        Verb::Delete => {
            let broken = trail.filter(|it| {
                it.parts.iter().any(Option::is_some) && it.parts != trail::parts(disks, tag)
            });
            let numbers: Vec<usize> = match broken {
                // An earlier call checked which backup is meant, and came half-way.
                Some(trail) => left_of(disks, trail, tag).collect(),
                None if running::is_there(disks, intent)? => with(disks, tag).collect(),
                None => return Err(running::none()),
            };
            if numbers.is_empty() {
                return Ok(Plan::Done);
            }
            let images = numbers.into_iter().filter_map(image).collect();
            Ok(Plan::Steps(steps(Act::Delete, images)))
        }
        Verb::Restore | Verb::Update => Err(running::unsupported()),
    }
}

fn steps(act: Act, images: Vec<PathBuf>) -> Vec<Step> {
    let each = images.into_iter();
    each.map(|image| Step {
        act,
        own: None,
        image,
    })
    .collect()
}

/// Whether no disk had the tag before: then whoever has it now has it from this operation.
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
