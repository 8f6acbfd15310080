//! What the document says of each operation.

use http::Method;

use crate::gate::Code;
use crate::gate::RouteSpec;
use crate::gate::negotiate;
use crate::gate::route::RouteKind;

/// One method on one route.
pub(super) struct Operation {
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) tag: &'static str,
    /// Whether credentials are needed.
    pub(super) credentials: bool,
    /// Whether the specification version is needed.
    versioned: bool,
    /// Names of parameters beside those that follow from the rest.
    own: &'static [&'static str],
    /// Whether it changes something.
    changes: bool,
    /// Schema and media types of the body, and whether there must be one.
    pub(super) body: Option<(&'static str, &'static [&'static str], bool)>,
    /// The answer when all is well.
    pub(super) status: u16,
    pub(super) answer: &'static str,
    pub(super) schema: &'static str,
    pub(super) media: &'static [&'static str],
    pub(super) headers: &'static [&'static str],
    /// Whether the answer has a tag that `If-None-Match` can name.
    pub(super) is_tagged: bool,
    /// Refusals beside those that follow from the rest.
    refusals: &'static [Code],
}

/// The codes of no operation here: what only a Status reports, other methods, and what is passed on.
pub(super) const ELSEWHERE: &[Code] = &[
    Code::NotExecuted,
    Code::OutcomeUnknown,
    Code::MethodNotAllowed,
    Code::BadGateway,
    Code::NoUpstream,
    Code::GatewayTimeout,
];

/// What can be wrong with every request.
const ANY: &[Code] = &[
    Code::MalformedRequest,
    Code::MalformedTarget,
    Code::MalformedHost,
    Code::MalformedAccept,
    Code::MalformedPrefer,
    Code::UnreadableBody,
    Code::BodyTooLarge,
    Code::BodyTooSlow,
    Code::TargetTooLong,
    Code::ExpectationFailed,
    Code::HeadersTooLarge,
    Code::NotAcceptable,
    Code::InternalError,
];

/// What can be wrong with who asks, and with the version.
const KNOWN: &[Code] = &[
    Code::Unauthenticated,
    Code::KeysUnavailable,
    Code::TooManyAttempts,
    Code::RateLimited,
    Code::TooManyAtOnce,
    Code::MalformedSpecificationVersion,
    Code::ConflictingSpecificationVersion,
    Code::UnsupportedSpecificationVersion,
];

/// What can be wrong with a VM and its manager.
const VM: &[Code] = &[
    Code::NoSuchRoute,
    Code::NoSuchVm,
    Code::NotPermitted,
    Code::InvalidRequest,
    Code::Unsupported,
    Code::BackendDenied,
    Code::BackendFailed,
    Code::Unavailable,
    Code::BackendTimeout,
    Code::DamagedBackup,
];

/// What can keep a change from being accepted.
const CHANGE: &[Code] = &[
    Code::MalformedIdempotencyKey,
    Code::IdempotencyKeyReused,
    Code::Busy,
    Code::Conflict,
    Code::Cancelled,
    Code::StoreUnavailable,
    Code::AuditUnavailable,
    Code::Stopping,
    Code::QueueFull,
    Code::StorageFull,
];

/// What can be wrong with a body.
const BODY: &[Code] = &[
    Code::MalformedJson,
    Code::InvalidMember,
    Code::UnknownMember,
    Code::UnsupportedMediaType,
    Code::PartialContent,
];

impl Operation {
    /// Every code it can be refused with.
    pub(super) fn codes(&self) -> Vec<Code> {
        let mut codes = ANY.to_vec();
        if self.credentials {
            codes.extend(KNOWN);
        }
        if self.versioned {
            codes.push(Code::MissingSpecificationVersion);
            codes.extend(VM);
        }
        if self.versioned && self.changes {
            codes.extend(CHANGE);
        }
        if self.body.is_some() {
            codes.extend(BODY);
        }
        if self.is_conditional() {
            codes.push(Code::PreconditionFailed);
        }
        codes.extend(self.refusals);
        codes
    }

    /// Whether `If-Match` is looked at.
    const fn is_conditional(&self) -> bool {
        self.is_tagged || self.changes
    }

    /// The names of its parameters.
    pub(super) fn parameters(&self) -> Vec<&'static str> {
        let mut names = self.own.to_vec();
        if self.versioned {
            names.push("SpecificationVersion");
        } else if self.credentials {
            names.push("OptionalSpecificationVersion");
        }
        if self.credentials {
            names.push("Prefer");
        }
        if self.versioned && self.changes {
            names.push("IdempotencyKey");
        }
        if self.is_conditional() {
            names.push("IfMatch");
        }
        if self.is_tagged {
            names.push("IfNoneMatch");
        }
        names
    }
}

const READ: Operation = Operation {
    id: "",
    summary: "",
    tag: "backups",
    credentials: true,
    versioned: true,
    own: &[],
    changes: false,
    body: None,
    status: 200,
    answer: "",
    schema: "",
    media: &[],
    headers: &["ETag", "Cache-Control", "Vary"],
    is_tagged: true,
    refusals: &[],
};

const CHANGED: Operation = Operation {
    changes: true,
    status: 202,
    answer: "Accepted and durable: the Status of the operation.",
    schema: "Status",
    media: &[negotiate::STATUS, negotiate::JSON],
    headers: &[
        "Location",
        "Content-Location",
        "Retry-After",
        "Cache-Control",
    ],
    is_tagged: false,
    ..READ
};

const CREATE: Operation = Operation {
    summary: "Makes a backup of the VM.",
    body: Some(("NewBackup", BACKUPS_TAKEN, true)),
    refusals: &[Code::MissingMember, Code::NameTaken, Code::LengthRequired],
    ..CHANGED
};

/// In the order of preference; the source's slip is taken too, and not described.
const BACKUPS_TAKEN: &[&str] = &[negotiate::BACKUP, negotiate::JSON];

/// What the document says of the method on the route.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn find(route: &RouteSpec, method: &str) -> Operation {
    let method: Method = method.parse().unwrap();
    match (route.kind, &method) {
        (RouteKind::Backup, &Method::GET) => Operation {
            id: "readBackup",
            summary: "One backup.",
            own: &["vm", "b"],
            answer: "The backup.",
            schema: "Backup",
            media: &[negotiate::BACKUP, negotiate::JSON],
            refusals: &[Code::NoSuchBackup],
            ..READ
        },
        (RouteKind::Backup, &Method::PUT) => Operation {
            id: "updateBackup",
            summary: "Changes the properties that are given; null clears.",
            own: &["vm", "b"],
            body: Some(("BackupPatch", BACKUPS_TAKEN, true)),
            refusals: &[
                Code::NoSuchBackup,
                Code::NothingToUpdate,
                Code::NameTaken,
                Code::LengthRequired,
            ],
            ..CHANGED
        },
        (RouteKind::Backup, &Method::DELETE) => Operation {
            id: "deleteBackup",
            summary: "Removes the backup.",
            own: &["vm", "b"],
            refusals: &[Code::NoSuchBackup, Code::BackupProtected],
            ..CHANGED
        },
        (RouteKind::Restore, _) => Operation {
            id: "restoreBackup",
            summary: "Puts the VM back to what the backup holds.",
            own: &["vm", "b"],
            body: Some(("Restore", &[negotiate::JSON], false)),
            refusals: &[Code::NoSuchBackup, Code::NotReady, Code::MalformedForm],
            ..CHANGED
        },
        (RouteKind::Plan, _) => Operation {
            id: "planBackup",
            summary: "What a restore or a delete would do. Nothing is changed.",
            own: &["vm", "b"],
            answer: "The plan.",
            schema: "Plan",
            media: &[negotiate::PLAN, negotiate::JSON],
            refusals: &[Code::NoSuchBackup],
            ..READ
        },
        (RouteKind::Backups, &Method::GET) => Operation {
            id: "listBackups",
            summary: "The backups of a VM that the caller may see, in order of their ids.",
            own: &["vm", "limit", "after"],
            answer: "Some of the backups; `Link` leads to more.",
            schema: "Backups",
            media: &[negotiate::BACKUPS, negotiate::JSON],
            headers: &["ETag", "Link", "Cache-Control", "Vary"],
            refusals: &[Code::InvalidParameter],
            ..READ
        },
        (RouteKind::Backups, _) => Operation {
            id: "createBackup",
            own: &["vm"],
            ..CREATE
        },
        (RouteKind::BackUp, _) => Operation {
            id: if route.template == "/back_up" {
                "backUp"
            } else {
                "backUpAsSpelledElsewhere"
            },
            own: &["vmQuery"],
            refusals: &[
                Code::MissingMember,
                Code::MissingParameter,
                Code::InvalidParameter,
                Code::NameTaken,
                Code::LengthRequired,
            ],
            ..CREATE
        },
        (RouteKind::Vm, _) => Operation {
            id: "readVm",
            summary: "One VM with some of its backups.",
            own: &["vm"],
            answer: "The VM.",
            schema: "VM",
            media: &[negotiate::VM, negotiate::JSON],
            ..READ
        },
        (RouteKind::Statuses, &Method::GET) => Operation {
            id: "readStatuses",
            summary: "One Status by `seq` or by `b`; with neither the caller's own, newest first.",
            tag: "statuses",
            versioned: false,
            own: &[
                "seq",
                "op",
                "vmSelector",
                "bSelector",
                "limit",
                "before",
                "LastEventId",
            ],
            answer: "The Status, or a list of Statuses. A Status also as a stream of server-sent events, for those who accept that.",
            schema: "StatusOrStatuses",
            media: &[negotiate::STATUS, negotiate::STATUSES, negotiate::JSON],
            headers: &["ETag", "Link", "Retry-After", "Cache-Control", "Vary"],
            refusals: &[
                Code::NoSuchStatus,
                Code::InvalidParameter,
                Code::MalformedLastEventId,
                Code::AmbiguousStatus,
                Code::StoreUnavailable,
            ],
            ..READ
        },
        (RouteKind::Statuses, _) => Operation {
            id: "cancelOperation",
            summary: "Asks that the operation be stopped.",
            tag: "statuses",
            versioned: false,
            own: &["seqRequired", "op", "vmSelector"],
            answer: "The cancellation request is durable: the Status of the operation.",
            refusals: &[
                Code::NoSuchStatus,
                Code::NotPermitted,
                Code::NotCancellable,
                Code::MissingParameter,
                Code::InvalidParameter,
                Code::AuditUnavailable,
                Code::StoreUnavailable,
            ],
            ..CHANGED
        },
        (RouteKind::Versions, _) => Operation {
            id: if route.template == "/versions" {
                "readVersions"
            } else {
                "readVersion"
            },
            summary: "The versions of specification and implementation.",
            tag: "versions",
            credentials: false,
            versioned: false,
            answer: "The versions.",
            schema: "Version",
            media: &[negotiate::VERSION, negotiate::JSON],
            headers: &["Cache-Control", "Vary"],
            is_tagged: false,
            ..READ
        },
        (kind, _) => panic!("say here what the document says of {method} on {kind:?}"),
    }
}
