//! `[log]`.

use crate::schema::Choice;
use crate::schema::Flag;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::optional_text;

declare_table! { "log", false, "Logs and the audit trail.",
    FORMAT: Choice = "format", Choice { default: Some("auto"), allowed: &["auto", "text", "json"] }, Restart,
        "Format of log lines. `auto` is entries with fields where systemd connects standard error to the journal, and `text` elsewhere.";
    LEVEL: Text = "level", default_text("info", "`error`, `warn`, `info`, `debug`, `trace` or `off`; or a list with levels of parts, such as `snapgate=debug,warn`"), Restart,
        "The lowest level that is logged.";
    ACCESS: Flag = "access", Flag(true), Restart, "Whether every request is logged.";
    AUDIT: Text = "audit", optional_text("standard error", "path"), Restart,
        "The file that the audit trail is appended to.", Commented = "\"audit.log\"";
    AUDIT_REQUIRED: Flag = "audit_required", Flag(false), Restart,
        "Whether changes are refused (503 `AuditUnavailable`) while the audit trail cannot be written.";
}
