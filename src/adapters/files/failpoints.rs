//! A hook before every change of the file system, by which tests stop the work after each of them.

use rustix::io::Errno;

/// Lets every change through; in tests it can fail one of them, or that one and all later ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Failpoints {
    #[cfg(test)]
    plan: std::sync::Arc<parking_lot::Mutex<test::Plan>>,
}

impl Failpoints {
    /// Called before a change is made.
    ///
    /// # Errors
    /// What the test wants to happen instead of the change.
    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        reason = "tests keep the plan of failures behind it"
    )]
    pub(super) const fn hit(&self, _what: &'static str) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod test {
    use super::*;

    /// What is to fail.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(in crate::adapters::files) enum FailMode {
        /// Nothing.
        #[default]
        Never,
        /// The step of that number and every later one, as after `kill -9`.
        DieAt(usize),
        /// The step of that number alone, with this error.
        FailAt(usize, Errno),
    }

    /// The plan and what was asked so far.
    #[derive(Debug, Default)]
    pub(in crate::adapters::files) struct Plan {
        mode: FailMode,
        taken: Vec<&'static str>,
    }

    impl Failpoints {
        pub(in crate::adapters::files) fn hit(&self, what: &'static str) -> Result<(), Errno> {
            let mut plan = self.plan.lock();
            let number = plan.taken.len();
            plan.taken.push(what);
            match plan.mode {
                FailMode::DieAt(at) if number >= at => Err(Errno::IO),
                FailMode::FailAt(at, errno) if number == at => Err(errno),
                FailMode::Never | FailMode::DieAt(_) | FailMode::FailAt(..) => Ok(()),
            }
        }

        /// Starts counting anew.
        pub(in crate::adapters::files) fn set(&self, mode: FailMode) {
            *self.plan.lock() = Plan {
                mode,
                taken: Vec::new(),
            };
        }

        /// The steps asked for since.
        pub(in crate::adapters::files) fn steps_hit(&self) -> Vec<&'static str> {
            self.plan.lock().taken.clone()
        }
    }
}
