//! `[specification]`.

use crate::schema::Choice;
use crate::schema::TextList;
use crate::schema::declare_table;

declare_table! { "specification", false, "How versions of the specification are handled.",
    SUPPORTED: TextList = "supported", TextList { default: Some(&["0.1", "0.2", "0.8"]), form: "versions out of `0.1`, `0.2`, `0.8`" }, Reload,
        "The versions that are accepted.";
    ON_MISSING: Choice = "on_missing", Choice { default: Some("reject"), allowed: &["reject", "assume-current"] }, Reload,
        "A request without the version header: reject it, or assume the newest version.";
    PROFILE: Choice = "profile", Choice { default: Some("lenient"), allowed: &["lenient", "strict"] }, Reload,
        "Whether unknown members, and deviations that the specification's own examples have, are accepted.";
}
