//! The parameters of the list of VMs.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::gate::links;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request_target::page_limit;
use crate::gate::request_target::query_parameter;
use crate::model::VmId;
use crate::public_text;

const NAMES: &[&str] = &["name", "limit", "cursor", "after"];

/// Which VMs are wanted.
#[derive(Debug)]
pub(super) struct VmQuery {
    /// The name, or what it begins with.
    name: Option<NameFilter>,
    pub(super) limit: u16,
    /// Only VMs whose id sorts after this one.
    pub(super) after: Option<VmId>,
}

/// A name as asked for: exactly, or with one `*` at its end.
#[derive(Debug)]
struct NameFilter {
    text: String,
}

impl VmQuery {
    /// # Errors
    /// When a value is invalid; in the strict profile also when a parameter is unknown.
    pub(super) fn parse(query: &str, strict: bool) -> Result<Self, Refusal> {
        if strict {
            check_names(query)?;
        }
        let name = query_parameter(query, "name")?;
        let cursor = query_parameter(query, "cursor")?;
        let after = query_parameter(query, "after")?;
        let after =
            match (cursor, after) {
                (Some(cursor), None) => Some(decode_cursor(&cursor)?),
                (None, Some(after)) => Some(VmId::new(&after).map_err(|error| {
                    Refusal::invalid_text(Code::InvalidParameter, "after", &error)
                })?),
                (None, None) => None,
                (Some(_), Some(_)) => {
                    let text = public_text!(
                        "A cursor has the place where the list goes on. Leave `after` out."
                    );
                    return Err(Refusal::says(Code::InvalidParameter, text).on("after"));
                }
            };
        Ok(Self {
            name: name.map(NameFilter::parse).transpose()?,
            limit: page_limit(query)?,
            after,
        })
    }

    /// Whether a VM of this name is wanted.
    pub(super) fn fits_name(&self, name: &str) -> bool {
        let Some(filter) = &self.name else {
            return true;
        };
        match filter.text.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => filter.text == name,
        }
    }

    /// The value of `Link` that leads to what sorts after `last`, with the same filters.
    pub(super) fn next_link(&self, last: &VmId) -> String {
        let cursor = URL_SAFE_NO_PAD.encode(last.as_str());
        let mut next = format!("</vms?limit={}", self.limit);
        if let Some(filter) = &self.name {
            next.push_str("&name=");
            next.extend(links::encoded(&filter.text));
        }
        next.push_str("&cursor=");
        next.push_str(&cursor);
        next.push_str(">; rel=\"next\"");
        next
    }
}

impl NameFilter {
    fn parse(text: Cow<'_, str>) -> Result<Self, Refusal> {
        let stars = text.bytes().filter(|byte| *byte == b'*').count();
        if stars > 1 || (stars == 1 && !text.ends_with('*')) {
            let text = public_text!("One `*` is possible, at the end of the name.");
            return Err(Refusal::says(Code::InvalidParameter, text).on("name"));
        }
        Ok(Self {
            text: text.into_owned(),
        })
    }
}

fn decode_cursor(cursor: &str) -> Result<VmId, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| VmId::new(&text).ok()).ok_or_else(|| {
        let text = public_text!("The value is not a cursor of this list. Use the link of the page before, or start without a cursor.");
        Refusal::says(Code::InvalidParameter, text).on("cursor")
    })
}

fn check_names(query: &str) -> Result<(), Refusal> {
    let keys = query.split('&').filter(|pair| !pair.is_empty());
    let mut keys = keys.map(|pair| pair.split_once('=').map_or(pair, |(key, _)| key));
    match keys.find(|key| !NAMES.contains(key)) {
        None => Ok(()),
        Some(unknown) => {
            let text = public_text!(
                "The list has no such parameter. It takes name, limit, cursor and after."
            );
            let shown: String = unknown.chars().take(64).collect();
            Err(Refusal::says(Code::InvalidParameter, text).on(shown))
        }
    }
}
