//! `[[passthrough]]`: routes that cannot work.

use crate::config::tests::HASH;
use crate::config::tests::load_text;

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn routes_that_cannot_work_are_reported() {
    let base =
        "name = \"m\"\npath = \"/m\"\nupstreams = [\"http://h:1\"]\nallow = [\"user:ann\"]\n";
    let https = base.replace("http:", "https:");
    let keyed = |keys: &str| format!("{base}{keys}\n");
    let rows = [
        (
            base.replace("/m\"", "/statuses\""),
            "\"/statuses\" is a path of this API, which is never passed through",
        ),
        (
            base.replace("/m\"", "/vms/1/backups/2\""),
            "\"/vms/1/backups/2\" is a path of this API",
        ),
        (base.replace("/m\"", "m\""), "\"m\" does not begin with '/'"),
        (
            base.replace("/m\"", "/a/../b\""),
            "\"/a/../b\" has empty or dot segments",
        ),
        (base.replace("allow", "#"), "allow: is required"),
        (base.replace("ann", "eve"), "unknown user \"user:eve\""),
        (
            keyed("authentication = \"none\""),
            "allow: has no effect with authentication = \"none\"",
        ),
        (
            base.replace("h:1", "h:1/api"),
            "\"http://h:1/api\" is not an upstream address",
        ),
        (base.replace("h:1", "u:p@h:1"), "is not an upstream address"),
        (base.replace("h:1", "h:99999"), "is not an upstream address"),
        (
            base.replace("http:", "ftp:"),
            "\"ftp://h:1\" is not an upstream address",
        ),
        (
            base.replace("\"http://h:1\"", "\"http://h:1\", \"http://h:1\""),
            "duplicate upstream",
        ),
        (
            base.replace("\"http://h:1\"", "\"http://h:1\", \"https://i:1\""),
            "upstreams: mixes https and other schemes",
        ),
        (keyed("ca = \"ca.crt\""), "ca: has no effect without https"),
        (format!("{https}ca = \"ca.crt\""), "ca.crt: no such file"),
        (
            format!("{https}ca = \"c.toml\""),
            "c.toml: no PEM certificate found",
        ),
        (
            format!("{https}server_fingerprint = \"abc\""),
            "is not the SHA-256 of a certificate",
        ),
        (
            format!(
                "{https}server_fingerprint = \"{}\"\nclient_cert = \"c\"",
                "ab".repeat(32)
            ),
            "client_key: is required with client_cert",
        ),
        (
            keyed("authorization = \"Bearer hunter2\""),
            "authorization: contains the secret itself",
        ),
        (
            keyed("authorization = \"env:NONE\""),
            "environment variable NONE is not set",
        ),
        (
            keyed("authorization = \"file:c.toml\""),
            "is not a valid header field value",
        ),
        (
            keyed("methods = [\"CONNECT\"]"),
            "\"CONNECT\" cannot be passed through",
        ),
        (keyed("hosts = [\"h:1\"]"), "\"h:1\" is not a host name"),
        (keyed("health_path = \"x\""), "\"x\" is not a path"),
        (
            keyed("remove_headers = [\"a b\"]"),
            "\"a b\" is not a header field name",
        ),
        (
            keyed("remove_headers = [\"Content-Length\"]"),
            "\"Content-Length\" is written by the gateway itself",
        ),
        (
            keyed("keep_headers = [\"X-Forwarded-For\"]"),
            "\"X-Forwarded-For\" is written by the gateway itself",
        ),
        (
            keyed("keep_headers = [\"X-Original-URL\"]"),
            "\"X-Original-URL\" is never passed on",
        ),
        (
            keyed("keep_headers = [\"Accept\"]"),
            "\"Accept\" is passed on without this",
        ),
        (
            keyed("keep_headers = [\"Remote-User\"]\nremove_headers = [\"remote-user\"]"),
            "keep_headers: \"remote-user\" is also in remove_headers",
        ),
        (
            format!("{base}[[passthrough]]\n{base}"),
            "duplicate route \"m\"",
        ),
        (
            format!("{base}[[passthrough]]\n{}", base.replace("\"m\"", "\"n\"")),
            "path: also belongs to route \"m\"",
        ),
    ];
    let head = format!(
        "[operations]\nstore = \"s\"\n[[user]]\nname = \"ann\"\npassword_hash = \"{HASH}\"\n[[passthrough]]\n"
    );
    assert!(load_text(&format!("{head}{base}")).is_ok(), "this is right");
    for (text, expected) in rows {
        let found = load_text(&format!("{head}{text}")).unwrap_err();
        assert!(found.contains(expected), "{text}\n{found}");
        assert!(!found.contains("hunter2"), "no secret is shown: {found}");
    }
}

#[test]
fn routes_that_meet_the_page_are_warned_of() {
    let settings = |page: bool, path: &str, hosts: &str| {
        let text = format!(
            "[server]\npublic_url = \"http://127.0.0.1:8080\"\npage = {page}\n[operations]\nstore = \"s\"\n\
             [[passthrough]]\nname = \"m\"\npath = \"{path}\"\nhosts = [{hosts}]\nupstreams = [\"http://h:1\"]\nauthentication = \"none\"\n"
        );
        let found = load_text(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let warned = crate::config::warnings(&found, crate::model::Timestamp::default());
        warned.join("\n")
    };
    let wins = "the page of server.page gets the requests for /ui, and route m gets none of them";
    let loses = "on its hosts route m gets the requests for /ui, and the page of server.page is not served there";
    let shares = "route m has the origin of the page of server.page";
    let own = "\"127.0.0.1\"";
    let other = "\"console.example\"";
    // page, path, hosts, what is warned of
    let rows: [(bool, &str, &str, &[&str]); 8] = [
        (false, "/", "", &[]),
        (false, "/ui", "", &[]),
        (true, "/", "", &[wins, shares]),
        (true, "/ui/x", "", &[wins, shares]),
        (true, "/manager", "", &[shares]),
        (true, "/", other, &[loses]),
        (true, "/ui", own, &[loses, shares]),
        (true, "/manager", other, &[]),
    ];
    for (page, path, hosts, expected) in rows {
        let warned = settings(page, path, hosts);
        for text in [wins, loses, shares] {
            let is_expected = expected.contains(&text);
            assert_eq!(
                warned.contains(text),
                is_expected,
                "page = {page}, path = {path}, hosts = [{hosts}]: {text}: {warned}"
            );
        }
    }
}
