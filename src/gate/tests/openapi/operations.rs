//! What the document says of each operation: the table of the first edition, and what follows from its columns.
//!
//! `finding.rs` has the rows of the second edition.

use crate::gate::Code;
use crate::gate::negotiate;
use crate::gate::tests::openapi::finding;

/// One method on one path.
pub(super) struct Operation {
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) tag: &'static str,
    /// Whether credentials are needed.
    pub(super) credentials: bool,
    /// Whether the specification version is needed.
    pub(super) versioned: bool,
    /// Names of parameters beside those that follow from the rest.
    pub(super) own: &'static [&'static str],
    /// Whether it changes something.
    pub(super) changes: bool,
    /// The name of the shared description of the body.
    pub(super) body: Option<&'static str>,
    /// The answer when all is well.
    pub(super) answer: Answer,
    /// Whether the answer has a tag that `If-None-Match` can name.
    pub(super) is_tagged: bool,
    /// Refusals beside those that follow from the rest.
    pub(super) refusals: &'static [Code],
}

/// What is sent when all is well.
pub(super) enum Answer {
    /// 202 with a Status, which all changes share.
    Accepted,
    /// 200 with a body of its own.
    Own(Body),
}

/// The body of a 200.
pub(super) struct Body {
    pub(super) description: &'static str,
    /// The name of the schema.
    pub(super) schema: &'static str,
    pub(super) media: &'static [&'static str],
    pub(super) headers: &'static [&'static str],
    /// Names of shared examples.
    pub(super) examples: &'static [&'static str],
}

/// Whether the lists have all filters, `sort`, `cursor` and `count`.
pub(super) const ALL_FILTERS: bool = true;

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
    Code::Standby,
    Code::ActiveGatewayLost,
    Code::KeysUnavailable,
    Code::LoginQueueFull,
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
        if self.method != "GET" {
            codes.push(Code::CrossSite);
        }
        if self.takes_plans() {
            codes.extend([Code::PlanStale, Code::InvalidParameter]);
        }
        if self.credentials {
            codes.extend(KNOWN);
        }
        if self.versioned {
            codes.push(Code::MissingSpecificationVersion);
        }
        if self.has_vm() {
            codes.extend(VM);
        }
        if self.has_vm() && self.changes {
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

    /// Whether `If-Plan` is looked at.
    fn takes_plans(&self) -> bool {
        PLANNED.contains(&self.id)
    }

    /// Whether it names one VM, in the path or in the query.
    fn has_vm(&self) -> bool {
        self.own.contains(&"vm") || self.own.contains(&"vmQuery")
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
        if self.has_vm() && self.changes {
            names.push("IdempotencyKey");
        }
        if self.is_conditional() {
            names.push("IfMatch");
        }
        if self.is_tagged {
            names.push("IfNoneMatch");
        }
        if self.takes_plans() {
            names.push("IfPlan");
        }
        names
    }
}

/// What can be planned.
const PLANNED: [&str; 2] = ["deleteBackup", "restoreBackup"];

/// What most reads have in common.
pub(super) const READ: Operation = Operation {
    path: "",
    method: "GET",
    id: "",
    summary: "",
    description: "",
    tag: "backups",
    credentials: true,
    versioned: true,
    own: &[],
    changes: false,
    body: None,
    answer: Answer::Accepted,
    is_tagged: true,
    refusals: &[],
};

const CHANGED: Operation = Operation {
    changes: true,
    is_tagged: false,
    ..READ
};

const CREATE: Operation = Operation {
    method: "POST",
    body: Some("NewBackup"),
    ..CHANGED
};

/// Headers of answers that can be asked for under a condition.
pub(super) const TAGGED: &[&str] = &["ETag", "Cache-Control", "Vary"];

/// What the document says of the method on the path.
pub(super) fn find(path: &str, method: &str) -> &'static Operation {
    let mut all = FIRST_EDITION.iter().chain(finding::SECOND_EDITION);
    all.find(|operation| operation.path == path && operation.method == method)
        .unwrap_or_else(|| panic!("say here what the document says of {method} on {path}"))
}

const FIRST_EDITION: &[Operation] = &[
    Operation {
        path: "/vms/{vm}/backups/{b}",
        id: "readBackup",
        summary: "Read a backup",
        description: "Its name, description, tags, type, state and size, with the links to restore it and to its VM.",
        own: &["vm", "b"],
        answer: Answer::Own(Body {
            description: "The backup.",
            schema: "Backup",
            media: &[negotiate::BACKUP, negotiate::JSON],
            headers: TAGGED,
            examples: &["Backup"],
        }),
        refusals: &[Code::NoSuchBackup],
        ..READ
    },
    Operation {
        path: "/vms/{vm}/backups/{b}",
        method: "PUT",
        id: "updateBackup",
        summary: "Change properties of a backup",
        description: "Members that are absent keep their value; `null` clears a member. The answer is usually held until the end, which \
            takes milliseconds.",
        own: &["vm", "b"],
        body: Some("BackupPatch"),
        refusals: &[
            Code::NoSuchBackup,
            Code::NothingToUpdate,
            Code::NameTaken,
            Code::LengthRequired,
        ],
        ..CHANGED
    },
    Operation {
        path: "/vms/{vm}/backups/{b}",
        method: "DELETE",
        id: "deleteBackup",
        summary: "Delete a backup",
        description: "A repeated DELETE joins the unfinished first one; after its end it is 404.",
        own: &["vm", "b"],
        refusals: &[Code::NoSuchBackup, Code::BackupProtected],
        ..CHANGED
    },
    Operation {
        path: "/vms/{vm}/backups/{b}/restore",
        method: "POST",
        id: "restoreBackup",
        summary: "Restore a VM from a backup",
        description: "Returns the VM to the state that the backup holds. What was written to it since is lost.",
        own: &["vm", "b"],
        body: Some("Restore"),
        refusals: &[Code::NoSuchBackup, Code::NotReady, Code::MalformedForm],
        ..CHANGED
    },
    Operation {
        path: "/vms/{vm}/backups",
        id: "listBackups",
        summary: "List the backups of a VM",
        description: "Those that the caller may see.",
        own: if ALL_FILTERS {
            &[
                "vm",
                "backupName",
                "tag",
                "backupState",
                "since",
                "beforeTime",
                "protected",
                "sort",
                "limit",
                "cursor",
                "count",
                "after",
            ]
        } else {
            &["vm", "limit", "after"]
        },
        answer: Answer::Own(Body {
            description: "Some of the backups; `Link` leads to more.",
            schema: "Backups",
            media: &[negotiate::BACKUPS, negotiate::JSON],
            headers: &["ETag", "Link", "Cache-Control", "Vary"],
            examples: &["Backups"],
        }),
        refusals: &[Code::InvalidParameter],
        ..READ
    },
    Operation {
        path: "/vms/{vm}/backups",
        id: "createBackup",
        summary: "Create a backup",
        description: "The id of the new backup is in `target_uri` of the Status.",
        own: &["vm"],
        refusals: &[Code::MissingMember, Code::NameTaken, Code::LengthRequired],
        ..CREATE
    },
    Operation {
        path: "/back_up",
        id: "backUpVm",
        summary: "Create a backup, at the path of the 2009 specification",
        description: "The same as `createBackup`, with the VM in the query.",
        own: &["vmQuery"],
        refusals: BACK_UP_REFUSALS,
        ..CREATE
    },
    Operation {
        path: "/back-up",
        id: "backUpVmHyphenated",
        summary: "Create a backup, at the other spelling of the 2009 specification",
        description: "The same as `backUpVm`.",
        own: &["vmQuery"],
        refusals: BACK_UP_REFUSALS,
        ..CREATE
    },
    Operation {
        path: "/vms/{vm}",
        id: "readVm",
        summary: "Read a VM",
        description: "Its name and run state, with the first page of its backups.",
        own: &["vm"],
        tag: "vms",
        answer: Answer::Own(Body {
            description: "The VM.",
            schema: "VM",
            media: &[negotiate::VM, negotiate::JSON],
            headers: TAGGED,
            examples: &["VM"],
        }),
        ..READ
    },
    Operation {
        path: "/statuses",
        id: "readStatuses",
        summary: "Read a Status, or list or follow Statuses",
        description: "With `seq`, or with `b` or `backup` for the newest that matches: one Status. Otherwise a list, newest first. With \
            `Accept: text/event-stream`: the changes of that Status until its end, or of all that the caller may see, where `op`, `vm` \
            and `principal` narrow them, as a stream of server-sent events, whose `data` is a Status and whose `id` is for `Last-Event-ID`.",
        tag: "statuses",
        versioned: false,
        own: if ALL_FILTERS {
            &[
                "seq",
                "op",
                "vmSelector",
                "bSelector",
                "operationState",
                "principal",
                "since",
                "before",
                "operationSort",
                "limit",
                "cursor",
                "count",
                "LastEventId",
            ]
        } else {
            &[
                "seq",
                "op",
                "vmSelector",
                "bSelector",
                "limit",
                "before",
                "LastEventId",
            ]
        },
        answer: Answer::Own(Body {
            description: "The Status, or a list of Statuses, or a stream of them.",
            schema: "StatusOrStatuses",
            media: &[negotiate::STATUS, negotiate::STATUSES, negotiate::JSON],
            headers: &["ETag", "Link", "Retry-After", "Cache-Control", "Vary"],
            examples: &["Status", "Statuses"],
        }),
        refusals: &[
            Code::NoSuchStatus,
            Code::InvalidParameter,
            Code::MalformedLastEventId,
            Code::AmbiguousStatus,
            Code::StoreUnavailable,
        ],
        ..READ
    },
    Operation {
        path: "/statuses",
        method: "DELETE",
        id: "cancelOperation",
        summary: "Cancel an operation",
        description: "Asks that the operation be stopped. The Status says what became of it: an operation may end before it can be stopped.",
        tag: "statuses",
        versioned: false,
        own: &["seqRequired", "op", "vmSelector"],
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
    Operation {
        path: "/versions",
        id: "readVersions",
        summary: "Read the versions",
        description: "The versions of specification and implementation.",
        ..VERSIONS
    },
    Operation {
        path: "/version",
        id: "readVersionsSingular",
        summary: "Read the versions, at the other spelling",
        description: "The same as `readVersions`.",
        ..VERSIONS
    },
];

const BACK_UP_REFUSALS: &[Code] = &[
    Code::MissingMember,
    Code::MissingParameter,
    Code::InvalidParameter,
    Code::NameTaken,
    Code::LengthRequired,
];

const VERSIONS: Operation = Operation {
    tag: "gateway",
    credentials: false,
    versioned: false,
    is_tagged: false,
    answer: Answer::Own(Body {
        description: "The versions.",
        schema: "Version",
        media: &[negotiate::VERSION, negotiate::JSON],
        headers: &["Cache-Control", "Vary"],
        examples: &["Version"],
    }),
    ..READ
};
