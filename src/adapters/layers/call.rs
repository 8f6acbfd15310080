//! The calls of the port by name, and which of them may be repeated, limited or stopped by the breaker.

/// One method of the port that reaches the VM manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`crate::adapters::adapter::Adapter::health`]
    Health,
    /// [`crate::adapters::adapter::Adapter::read_vm`]
    Vm,
    /// [`crate::adapters::adapter::Adapter::list_vms`]
    Vms,
    /// [`crate::adapters::adapter::Adapter::list_backups`]
    List,
    /// [`crate::adapters::adapter::Adapter::read_backup`]
    Read,
    /// [`crate::adapters::adapter::Adapter::preview`]
    Preview,
    /// [`crate::adapters::adapter::Adapter::baseline`]
    Baseline,
    /// [`crate::adapters::adapter::Adapter::begin`]
    Begin,
    /// [`crate::adapters::adapter::Adapter::poll`]
    Poll,
    /// [`crate::adapters::adapter::Adapter::find_outcome`]
    Find,
    /// [`crate::adapters::adapter::Adapter::cancel`]
    Cancel,
}

impl Call {
    /// Every call.
    pub const ALL: [Self; 11] = [
        Self::Health,
        Self::Vm,
        Self::Vms,
        Self::List,
        Self::Read,
        Self::Preview,
        Self::Baseline,
        Self::Begin,
        Self::Poll,
        Self::Find,
        Self::Cancel,
    ];

    /// The word used in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Vm => "vm",
            Self::Vms => "vms",
            Self::List => "list",
            Self::Read => "read",
            Self::Preview => "preview",
            Self::Baseline => "baseline",
            Self::Begin => "begin",
            Self::Poll => "poll",
            Self::Find => "find",
            Self::Cancel => "cancel",
        }
    }

    /// Whether it has no effect, so that it may be repeated and a lost answer is no harm.
    #[must_use]
    pub const fn is_read(self) -> bool {
        match self {
            Self::Health
            | Self::Vm
            | Self::Vms
            | Self::List
            | Self::Read
            | Self::Preview
            | Self::Baseline
            | Self::Poll
            | Self::Find => true,
            Self::Begin | Self::Cancel => false,
        }
    }

    /// Whether callers cause it at will. The calls of operations are bounded by how many operations run, and must
    /// not wait behind callers.
    pub(super) const fn is_limited(self) -> bool {
        match self {
            Self::Vm | Self::Vms | Self::List | Self::Read | Self::Preview => true,
            Self::Health
            | Self::Baseline
            | Self::Begin
            | Self::Poll
            | Self::Find
            | Self::Cancel => false,
        }
    }

    /// Whether it is refused while the circuit breaker is open. What concerns an operation that may have begun
    /// is always made: it changes no outcome, and it shows that the backend is back.
    pub(super) const fn stops_at_breaker(self) -> bool {
        match self {
            Self::Health
            | Self::Vm
            | Self::Vms
            | Self::List
            | Self::Read
            | Self::Preview
            | Self::Baseline
            | Self::Begin => true,
            Self::Poll | Self::Find | Self::Cancel => false,
        }
    }
}
