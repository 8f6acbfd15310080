//! `[tracing]`.

use crate::schema::declare_table;
use crate::schema::optional_text;
use crate::schema::secret;

declare_table! { "tracing", false, "Export of distributed traces. Requests and operations are recorded only with `endpoint`.",
    ENDPOINT: Text = "endpoint", optional_text("no export", "`https://` URL, or `http://` of a loopback address"), Restart,
        "Where traces are sent: an OTLP/HTTP collector that takes JSON, for instance that of OpenTelemetry.", Commented = "\"http://127.0.0.1:4318/v1/traces\"";
    CA: Text = "ca", optional_text("those of the system", "path"), Restart,
        "The authorities (PEM) that signed the certificate of the collector.", Commented = "\"collector-ca.pem\"";
    AUTHORIZATION: Text = "authorization", secret(optional_text("none", "`file:PATH` or `env:NAME`")), Restart,
        "The `Authorization` that is sent to the collector, for instance `Bearer ...`.", Commented = "\"file:collector.authorization\"";
}
