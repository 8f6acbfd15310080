//! The parameters of the list of VMs.

use std::borrow::Cow;

use crate::gate::list_query::ListLink;
use crate::gate::list_query::ListParameters;
use crate::gate::list_query::malformed_cursor;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
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
    link: ListLink,
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
        let parameters = ListParameters::new(query, NAMES, strict)?;
        let name = parameters
            .text("name")?
            .map(NameFilter::parse)
            .transpose()?;
        let mut link = ListLink::new("/vms".to_owned());
        if let Some(filter) = &name {
            link.push("name", &filter.text);
        }
        Ok(Self {
            limit: parameters.limit()?,
            after: find_start(parameters, &link)?,
            name,
            link,
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
        self.link.next(self.limit, false, last.as_str().as_bytes())
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

/// The VM behind which the list begins, if it does not begin with the first one.
fn find_start(parameters: ListParameters<'_>, link: &ListLink) -> Result<Option<VmId>, Refusal> {
    let after = parameters.text("after")?;
    if after.is_some() && parameters.text("cursor")?.is_some() {
        let text =
            public_text!("A cursor has the place where the list goes on. Leave `after` out.");
        return Err(Refusal::says(Code::InvalidParameter, text).on("after"));
    }
    if let Some(after) = after {
        let after = VmId::new(&after);
        return after
            .map(Some)
            .map_err(|error| Refusal::invalid_text(Code::InvalidParameter, "after", &error));
    }
    let Some(position) = link.position(parameters)? else {
        return Ok(None);
    };
    let id = String::from_utf8(position).ok();
    let id = id.and_then(|id| VmId::new(&id).ok());
    id.map(Some).ok_or_else(malformed_cursor)
}
