//! The contract between one kind of VM manager and the configuration: its keys, their checks, and its factory.
//!
//! Each adapter implements [`AdapterKind`] for its `Config`, and `registry.rs` lists it. Nothing else names a kind.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::adapters::rights::RightsFuture;
use crate::adapters::rights::RightsQuestion;
use crate::adapters::survey::SurveyFn;
use crate::model::Pattern;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::schema::SecretSource;
use crate::schema::Section;
use crate::schema::Table;

/// One kind of VM manager, as its checked configuration.
///
/// Two configurations are equal when a gateway that runs with one needs no restart for the other.
pub(crate) trait AdapterKind: Clone + fmt::Debug + Eq + Sized {
    /// Its table in `[[backend]]`. The name of the table is the value of `kind`.
    const TABLE: Table;

    /// Writes the table of a new backend from what its VM manager says, for `snapgate init --from`; `None` where only an
    /// operator can write it.
    const SURVEY: Option<SurveyFn> = None;

    /// Reads its table. Every key is read before the first `return`, so that all errors are reported at once.
    ///
    /// `None` after an error was reported.
    fn read(section: &Section<'_>, context: &ReadContext<'_>) -> Option<Self>;

    /// Makes the adapter. Opens no connection: an unavailable VM manager must not keep the gateway from starting.
    ///
    /// # Errors
    /// When a file or value that was good when it was read can no longer be used.
    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Adapter>, BuildError>;

    /// Whether only one machine reaches the VM manager, so that another gateway cannot take over.
    fn is_local(&self) -> bool {
        false
    }

    /// The folders of this machine that the backend uses. No other backend may use them, and the gateway writes no files of
    /// its own there.
    fn folders(&self) -> Vec<BackendFolder<'_>> {
        Vec::new()
    }

    /// Compares the rights of the backend's credential with what callers may do, for `snapgate check --probe`. `None` where
    /// the VM manager does not say which rights a credential has.
    fn audit_rights<'a>(&'a self, question: &'a RightsQuestion<'a>) -> Option<RightsFuture<'a>> {
        let _ = question;
        None
    }

    /// What is allowed and probably not intended, one sentence each.
    fn warnings(&self, context: &WarningContext<'_>) -> Vec<String> {
        let _ = context;
        Vec::new()
    }
}

/// What a kind may need to read its table, besides the table.
pub(crate) struct ReadContext<'a> {
    /// Resolves `file:PATH` and `env:NAME`, and notes files that hold secrets.
    pub(crate) secrets: &'a SecretSource<'a>,
    /// The VMs of the backend.
    pub(crate) vms: &'a [Pattern],
    /// The versions of the specification that the gateway speaks.
    pub(crate) api_versions: &'a [String],
}

/// What an adapter is made from, besides its configuration.
pub(crate) struct BuildContext {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Tasks,
}

/// What a warning may depend on.
pub(crate) struct WarningContext<'a> {
    /// The API port of this gateway.
    pub(crate) listen: SocketAddr,
    /// The VMs of the backend.
    pub(crate) vms: &'a [Pattern],
    /// The environment variable `PATH`.
    pub(crate) program_path: &'a str,
}

/// Why an adapter could not be made.
pub(crate) type BuildError = Box<dyn std::error::Error + Send + Sync>;

/// A folder of this machine that a backend uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackendFolder<'a> {
    /// The key that names it.
    pub(crate) key: &'static str,
    pub(crate) path: &'a Path,
    /// Whether it has one folder for each VM, named by the id of the VM, with its disk images.
    pub(crate) has_vm_folders: bool,
}
