//! Certificates made for tests, and what is refused of them.

use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::KeyPair;
use rcgen::SanType;

use super::*;
use crate::model::Secret;

/// A self-signed certificate with these DNS names.
pub(in crate::listener) fn certificate(names: &[&str]) -> Certificate {
    let (chain, key) = pem(names);
    Certificate::new(&chain, &Secret::new(key), &[]).unwrap()
}

/// Certificate and key as PEM.
pub(in crate::listener) fn pem(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let made = CertificateParams::new(names).unwrap().self_signed(&key);
    (made.unwrap().pem(), key.serialize_pem())
}

/// A client's certificate as DER, with every kind of name.
pub(super) fn client() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["CI.example.com".to_owned()]).unwrap();
    let text = |text: &str| text.try_into().unwrap();
    params
        .subject_alt_names
        .push(SanType::Rfc822Name(text("ci@Example.com")));
    params
        .subject_alt_names
        .push(SanType::URI(text("spiffe://lab/ci")));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Lab");
    params
        .distinguished_name
        .push(DnType::CommonName, "ci, \"the\" builder");
    params.self_signed(&key).unwrap().der().to_vec()
}

#[test]
fn unusable_certificates_are_refused_with_the_reason() {
    let (chain, key) = pem(&["a.example"]);
    let (_, other) = pem(&["b.example"]);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let rows: [(&str, &str, &str, &[&str], &str); 7] = [
        ("no certificate", "", &key, &[], "no PEM certificate found"),
        ("garbage", garbage, &key, &[], "cannot parse certificate"),
        ("no key", &chain, "", &[], "no usable PEM private key"),
        (
            "a certificate as key",
            &chain,
            &chain,
            &[],
            "no usable PEM private key",
        ),
        (
            "another key",
            &chain,
            &other,
            &[],
            "the private key does not match",
        ),
        (
            "no name",
            &chain,
            &key,
            &["a b"],
            "\"a b\" is not a host name",
        ),
        (
            "inner wildcard",
            &chain,
            &key,
            &["a.*.b"],
            "\"a.*.b\" is not a host name",
        ),
    ];
    for (name, chain, key, names, expected) in rows {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = Certificate::new(chain, &Secret::new(key.to_owned()), &names);
        let text = made.map_or_else(|error| error.to_string(), |_| "nothing".to_owned());
        assert!(text.starts_with(expected), "{name}: {text}");
    }
}

#[test]
fn authorities_for_client_certificates_are_checked() {
    let (authority, _) = pem(&["a.example"]);
    let tls = |clients| Tls::new(vec![certificate(&["a.example"])], clients);
    assert!(tls(ClientCertificates::Required(authority)).is_ok(), "one");
    let none = tls(ClientCertificates::Optional(String::new())).unwrap_err();
    assert_eq!(none.to_string(), "no PEM certificate found");
}
