//! `[[grant]]`.

use crate::config::tables::PATTERN_FORM;
use crate::schema::TextList;
use crate::schema::declare_table;

declare_table! { "grant", true, "Allows actions. Everything else is denied.",
    TO: TextList = "to", TextList { default: None, form: "`user:NAME` or `group:NAME`" }, Reload, "The callers it applies to.", Shown = "[\"user:alice\", \"group:ops\"]";
    ACTIONS: TextList = "actions", TextList { default: None, form: "`read`, `create`, `update`, `protect`, `delete`, `restore`, `observe`" }, Reload,
        "The actions it allows.", Shown = "[\"read\", \"create\", \"restore\"]";
    VMS: TextList = "vms", TextList { default: None, form: PATTERN_FORM }, Reload, "The VMs it applies to.", Shown = "[\"web*\"]";
    BACKUPS: TextList = "backups", TextList { default: Some(&["*"]), form: PATTERN_FORM }, Reload, "The backups of these VMs it applies to, by id.";
}
