//! `[tls]`.

use crate::schema::Choice;
use crate::schema::declare_table;
use crate::schema::optional_text;

declare_table! { "tls", false, "Client certificates. The first `[[certificate]]` enables TLS.",
    CLIENT_CERTIFICATES: Choice = "client_certificates", Choice { default: Some("off"), allowed: &["off", "optional", "required"] }, Reload,
        "Whether clients are asked for certificates; with `required`, a client without one gets no connection.";
    CLIENT_CA: Text = "client_ca", optional_text("required unless `off`", "path"), Reload,
        "The authorities (PEM) that sign client certificates.", Commented = "\"clients.pem\"";
}
