//! `[[user]]`.

use crate::config::tables::forms::NAME_FORM;
use crate::config::tables::forms::SECRET_FORM;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::required_text;
use crate::schema::secret;

declare_table! { "user", true, "One caller.",
    NAME: Text = "name", required_text(NAME_FORM), Reload, "The user name.", Shown = "\"alice\"";
    PASSWORD_HASH: Text = "password_hash", secret(required_text(SECRET_FORM)), Reload,
        "The argon2id or bcrypt hash of the password, from `snapgate hash-password`.",
        Shown = "\"$argon2id$v=19$m=19456,t=2,p=1$mTcYaymFeOGztoo9sE3/Mg$4J3ASrvSgzVA8fSP877G2rQOtMbYM8Rh0DD6VwUcw/E\"";
    GROUPS: TextList = "groups", TextList { default: Some(&[]), form: "names of groups" }, Reload,
        "The groups of the user, besides those whose `members` name it.", Shown = "[\"ops\"]";
}
