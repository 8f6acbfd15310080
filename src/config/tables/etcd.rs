//! `[etcd]`.

use std::time::Duration;

use crate::schema::TextList;
use crate::schema::declare_table;
use crate::schema::default_text;
use crate::schema::duration;
use crate::schema::optional_text;
use crate::schema::secret;

declare_table! { "etcd", false, "The etcd cluster that holds the operations. Only with `operations.store = \"etcd\"`.",
    ENDPOINTS: TextList = "endpoints", TextList { default: Some(&[]), form: "URLs of members such as `https://etcd1:2379`" }, Restart,
        "The client addresses of the members, all `https://` or all `http://`. Required with `operations.store = \"etcd\"`.";
    PREFIX: Text = "prefix", default_text("/snapgate", "`/` and a name"), Restart,
        "What all keys begin with. Gateways that share their operations have the same prefix; others on the same cluster have another one.";
    CA: Text = "ca", optional_text("those of the system", "path"), Restart,
        "The authorities (PEM) that signed the certificates of the members.", Commented = "\"etcd-ca.pem\"";
    CLIENT_CERT: Text = "client_cert", optional_text("none", "path"), Restart,
        "The certificate (PEM) by which the gateway is known to etcd, with those between it and an authority.", Commented = "\"etcd-client.pem\"";
    CLIENT_KEY: Text = "client_key", optional_text("none", "path"), Restart,
        "The key (PEM) of that certificate.", Commented = "\"etcd-client.key\"";
    USERNAME: Text = "username", optional_text("no user", "name"), Restart,
        "The user of etcd's own authentication.", Commented = "\"snapgate\"";
    PASSWORD: Text = "password", secret(optional_text("none", "`file:PATH` or `env:NAME`")), Restart,
        "The password of that user.", Commented = "\"file:etcd.password\"";
    LEASE: DurationValue = "lease", duration(Duration::from_secs(10), 2, 60), Restart,
        "How long after its last sign of life another gateway may take over.";
}
