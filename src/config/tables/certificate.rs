//! `[[certificate]]`.

use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::required_text;

declare_table! { "certificate", true, "One certificate of the API port, which enables TLS. The first one also serves clients that send no host name.",
    CHAIN: Text = "chain", required_text("path"), Reload,
        "The certificate (PEM), followed by its intermediate certificates.", Commented = "\"example.com.pem\"";
    KEY: Text = "key", required_text("path"), Reload,
        "Its private key (PEM), not encrypted.", Commented = "\"example.com.key\"";
    NAMES: TextList = "names", TextList { default: Some(&[]), form: "host names; `*.` stands for one label" }, Reload,
        "The hosts it is served for. None: the DNS names in the certificate.", Commented = "[\"example.com\", \"*.example.com\"]";
}
