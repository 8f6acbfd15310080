//! What the page of `server.page` needs of other settings.

use super::*;

#[test]
fn a_page_that_browsers_cannot_reach_is_warned_of() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("chain.pem"), made.cert.pem()).unwrap();
    fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let warned = |page: bool, clients: &str| {
        let (chain, key) = (path("chain.pem"), path("key.pem"));
        let text = format!(
            "[server]\npage = {page}\n[operations]\nstore = \"s\"\n[[certificate]]\nchain = \"{chain}\"\nkey = \"{key}\"\n\
             [tls]\nclient_certificates = \"{clients}\"\nclient_ca = \"{chain}\"\n"
        );
        let found = load_text(&text).unwrap_or_else(|error| panic!("{clients}: {error}"));
        crate::config::warnings(&found, Timestamp::default()).join("\n")
    };
    for (page, clients, expected) in [
        (true, "required", true),
        (true, "optional", false),
        (false, "required", false),
    ] {
        let found = warned(page, clients);
        let is_warned = found.contains("tls.client_certificates: \"required\" closes the page");
        assert_eq!(is_warned, expected, "page = {page}, {clients}: {found}");
    }
}
