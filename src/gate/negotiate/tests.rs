//! Tables for the choice of media types.

use http::HeaderValue;

use super::*;

/// Accept headers, reply, strict, and the type sent.
type Sent = (
    &'static [&'static str],
    Representation,
    bool,
    Result<&'static str, Code>,
);
/// Content types, entity, strict, and how the body is read.
type Taken = (
    &'static [&'static str],
    BodyEntity,
    bool,
    Result<Option<BodyEncoding>, Code>,
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
    use Representation::Backup;
    use Representation::Change;
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
        (
            &[BACKUP],
            Representation::Own(VM),
            false,
            Err(Code::NotAcceptable),
        ),
        (&[VM], Representation::Own(VM), true, Ok(VM)),
    ];
    for (values, reply, strict, expected) in rows {
        let found = choose_media_type(&headers(&ACCEPT, values), *reply, *strict)
            .map_err(|error| error.code());
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
            choose_error_type(headers(&ACCEPT, values).get_all(ACCEPT).iter()),
            *expected,
            "{values:?}"
        );
    }
}

#[test]
fn bodies_are_taken_by_their_type() {
    let json = Ok(Some(BodyEncoding::Json));
    let refused = Err(Code::UnsupportedMediaType);
    let rows: &[Taken] = &[
        (&[], BodyEntity::Backup, false, Ok(None)),
        (&[BACKUP], BodyEntity::Backup, true, json),
        (
            &["application/json; charset=UTF-8"],
            BodyEntity::Backup,
            false,
            json,
        ),
        (
            &["application/json; charset=\"utf-8\""],
            BodyEntity::Backup,
            false,
            json,
        ),
        (
            &["application/json; charset=latin1"],
            BodyEntity::Backup,
            false,
            refused,
        ),
        (&[BACKUP_SLIP], BodyEntity::Backup, false, json),
        (&[BACKUP_SLIP], BodyEntity::Backup, true, refused),
        (&[FORM], BodyEntity::Backup, false, refused),
        (
            &[FORM],
            BodyEntity::Pairs,
            false,
            Ok(Some(BodyEncoding::Form)),
        ),
        (&[BACKUP], BodyEntity::Pairs, false, json),
        (&["text/plain"], BodyEntity::Pairs, false, refused),
        (&[JSON, JSON], BodyEntity::Pairs, false, refused),
    ];
    for (values, entity, strict, expected) in rows {
        let found = body_encoding(&headers(&CONTENT_TYPE, values), *entity, *strict);
        let found = found.map_err(|error| error.code());
        assert_eq!(found, *expected, "{values:?} {entity:?} strict={strict}");
    }
}
