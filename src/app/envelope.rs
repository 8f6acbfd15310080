//! What gateways of a cluster tell each other about a request, in one header field of the peer channel.
//!
//! The field counts on that channel alone, which only gateways with a certificate of the cluster reach. On the API port it means nothing,
//! and a gateway that hands a request on replaces what a client sent under its name.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Version;
use serde::Deserialize;
use serde::Serialize;

use crate::gate::RelayRequest;
use crate::gate::RelayedRequest;
use crate::model::CertificateName;
use crate::model::RequestId;

/// The field of a request.
pub(crate) const ENVELOPE: HeaderName = HeaderName::from_static("snapgate-relayed");
/// The field of an answer that says that the gateway is not the active one, and that it accepted nothing.
pub(crate) const NOT_ACTIVE: HeaderName = HeaderName::from_static("snapgate-not-active");
/// The path on the peer channel of a target that cannot stand there. What counts is in the envelope, to the letter.
pub(crate) const PATH: &str = "/relay";

/// What the active gateway cannot see itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The request target, any bytes.
    target: Vec<u8>,
    /// `10`, `11` or `20`.
    version: u8,
    peer: Option<IpAddr>,
    certificate: Vec<String>,
    request: String,
    trace: String,
}

/// The same, checked.
#[derive(Debug)]
pub(crate) struct OpenedEnvelope {
    pub(crate) target: Vec<u8>,
    pub(crate) version: Version,
    pub(crate) peer: Option<IpAddr>,
    pub(crate) certificate: Vec<CertificateName>,
    pub(crate) relayed: RelayedRequest,
}

impl Envelope {
    /// About a request that is handed on.
    pub(crate) fn of(request: &RelayRequest<'_>) -> Self {
        let certificate = request.certificate.iter();
        Self {
            target: request.target.to_vec(),
            version: match request.version {
                Version::HTTP_2 => 20,
                Version::HTTP_10 => 10,
                _ => 11,
            },
            peer: request.peer,
            certificate: certificate.map(|name| name.as_str().to_owned()).collect(),
            request: request.request.as_str().to_owned(),
            trace: request.trace.to_string(),
        }
    }

    /// As the value of the field.
    pub(crate) fn to_value(&self) -> Option<HeaderValue> {
        let text = serde_json::to_vec(self).ok()?;
        HeaderValue::from_str(&STANDARD_NO_PAD.encode(text)).ok()
    }

    /// From the one field of a request; `None` when it is missing or malformed.
    pub(crate) fn open(headers: &HeaderMap) -> Option<OpenedEnvelope> {
        let mut values = headers.get_all(ENVELOPE).iter();
        let (value, None) = (values.next()?, values.next()) else {
            return None;
        };
        let text = STANDARD_NO_PAD.decode(value.as_bytes()).ok()?;
        let envelope: Self = serde_json::from_slice(&text).ok()?;
        let names = envelope.certificate.iter();
        let names = names.map(|name| CertificateName::new(name).ok());
        Some(OpenedEnvelope {
            version: match envelope.version {
                10 => Version::HTTP_10,
                20 => Version::HTTP_2,
                _ => Version::HTTP_11,
            },
            peer: envelope.peer,
            certificate: names.collect::<Option<_>>()?,
            relayed: RelayedRequest {
                request: RequestId::new(&envelope.request).ok()?,
                trace: envelope.trace,
            },
            target: envelope.target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SpanId;
    use crate::model::TraceContext;
    use crate::model::TraceId;

    #[test]
    fn an_envelope_says_exactly_what_was_put_into_it() {
        let certificate = [CertificateName::new("subject:CN=\u{fc}ber").unwrap()];
        let trace = TraceContext::root(TraceId::from_bits(1), SpanId::from_bits(2), true);
        let request = RelayRequest {
            method: &http::Method::GET,
            target: b"/vms/%2e%2e/\xff?a=b",
            version: Version::HTTP_2,
            headers: &HeaderMap::new(),
            peer: Some([203, 0, 113, 9].into()),
            certificate: &certificate,
            request: &RequestId::new("r-1").unwrap(),
            trace,
            body: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(ENVELOPE, Envelope::of(&request).to_value().unwrap());
        let opened = Envelope::open(&headers).unwrap();
        assert_eq!(opened.target, request.target, "to the letter");
        assert_eq!(opened.version, request.version, "version");
        assert_eq!(opened.peer, request.peer, "address");
        assert_eq!(opened.certificate, certificate, "names");
        assert_eq!(opened.relayed.request, *request.request, "id");
        assert_eq!(opened.relayed.trace, trace.to_string(), "trace");
        headers.append(ENVELOPE, HeaderValue::from_static("e30"));
        assert!(Envelope::open(&headers).is_none(), "two are none");
        for malformed in ["", "e30", "x y", "bm8"] {
            headers.insert(ENVELOPE, HeaderValue::from_static(malformed));
            assert!(Envelope::open(&headers).is_none(), "{malformed:?}");
        }
    }
}
