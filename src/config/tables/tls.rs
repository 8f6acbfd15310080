//! `[tls]`.

use crate::schema::Choice;
use crate::schema::declare_table;
use crate::schema::optional_text;

declare_table! { "tls", false, "Client certificates. The first `[[certificate]]` enables TLS.",
    CLIENT_CERTIFICATES: Choice = "client_certificates", Choice { default: Some("off"), allowed: &["off", "optional", "required"] }, Reload,
        "Whether clients are asked for certificates; with `required`, a client without one gets no connection.";
    CLIENT_CA: Text = "client_ca", optional_text("required unless `off`", "path"), Reload,
        "The authorities (PEM) that sign client certificates.", Commented = "\"clients.pem\"";
    TICKET_KEYS: Text = "ticket_keys", optional_text("keys of this process", "path"), Reload,
        "Keys of session tickets that several gateways share: a file with one key of 64 hexadecimal digits per line. The first encrypts, all decrypt.", Commented = "\"ticket-keys.txt\"";
}
