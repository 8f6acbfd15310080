//! What the document says of the operations of the second edition: finding things, asking what is allowed, looking ahead.

use crate::gate::Code;
use crate::gate::negotiate;
use crate::gate::tests::openapi::operations::Answer;
use crate::gate::tests::openapi::operations::Body;
use crate::gate::tests::openapi::operations::Operation;
use crate::gate::tests::openapi::operations::READ;
use crate::gate::tests::openapi::operations::TAGGED;

pub(super) const SECOND_EDITION: &[Operation] = &[
    Operation {
        path: "/vms",
        id: "listVms",
        summary: "List the VMs",
        description: "The VMs that the caller may read, of all VM managers, in order of their ids. `complete` is false where a VM manager \
            did not answer in time.",
        tag: "vms",
        own: &["vmName", "limit", "cursor"],
        answer: Answer::Own(Body {
            description: "Some of the VMs; `Link` leads to more.",
            schema: "Vms",
            media: &[negotiate::VMS, negotiate::JSON],
            headers: &["ETag", "Link", "Cache-Control", "Vary"],
            examples: &["Vms"],
        }),
        refusals: &[Code::InvalidParameter],
        ..READ
    },
    Operation {
        path: "/vms/{vm}/capabilities",
        id: "readCapabilities",
        summary: "Read what the VM manager of a VM can do",
        description: "For each kind of operation: whether it is supported, can be cancelled, reports progress, how its outcome is \
            determined after a crash, and the options it takes.",
        tag: "vms",
        own: &["vm"],
        answer: Answer::Own(Body {
            description: "The capabilities.",
            schema: "Capabilities",
            media: &[negotiate::CAPABILITIES, negotiate::JSON],
            headers: TAGGED,
            examples: &["Capabilities"],
        }),
        ..READ
    },
    Operation {
        path: "/permissions",
        id: "listPermissions",
        summary: "Ask what the caller may do",
        description: "For the caller alone: whether each action is allowed on the VM and the backup, and if not, the code that a request \
            would be refused with. What the caller may not know of is answered like what does not exist.",
        tag: "gateway",
        versioned: false,
        own: &["vmAsked", "bAsked"],
        answer: Answer::Own(Body {
            description: "The actions.",
            schema: "Permissions",
            media: &[negotiate::PERMISSIONS, negotiate::JSON],
            headers: TAGGED,
            examples: &["Permissions"],
        }),
        refusals: &[
            Code::InvalidParameter,
            Code::MissingParameter,
            Code::NoSuchVm,
            Code::NoSuchBackup,
        ],
        ..READ
    },
    Operation {
        path: "/vms/{vm}/backups/{b}/plan",
        method: "POST",
        id: "planOperation",
        summary: "Plan a restore or a delete",
        description: "What the operation would do now, and what would refuse it. Nothing is changed. It needs the right to do what is \
            planned. Send the `fingerprint` as `If-Plan` with the operation to have it done only as planned.",
        own: &["vm", "b"],
        body: Some("PlanRequest"),
        answer: Answer::Own(Body {
            description: "The plan.",
            schema: "Plan",
            media: &[negotiate::PLAN, negotiate::JSON],
            headers: &["Cache-Control"],
            examples: &["Plan"],
        }),
        is_tagged: false,
        refusals: &[
            Code::NoSuchBackup,
            Code::MissingMember,
            Code::LengthRequired,
            Code::MalformedForm,
            Code::StoreUnavailable,
        ],
        ..READ
    },
    Operation {
        path: "/openapi.json",
        id: "readDocument",
        summary: "Read this document",
        description: "Needs no credentials.",
        tag: "gateway",
        credentials: false,
        versioned: false,
        answer: Answer::Own(Body {
            description: "The OpenAPI document.",
            schema: "Document",
            media: &[negotiate::JSON],
            headers: TAGGED,
            examples: &[],
        }),
        ..READ
    },
    Operation {
        path: "/",
        id: "readRoot",
        summary: "Read where to go",
        description: "A page for people with links to this document and the manual. Needs no credentials.",
        tag: "gateway",
        credentials: false,
        versioned: false,
        answer: Answer::Own(Body {
            description: "The page.",
            schema: "Page",
            media: &["text/html"],
            headers: TAGGED,
            examples: &[],
        }),
        ..READ
    },
];
