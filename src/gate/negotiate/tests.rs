//! Tables for the choice of media types.

use http::HeaderValue;

use super::*;

/// Accept headers, reply, strict, and the type sent.
type Sent = (
    &'static [&'static str],
    Reply,
    bool,
    Result<&'static str, Code>,
);
/// Content types, entity, strict, and how the body is read.
type Taken = (
    &'static [&'static str],
    Entity,
    bool,
    Result<Option<Encoding>, Code>,
);

fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

#[test]
fn the_type_that_ranks_highest_is_sent() {
    use Reply::Backup;
    use Reply::Change;
    let rows: &[Sent] = &[
        (&[], Backup, false, Ok(BACKUP)),
        (&[""], Backup, false, Ok(BACKUP)),
        (&["*/*"], Backup, false, Ok(BACKUP)),
        (&["application/*"], Backup, false, Ok(BACKUP)),
        (
            &["text/html, application/xhtml+xml, */*;q=0.8"],
            Backup,
            false,
            Ok(BACKUP),
        ),
        (&[JSON], Backup, false, Ok(JSON)),
        (
            &["application/json, text/plain, */*"],
            Backup,
            false,
            Ok(JSON),
        ),
        (&["*/*, application/json;q=0.5"], Backup, false, Ok(BACKUP)),
        (
            &["APPLICATION/VND.COM.SUN.CLOUD.BACKUP+JSON"],
            Backup,
            false,
            Ok(BACKUP),
        ),
        (
            &["application/vnd.com.sun.cloud.Backup+json;v=\"a,b;c\";q=0.3"],
            Backup,
            false,
            Ok(BACKUP),
        ),
        (&["text/html", JSON], Backup, false, Ok(JSON)),
        (&[VM], Backup, false, Ok(BACKUP)),
        (&[VM], Backup, true, Err(Code::NotAcceptable)),
        (&["*/*;q=0"], Backup, false, Err(Code::NotAcceptable)),
        (
            &["application/json;q=0, application/*;q=0.1"],
            Backup,
            false,
            Ok(BACKUP),
        ),
        (&["text/html"], Backup, false, Err(Code::NotAcceptable)),
        (&[STATUS], Backup, false, Err(Code::NotAcceptable)),
        (&[BACKUP], Change, false, Ok(STATUS)),
        (&[BACKUP], Change, true, Err(Code::NotAcceptable)),
        (&[MESSAGES], Change, true, Ok(STATUS)),
        (
            &["application/xml"],
            Change,
            false,
            Err(Code::NotAcceptable),
        ),
        (
            &["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"],
            Backup,
            false,
            Ok(BACKUP),
        ),
        (
            &["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"],
            Change,
            true,
            Err(Code::MalformedAccept),
        ),
        (&["*"], Change, false, Ok(STATUS)),
        (&["*"], Change, true, Err(Code::MalformedAccept)),
        (&["*/*;q=.25"], Change, false, Ok(STATUS)),
        (&["*/*;q=.25"], Change, true, Err(Code::MalformedAccept)),
        (&["*;q=.0"], Change, false, Err(Code::NotAcceptable)),
        (&["*;q=0, application/json;q=.1"], Change, false, Ok(JSON)),
        (&["*/*;q=."], Change, false, Err(Code::MalformedAccept)),
        (&["*/*;q=.1234"], Change, false, Err(Code::MalformedAccept)),
        (&["*/*;q=.2.3"], Change, false, Err(Code::MalformedAccept)),
        (&["*x"], Change, false, Err(Code::MalformedAccept)),
        (&["text"], Change, false, Err(Code::MalformedAccept)),
        (&["json"], Change, false, Err(Code::MalformedAccept)),
        (&["*/json"], Change, false, Err(Code::MalformedAccept)),
        (&["a/b;q=1.5"], Change, false, Err(Code::MalformedAccept)),
        (&["a/b;q=0.1234"], Change, false, Err(Code::MalformedAccept)),
        (&["a/b;q"], Change, false, Err(Code::MalformedAccept)),
        (&["a b/c"], Change, false, Err(Code::MalformedAccept)),
        (&[BACKUP], Reply::Own(VM), false, Err(Code::NotAcceptable)),
        (&[VM], Reply::Own(VM), true, Ok(VM)),
    ];
    for (values, reply, strict, expected) in rows {
        let found =
            accept(&headers(&ACCEPT, values), *reply, *strict).map_err(|error| error.code());
        assert_eq!(found, *expected, "{values:?} {reply:?} strict={strict}");
    }
}

#[test]
fn errors_are_sent_in_one_of_two_types() {
    let rows: &[(&[&str], &str)] = &[
        (&[], MESSAGES),
        (&["text/html"], MESSAGES),
        (&["nonsense"], MESSAGES),
        (&[PROBLEM], PROBLEM),
        (&["application/problem+json, */*;q=0.1"], PROBLEM),
        (&["application/problem+json;q=0.1, */*"], MESSAGES),
        (&["*/*"], MESSAGES),
    ];
    for (values, expected) in rows {
        assert_eq!(
            error_type(headers(&ACCEPT, values).get_all(ACCEPT).iter()),
            *expected,
            "{values:?}"
        );
    }
}

#[test]
fn bodies_are_taken_by_their_type() {
    let json = Ok(Some(Encoding::Json));
    let refused = Err(Code::UnsupportedMediaType);
    let rows: &[Taken] = &[
        (&[], Entity::Backup, false, Ok(None)),
        (&[BACKUP], Entity::Backup, true, json),
        (
            &["application/json; charset=UTF-8"],
            Entity::Backup,
            false,
            json,
        ),
        (
            &["application/json; charset=\"utf-8\""],
            Entity::Backup,
            false,
            json,
        ),
        (
            &["application/json; charset=latin1"],
            Entity::Backup,
            false,
            refused,
        ),
        (&[BACKUP_SLIP], Entity::Backup, false, json),
        (&[BACKUP_SLIP], Entity::Backup, true, refused),
        (&[FORM], Entity::Backup, false, refused),
        (&[FORM], Entity::Pairs, false, Ok(Some(Encoding::Form))),
        (&[BACKUP], Entity::Pairs, false, json),
        (&["text/plain"], Entity::Pairs, false, refused),
        (&[JSON, JSON], Entity::Pairs, false, refused),
    ];
    for (values, entity, strict, expected) in rows {
        let found = content_type(&headers(&CONTENT_TYPE, values), *entity, *strict);
        let found = found.map_err(|error| error.code());
        assert_eq!(found, *expected, "{values:?} {entity:?} strict={strict}");
    }
}
