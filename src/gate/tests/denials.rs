//! Why credentials are refused: in the entry for the audit trail, and in no answer.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::gate::tests::bearer;
use crate::gate::tests::bearer::Keys;
use crate::gate::tests::bearer::claims;
use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::status;
use crate::gate::tests::tokens::basic;
use crate::gate::tests::tokens::token;
use crate::gate::*;
use crate::model::Action;
use crate::model::CertificateName;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::Timestamp;

/// What the trail says of a GET with this header, which is refused with this status.
async fn denied(rig: &Rig, authorization: &str, expected: u16) -> AuditEntry {
    let header = if authorization.is_empty() {
        String::new()
    } else {
        format!("\nAuthorization: {authorization}")
    };
    let found = rig
        .send(&format!("GET /vms/33333/backups/456\nv{header}"))
        .await;
    assert_eq!(status(&found), expected, "{authorization}");
    let body = String::from_utf8_lossy(found.response.body()).into_owned();
    let entry = *found.audit.expect("an entry for the trail");
    let reason = entry.denial.expect("a reason").as_str();
    let is_general = body.contains("The credentials are missing or invalid.");
    assert!(
        is_general || !body.contains(reason),
        "not for the client: {body}"
    );
    assert_eq!(entry.action, AuditAction::Read, "what was asked for");
    entry
}

fn said(entry: &AuditEntry) -> (&'static str, Option<&str>, Option<&str>) {
    (
        entry.denial.unwrap().as_str(),
        entry.claimed.as_ref().map(ClaimedName::as_str),
        entry.token.as_ref().map(|name| name.as_str()),
    )
}

#[tokio::test]
async fn a_json_web_token_is_refused_for_its_first_fault() {
    let keys = Keys::new();
    let rig = bearer::rig(&keys);
    let with = |name: &str, value: Value| {
        let mut changed = claims();
        changed[name] = value;
        changed
    };
    let head = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    let me = Some("corp:4711");
    let rows = [
        (
            "not_yet_valid",
            head("RS256", "rsa"),
            with("nbf", json!(900)),
            me,
        ),
        (
            "wrong_audience",
            head("RS256", "rsa"),
            with("aud", json!("other")),
            me,
        ),
        (
            "unknown_issuer",
            head("RS256", "rsa"),
            with("iss", json!("https://evil.example.com")),
            Some("4711"),
        ),
        ("wrong_algorithm", head("HS256", "rsa"), claims(), me),
        ("unknown_key", head("RS256", "new"), claims(), me),
        (
            "unusable_subject",
            head("RS256", "rsa"),
            with("sub", json!("")),
            Some("corp:"),
        ),
    ];
    for (reason, header, claims, claimed) in rows {
        let text = keys.sign("RS256", &header, &claims);
        let entry = denied(&rig, &format!("Bearer {text}"), 401).await;
        assert_eq!(said(&entry), (reason, claimed, None), "{header} {claims}");
    }
    let text = keys.sign("RS256", &head("RS256", "rsa"), &claims());
    let (signed, _) = text.rsplit_once('.').unwrap();
    let forged = format!("{signed}.AAAA");
    let entry = denied(&rig, &format!("Bearer {forged}"), 401).await;
    assert_eq!(
        said(&entry),
        ("bad_signature", me, None),
        "another signature"
    );
    let entry = denied(&rig, "Bearer a.b.c", 401).await;
    assert_eq!(said(&entry), ("malformed", None, None), "no token at all");
    rig.clock.advance(Duration::from_secs(660));
    let entry = denied(&rig, &format!("Bearer {text}"), 401).await;
    assert_eq!(said(&entry), ("expired", me, None), "over");
    let empty = bearer::rig_of(KeyRing::awaiting_fetch());
    let entry = denied(&empty, &format!("Bearer {text}"), 503).await;
    assert_eq!(said(&entry), ("no_keys", me, None), "it cannot be judged");
}

#[tokio::test]
async fn an_api_token_is_named_once_it_was_known() {
    let mut rig = Rig::new();
    let (revoked, revoked_token) = token(1, "ann", &Action::ALL, "*");
    let (brief, mut brief_token) = token(2, "ann", &Action::ALL, "*");
    let (unknown, _) = token(3, "ann", &Action::ALL, "*");
    brief_token.expires = Some(Timestamp::from_millis(1));
    rig.reload(|rig| rig.credentials.tokens = Some(vec![revoked_token, brief_token.clone()]));
    let bearer = |text: &str| format!("Bearer {text}");
    let entry = denied(&rig, &basic("reader", &revoked), 401).await;
    let expected = ("wrong_owner", Some("reader"), Some("t1"));
    assert_eq!(said(&entry), expected, "the token of another user");
    rig.reload(|rig| rig.credentials.tokens = Some(vec![brief_token]));
    let ann = Some("ann");
    let rows = [
        (bearer(&revoked), ("revoked", ann, Some("t1"))),
        (
            basic("token", &revoked),
            ("revoked", Some("token"), Some("t1")),
        ),
        (bearer(&brief), ("expired", ann, Some("t2"))),
        (bearer(&unknown), ("unknown_token", None, None)),
        (basic("ann", &unknown), ("unknown_token", ann, None)),
    ];
    for (authorization, expected) in rows {
        let entry = denied(&rig, &authorization, 401).await;
        assert_eq!(said(&entry), expected, "{authorization}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_named_by_its_first_name() {
    let mut rig = Rig::new();
    let name = |text: &str| CertificateName::new(text).unwrap();
    let principal = |text: &str| Principal {
        name: PrincipalName::new(text).unwrap(),
        groups: Vec::new(),
    };
    rig.reload(|rig| {
        rig.credentials.certificates = [
            (name("dns:one.example.com"), principal("ann")),
            (name("dns:two.example.com"), principal("reader")),
        ]
        .into();
    });
    let rows: [(&[&str], _, _); 3] = [
        (&[], "missing", None),
        (
            &["dns:other.example.com"],
            "unknown_certificate",
            Some("dns:other.example.com"),
        ),
        (
            &["dns:one.example.com", "dns:two.example.com"],
            "ambiguous_certificate",
            Some("dns:one.example.com"),
        ),
    ];
    for (names, reason, claimed) in rows {
        rig.certificate = names.iter().map(|text| name(text)).collect();
        let entry = denied(&rig, "", 401).await;
        assert_eq!(said(&entry), (reason, claimed, None), "{names:?}");
    }
}

#[tokio::test]
async fn who_is_locked_out_is_named_too() {
    let mut rig = Rig::new();
    rig.reload(|rig| rig.lockout.attempts = 1);
    rig.peer = Some("198.51.100.1".parse().unwrap());
    for expected in ["wrong_password", "wrong_password"] {
        let entry = denied(&rig, &basic("ann", "guess"), 401).await;
        assert_eq!(said(&entry), (expected, Some("ann"), None), "looked at");
    }
    let entry = denied(&rig, &basic("ann", "guess"), 429).await;
    assert_eq!(
        said(&entry),
        ("locked_out", Some("ann"), None),
        "not looked at"
    );
}
