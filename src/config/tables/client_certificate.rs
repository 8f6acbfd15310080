//! `[[client_certificate]]`.

use crate::config::tables::NAME_FORM;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::required_text;

declare_table! { "client_certificate", true, "A caller that is authenticated by its client certificate, unless the request has other credentials.",
    NAMES: TextList = "names", TextList { default: None, form: "`dns:`, `email:`, `uri:` or `subject:` and the name" }, Reload,
        "Names in the certificate; one match is enough.", Commented = "[\"dns:ci.example.com\"]";
    USER: Text = "user", required_text(NAME_FORM), Reload,
        "The caller: one of `[[user]]`, or one that has certificates only.", Commented = "\"ci\"";
    GROUPS: TextList = "groups", TextList { default: Some(&[]), form: "names of groups" }, Reload,
        "The groups of the caller, besides those whose `members` name it.", Commented = "[\"ops\"]";
}
