//! Paths in every spelling.

use super::paths::*;

#[test]
fn no_spelling_of_our_own_paths_is_passed_on() {
    let rows = [
        "/vms",
        "/vms/",
        "/vms/1/capabilities",
        "/vms/1/backups/456",
        "/vms/1/backups",
        "/vms/1/backups/",
        "/vms/1/backups/456/restore",
        "/vms/1/backups/456/anything/else",
        "/vms/1",
        "/vms/1/",
        "/back_up",
        "/back-up",
        "/back_up/x",
        "/statuses",
        "/statuses/1",
        "/versions",
        "/version",
        // Empty and dot segments.
        "/vms/1//backups/456",
        "//vms/1/backups/456",
        "/vms//backups/456",
        "/vms///1///backups///456",
        "/x/../vms/1/backups/456",
        "/vms/./1/./backups/456",
        "/vms/1/x/../backups/456",
        "/vms/1/backups/x/../../backups/456",
        "/./back_up",
        "/x/..;/back_up",
        "/../../statuses",
        // Encoded letters, dots and slashes, once and more often.
        "/%76ms/1/backups/456",
        "/%76%6d%73/1/%62ackups/456",
        "/vms/1/%2e%2e/1/backups/456",
        "/x/%2e%2e/vms/1/backups/456",
        "/vms%2F1%2Fbackups%2F456",
        "/vms/1%2fbackups/456",
        "/%2e/statuses",
        "/%2576ms/1/backups/456",
        "/x/%252e%252e/vms/1/backups/456",
        "/%25%37%36ms/1/backups/456",
        "/x/..%2fvms/1/backups/456",
        "/x%2f..%2f..%2fback_up",
        "/back%5Fup",
        "/%73tatuses",
        "/statuses%3Bx",
        "/statuses%2f",
        // Backslashes, parameters, controls, spaces.
        "/vms\\1\\backups\\456",
        "/x/..\\vms/1/backups/456",
        "/vms/1%5Cbackups%5C456",
        "/vms;a=b/1;c/backups;d/456",
        "/back_up;jsessionid=1",
        "/vms/1/backups%00/456",
        "/vms/1/%00backups/456",
        "/vms%20/1/backups/456",
        "/vms./1/backups./456",
        "/%0avms/1/backups/456",
        // Letters that careless servers take for others.
        "/VMS/1/Backups/456",
        "/BACK_UP",
        "/Statuses",
        "/vm%C5%BF/1/bac%E2%84%AAups/456",
        "/%EF%BD%96ms/1/backups/456",
        "/vms%EF%BC%8F1%EF%BC%8Fbackups%EF%BC%8F456",
        "/vms%E2%88%951%E2%88%95backups",
        // No text at all, or no end to the decoding.
        "/%ff",
        "/vms/%c0%ae%c0%ae/x",
        "/%2525252525252525252576ms/1/backups/456",
    ];
    for path in rows {
        assert!(is_reserved(path), "{path}");
    }
}

#[test]
fn other_paths_are_not_ours() {
    let rows = [
        "/",
        "/permissions",
        "/openapi.json",
        "/vms/1/console",
        "/vms/1/snapshots/2",
        "/api/vms/1/backups/456",
        "/statuses2",
        "/backups",
        "/a/../b",
        "/storage/local/content/local%3Aiso%2Fdebian.iso",
    ];
    for path in rows {
        assert!(!is_reserved(path), "{path}");
    }
}

#[test]
fn plain_paths_read_the_same_to_everybody() {
    let rows = [
        ("/", true),
        ("/a/b", true),
        ("/a/b/", true),
        ("/a/b.html", true),
        ("/a/..b", true),
        ("/a/%C3%A9", true),
        ("/a/x%2Fy", true),
        ("/a/x%20y", true),
        ("/a/x%3Ay:z", true),
        ("/a/100%25", true),
        ("/a//b", false),
        ("//", false),
        ("/a/./b", false),
        ("/a/..", false),
        ("/a/b.", false),
        ("/a/%2e%2e/b", false),
        ("/a/..%2fb", false),
        ("/a/x%2F..%2Fy", false),
        ("/a/%2525", false),
        ("/a/%2541", false),
        ("/a/%61", false),
        ("/a/%7E", false),
        ("/a/%00", false),
        ("/a/%0d%0a", false),
        ("/a/b%5Cc", false),
        ("/a/b;c", false),
        ("/a/b%3Bc", false),
        ("/a/%ff", false),
        ("/a/b%20", false),
        ("*", false),
    ];
    for (path, expected) in rows {
        assert_eq!(is_plain(path), expected, "{path}");
    }
}

#[test]
fn prefixes_are_whole_segments_of_other_paths() {
    let rows = [
        ("/", "", Some("/x"), Some("/x")),
        ("/api", "/api", Some("/api/x"), Some("/x")),
        ("/api/", "/api", Some("/api"), Some("/")),
        ("/api", "/api", Some("/apix"), None),
        ("/api", "/api", Some("/API/x"), None),
        (
            "/vms/1/console",
            "/vms/1/console",
            Some("/vms/1/console/x"),
            Some("/x"),
        ),
    ];
    for (text, written, path, rest) in rows {
        let prefix = PathPrefix::new(text).unwrap();
        assert_eq!(prefix.as_str(), written, "{text}");
        assert_eq!(
            path.and_then(|path| prefix.remainder(path)),
            rest,
            "{text}: {path:?}"
        );
    }
    for text in [
        "",
        "api",
        "/a b",
        "/a?b",
        "/a%20",
        "/a/../b",
        "/a//b",
        "/vms/1",
        "/statuses",
        "/back_up/x",
        "/Versions",
        "/vms/1/backups",
        "/a;b",
        "/a*",
    ] {
        assert!(PathPrefix::new(text).is_err(), "{text:?}");
    }
}

#[test]
fn simple_paths_are_folded_as_others_are() {
    // The same path, once so plain that it takes the short way, once with a letter encoded.
    let rows = [
        ("/", "/%2f"),
        ("/a", "/%61"),
        ("/a/", "/%61/"),
        ("/a-1/b_2", "/%61-1/b_2"),
        ("/vms/1/backups/2", "/%76ms/1/backups/2"),
        ("/a//b", "/%61//b"),
        ("//a", "//%61"),
    ];
    for (simple, encoded) in rows {
        let (one, two) = (
            NormalizedPath::from_path(simple),
            NormalizedPath::from_path(encoded),
        );
        assert_eq!(one, two, "{simple} and {encoded}");
    }
}

#[test]
fn prefixes_that_were_possible_before_there_was_a_list_of_vms_still_are() {
    let rows = [
        ("/", true),
        ("/vms", true),
        ("/vms/", true),
        ("/vms/1/console", true),
        ("/vms/1/capabilities", true),
        ("/permissions", true),
        ("/openapi.json", true),
        ("/vms/1", false),
        ("/vms/1/backups", false),
        ("/statuses", false),
        ("/versions", false),
    ];
    for (prefix, expected) in rows {
        assert_eq!(PathPrefix::new(prefix).is_ok(), expected, "{prefix}");
    }
}
