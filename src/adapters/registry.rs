//! The kinds of VM manager: one line for each, at `register!` below.

use std::sync::Arc;

use crate::adapters::adapter::Adapter;
use crate::adapters::kind::AdapterKind;
use crate::adapters::kind::BackendFolder;
use crate::adapters::kind::BuildContext;
use crate::adapters::kind::BuildError;
use crate::adapters::kind::ReadContext;
use crate::adapters::kind::WarningContext;
use crate::adapters::rights::RightsFuture;
use crate::adapters::rights::RightsQuestion;
use crate::adapters::survey::SurveyFn;
use crate::schema::Section;
use crate::schema::Table;

/// One kind of VM manager.
pub(crate) struct RegisteredKind {
    /// Its table; the name of the table is the value of `kind`.
    pub(crate) table: Table,
    /// Reads the table; `None` after an error was reported.
    pub(crate) read: fn(&Section<'_>, &ReadContext<'_>) -> Option<BackendConfig>,
    /// Writes a new backend from what its VM manager says.
    pub(crate) survey: Option<SurveyFn>,
}

/// Generates everything that goes through all kinds. There is no fallback: what is not listed does not exist, and what is listed
/// without an implementation of `AdapterKind` does not compile.
macro_rules! register {
    ($($kind:ident($config:ty),)*) => {
        /// The configuration of one backend, of the kind that it has.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum BackendConfig {
            $(
                #[doc = concat!("Kind [`", stringify!($config), "`].")]
                $kind($config),
            )*
        }

        /// All kinds, in the order of the documentation.
        pub(crate) const KINDS: &[RegisteredKind] = &[$(
            RegisteredKind {
                table: <$config as AdapterKind>::TABLE,
                read: |section, context| {
                    <$config as AdapterKind>::read(section, context).map(BackendConfig::$kind)
                },
                survey: <$config as AdapterKind>::SURVEY,
            },
        )*];

        /// The tables of all kinds.
        pub(crate) const TABLES: &[Table] = &[$(<$config as AdapterKind>::TABLE),*];

        /// The values of `kind`.
        pub(crate) const NAMES: &[&str] = &[$(<$config as AdapterKind>::TABLE.name),*];

        impl BackendConfig {
            /// The value of `kind`, for instance `qemu`.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$config as AdapterKind>::TABLE.name,)*
                }
            }

            /// Makes the adapter.
            pub(crate) fn build(
                &self,
                context: &BuildContext,
            ) -> Result<Arc<dyn Adapter>, BuildError> {
                match self {
                    $(Self::$kind(config) => AdapterKind::build(config, context),)*
                }
            }

            /// Whether only one machine reaches the VM manager.
            pub(crate) fn is_local(&self) -> bool {
                match self {
                    $(Self::$kind(config) => AdapterKind::is_local(config),)*
                }
            }

            /// The folders of this machine that the backend uses.
            pub(crate) fn folders(&self) -> Vec<BackendFolder<'_>> {
                match self {
                    $(Self::$kind(config) => AdapterKind::folders(config),)*
                }
            }

            /// Compares the rights of the credential with what callers may do.
            pub(crate) fn audit_rights<'a>(
                &'a self,
                question: &'a RightsQuestion<'a>,
            ) -> Option<RightsFuture<'a>> {
                match self {
                    $(Self::$kind(config) => AdapterKind::audit_rights(config, question),)*
                }
            }

            /// What is allowed and probably not intended, one sentence each.
            pub(crate) fn warnings(&self, context: &WarningContext<'_>) -> Vec<String> {
                match self {
                    $(Self::$kind(config) => AdapterKind::warnings(config, context),)*
                }
            }
        }
    };
}
register! {
    CloudApi(crate::adapters::cloudapi::Config),
    Files(crate::adapters::files::Config),
    Incus(crate::adapters::incus::Config),
    Libvirt(crate::adapters::libvirt::Config),
    Proxmox(crate::adapters::proxmox::Config),
    Qemu(crate::adapters::qemu::Config),
    Sim(crate::adapters::sim::Config),
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Folders here that are not adapters.
    const SHARED: [&str; 2] = ["layers", "transport"];

    #[test]
    fn every_folder_with_an_adapter_is_registered() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/adapters");
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        let folders = entries.filter(|entry| entry.path().is_dir());
        let names = folders.map(|entry| entry.file_name().into_string().unwrap());
        let mut adapters: Vec<String> = names
            .filter(|name| !SHARED.contains(&name.as_str()))
            .collect();
        adapters.sort();
        assert_eq!(adapters, NAMES, "left: folders, right: kinds, in order");
    }
}
