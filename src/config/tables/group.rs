//! `[[group]]`.

use crate::config::tables::NAME_FORM;
use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::required_text;

declare_table! { "group", true, "A set of users.",
    NAME: Text = "name", required_text(NAME_FORM), Reload, "The name of the group.", Shown = "\"ops\"";
    MEMBERS: TextList = "members", TextList { default: Some(&[]), form: "names of users" }, Reload, "Its members.", Shown = "[\"alice\"]";
}
