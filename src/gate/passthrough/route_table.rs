//! The pass-through routes of a configuration, and which of them matches a request.

use std::sync::Arc;

use http::header;

use crate::gate::passthrough::paths;
use crate::gate::passthrough::paths::NormalizedPath;
use crate::gate::passthrough::route::PassThroughRoute;
use crate::gate::refusal::Code;
use crate::gate::refusal::Refusal;
use crate::gate::request::RequestHead;
use crate::public_text;

/// The routes, in the order in which they are tried: those for a host first, the longer prefix first.
#[derive(Debug)]
pub(in crate::gate) struct PassThroughRoutes(Vec<Arc<PassThroughRoute>>);

impl PassThroughRoutes {
    pub(in crate::gate) fn new(routes: &[PassThroughRoute]) -> Self {
        let mut all: Vec<_> = routes.iter().cloned().map(Arc::new).collect();
        all.sort_by_key(|route| {
            let length = route.prefix.as_str().len();
            (route.hosts.is_empty(), std::cmp::Reverse(length))
        });
        Self(all)
    }

    /// Whether a route for hosts, one of which the request names, has this path: the page at `/ui/` is not for these hosts.
    pub(in crate::gate) fn is_path_of_host(&self, head: &RequestHead<'_>, path: &str) -> bool {
        let mut hosted = self.0.iter().filter(|route| !route.hosts.is_empty());
        hosted.any(|route| {
            route.prefix.remainder(path).is_some() && route.hosts.contains(&host_of(head))
        })
    }

    /// The route of a request with what is left of its path; `None` when the gateway answers itself.
    ///
    /// # Errors
    /// When the path is below a route and can be read in more than one way.
    pub(in crate::gate) fn find(
        &self,
        head: &RequestHead<'_>,
        path: &str,
    ) -> Result<Option<Arc<PassThroughRoute>>, Refusal> {
        if self.0.is_empty() || path == "*" {
            return Ok(None);
        }
        let Some(normalized) = NormalizedPath::from_path(path).filter(|path| !path.is_reserved())
        else {
            return Ok(None);
        };
        let is_by_host = self.0.iter().any(|route| !route.hosts.is_empty());
        let host = if is_by_host {
            host_of(head)
        } else {
            String::new()
        };
        let fits =
            |route: &&Arc<PassThroughRoute>| route.hosts.is_empty() || route.hosts.contains(&host);
        let mut candidates = self.0.iter().filter(fits);
        let found = candidates.find(|candidate| candidate.prefix.remainder(path).is_some());
        let mut again = self.0.iter().filter(fits);
        let other = again.find(|route| route.prefix.covers(&normalized));
        match (found, other) {
            (None, None) => Ok(None),
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) && paths::is_plain(path) => {
                Ok(Some(Arc::clone(one)))
            }
            (Some(_) | None, Some(_)) | (Some(_), None) => {
                let hint = public_text!(
                    "Send a path without empty or dot segments and without needless percent-encoding."
                );
                Err(Refusal::from(Code::MalformedTarget).hint(hint))
            }
        }
    }
}

/// The host that the client named, in lower case and without port.
fn host_of(head: &RequestHead<'_>) -> String {
    let named = head.headers.get(header::HOST);
    let named = named
        .and_then(|named| named.to_str().ok())
        .unwrap_or_default();
    let host = named.parse::<http::uri::Authority>().map_or_else(
        |_| String::new(),
        |authority| authority.host().to_ascii_lowercase(),
    );
    host.trim_end_matches('.').to_owned()
}
