//! `[authentication]`.

use crate::model::limits;
use crate::schema::declare_table;
use crate::schema::duration;
use crate::schema::optional_text;

declare_table! { "authentication", false, "How callers authenticate.",
    REMEMBER: DurationValue = "remember", duration(limits::CREDENTIALS_REMEMBERED, 0, 3600), Reload,
        "How long a verified password is remembered; 0s means never.";
    HTPASSWD: Text = "htpasswd", optional_text("none", "path"), Reload,
        "A file with more users, one `user:hash` per line.", Commented = "\"users.htpasswd\"";
    TOKENS: Text = "tokens", optional_text("no tokens", "path"), Reload,
        "The file of API tokens, which `snapgate token` creates and changes.", Commented = "\"tokens.json\"";
}
