//! `[cluster]`.

use crate::config::tables::forms::NAME_FORM;
use crate::schema::declare_table;
use crate::schema::optional_text;

declare_table! { "cluster", false, "This gateway as a member of a cluster: one gateway is active, the others take over. Only with `operations.store = \"etcd\"`.",
    NAME: Text = "name", optional_text("a single gateway", NAME_FORM), Restart,
        "The name of this gateway, different for each gateway of the cluster. With it the gateway takes part in the election of the active one.", Commented = "\"gateway-1\"";
    LISTEN: Text = "listen", optional_text("requests are not handed on", "IP address and port"), Restart,
        "Where requests of the other gateways are taken. With it a gateway on standby hands requests of the API to the active one; without it, it refuses them.", Commented = "\"10.0.0.1:8443\"";
    ADVERTISE: Text = "advertise", optional_text("the value of `listen`", "host and port"), Restart,
        "How the other gateways reach `listen`. The certificate must be valid for the host.", Commented = "\"gateway-1.example.com:8443\"";
    CA: Text = "ca", optional_text("required with `listen`", "path"), Restart,
        "The authority (PEM) that signed the certificates of the gateways. Whoever has a certificate of it may act as any client: use an authority of the cluster's own.", Commented = "\"cluster-ca.pem\"";
    CERT: Text = "cert", optional_text("required with `listen`", "path"), Restart,
        "The certificate (PEM) of this gateway, for servers and clients, with those between it and the authority.", Commented = "\"gateway-1.pem\"";
    KEY: Text = "key", optional_text("required with `listen`", "path"), Restart,
        "The key (PEM) of that certificate.", Commented = "\"gateway-1.key\"";
}
