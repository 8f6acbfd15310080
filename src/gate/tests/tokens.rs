//! API tokens in the whole walk, and the promise that `explain` says what the walk does.

use std::time::Duration;

use http::Method;
use zeroize::Zeroizing;

use crate::gate::tests::rig::Rig;
use crate::gate::tests::rig::header;
use crate::gate::tests::rig::status;
use crate::gate::*;
use crate::model::Action;
use crate::model::Pattern;
use crate::model::Principal;
use crate::model::PrincipalName;
use crate::model::Timestamp;
use crate::model::TokenName;

/// A token and what the gate knows of it.
pub(super) fn token(number: u8, owner: &str, actions: &[Action], vms: &str) -> (String, ApiToken) {
    let text = new_token(&Zeroizing::new([number; 32])).reveal().to_owned();
    let pattern = |text: &str| vec![Pattern::new(text).unwrap()];
    let token = ApiToken {
        name: TokenName::new(&format!("t{number}")).unwrap(),
        owner: PrincipalName::new(owner).unwrap(),
        digest: TokenDigest::of(&text).unwrap(),
        expires: None,
        scope: Scope {
            actions: actions.iter().copied().collect(),
            vms: pattern(vms),
            backups: pattern("*"),
        },
    };
    (text, token)
}

pub(super) fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}")
}

#[tokio::test]
async fn a_token_does_what_its_owner_and_its_scope_allow_while_it_lives() {
    let mut rig = Rig::new();
    let (read, read_token) = token(1, "ann", &[Action::Read], "33333");
    let (lost, lost_token) = token(2, "gone", &Action::ALL, "*");
    let (brief, mut brief_token) = token(3, "ann", &Action::ALL, "*");
    brief_token.expires = Some(Timestamp::from_millis(65_000));
    let (unknown, _) = token(4, "ann", &Action::ALL, "*");
    let (humble, humble_token) = token(5, "reader", &Action::ALL, "*");
    let all = vec![read_token, lost_token, brief_token, humble_token];
    rig.reload(|rig| rig.credentials.tokens = Some(all.clone()));
    let bearer = |text: &str| format!("Bearer {text}");
    let rows = [
        ("in scope", bearer(&read), "GET", "33333", 200),
        ("as a password", basic("ann", &read), "GET", "33333", 200),
        ("as anybody's", basic("token", &read), "GET", "33333", 200),
        ("as another's", basic("reader", &read), "GET", "33333", 401),
        ("another action", bearer(&read), "DELETE", "33333", 403),
        ("another VM", bearer(&read), "GET", "333333", 404),
        ("no owner", bearer(&lost), "GET", "33333", 401),
        ("unknown", bearer(&unknown), "GET", "33333", 401),
        ("no token", bearer("sg_1"), "GET", "33333", 401),
        ("nothing", "Bearer".to_owned(), "GET", "33333", 401),
        ("owner may not", bearer(&humble), "DELETE", "33333", 403),
        ("not yet over", bearer(&brief), "GET", "33333", 200),
    ];
    for (name, authorization, method, vm, expected) in &rows {
        let request = format!("{method} /vms/{vm}/backups/456\nv\nAuthorization: {authorization}");
        let found = rig.send(&request).await;
        assert_eq!(status(&found), *expected, "{name}: {:?}", found.refusal);
    }
    let refused = rig.send("GET /vms/33333\nv").await;
    let offered = refused.response.headers().get_all("www-authenticate");
    let offered: Vec<&str> = offered
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    assert_eq!(offered.len(), 2, "both schemes: {offered:?}");
    assert!(offered[0].starts_with("Basic "), "the source's first");
    rig.clock.advance(Duration::from_secs(60));
    let late = format!("GET /vms/33333\nv\nAuthorization: Bearer {brief}");
    assert_eq!(status(&rig.send(&late).await), 401, "over");
    rig.reload(|rig| rig.credentials.tokens = Some(Vec::new()));
    let revoked = format!("GET /vms/33333\nv\nAuthorization: Bearer {read}");
    assert_eq!(status(&rig.send(&revoked).await), 401, "revoked");
    rig.reload(|rig| rig.credentials.tokens = None);
    let refused = rig.send("GET /vms/33333\nv").await;
    assert!(
        header(&refused, "www-authenticate").starts_with("Basic"),
        "only what is taken is offered"
    );
}

#[tokio::test]
async fn a_token_sees_its_owners_operations_within_its_scope() {
    let mut rig = Rig::new();
    let (one, one_token) = token(1, "ann", &[Action::Read, Action::Delete], "33333");
    let (two, two_token) = token(2, "ann", &[Action::Read, Action::Delete], "333333");
    rig.reload(|rig| rig.credentials.tokens = Some(vec![one_token.clone(), two_token.clone()]));
    let request = format!("DELETE /vms/33333/backups/456\nv\nAuthorization: Bearer {one}");
    let found = rig.send(&request).await;
    assert_eq!(status(&found), 202, "deleted");
    let audit = found.audit.as_ref().unwrap();
    let named = |value: &Option<PrincipalName>| value.as_ref().unwrap().to_string();
    assert_eq!(named(&audit.principal), "ann", "the owner is named");
    assert_eq!(audit.token, Some(one_token.name), "and the token");
    let uri = header(&found, "location");
    for (name, token, expected, listed) in [
        ("the token", &one, 200, 1),
        ("a token for another VM", &two, 404, 0),
    ] {
        let found = rig
            .send(&format!("GET {uri}\nAuthorization: Bearer {token}"))
            .await;
        assert_eq!(status(&found), expected, "{name}");
        let found = rig
            .send(&format!("GET /statuses\nAuthorization: Bearer {token}"))
            .await;
        let text = String::from_utf8_lossy(found.response.body()).into_owned();
        assert_eq!(text.matches("status_uri").count(), listed, "{name}: {text}");
    }
    let stop = format!("DELETE {uri}\nAuthorization: Bearer {two}");
    assert_eq!(status(&rig.send(&stop).await), 404, "not to be stopped");
}

#[tokio::test]
async fn explain_says_what_the_walk_does() {
    const DECIDED: [&str; 5] = [
        "NotPermitted",
        "NoSuchVm",
        "NoSuchBackup",
        "NoSuchRoute",
        "MethodNotAllowed",
    ];
    let mut rig = Rig::new();
    let (text, scoped) = token(1, "ann", &[Action::Read, Action::Protect], "33333");
    rig.reload(|rig| rig.credentials.tokens = Some(vec![scoped.clone()]));
    let callers = ["ann", "reader", "nobody", "shield", "t1"];
    let targets = [
        "/vms/33333/backups/456",
        "/vms/333333/backups/456",
        "/vms/other/backups/456",
        "/vms/33333/backups/456/restore",
        "/vms/33333/backups",
        "/vms/333333",
        "/back_up?vm=33333",
        "/statuses",
        "/versions",
        "/nowhere",
    ];
    let (mut allowed, mut denied) = (0, 0);
    for caller in callers {
        let is_token = caller == "t1";
        let name = if is_token { "ann" } else { caller };
        let who = AssumedCaller {
            principal: Principal {
                name: PrincipalName::new(name).unwrap(),
                groups: Vec::new(),
            },
            token: is_token.then_some(&scoped),
        };
        let authorization = if is_token {
            format!("Bearer {text}")
        } else {
            basic(name, "pw")
        };
        for target in targets {
            for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
                let explanation = explain(&rig.config, "c.toml", &who, &method, target);
                let request = format!("{method} {target}\nv\nAuthorization: {authorization}");
                let code = rig.send(&request).await.refusal;
                let code = code.filter(|code| DECIDED.contains(code));
                let last = explanation.lines.last().unwrap();
                match code {
                    Some(code) => assert!(
                        last.starts_with("denied: ")
                            && last.contains(code)
                            && !explanation.is_allowed,
                        "{caller} {method} {target}: {code}, explained {explanation}"
                    ),
                    None => assert!(
                        last == "allowed" && explanation.is_allowed,
                        "{caller} {method} {target}: let through, explained {explanation}"
                    ),
                }
                *(if explanation.is_allowed {
                    &mut allowed
                } else {
                    &mut denied
                }) += 1;
            }
        }
    }
    assert!(allowed > 20 && denied > 50, "both: {allowed}, {denied}");
}
