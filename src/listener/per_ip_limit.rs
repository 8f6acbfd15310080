//! How many connections each client has: no address may take all the places there are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::listener::handler::Handler;

/// The part of an IPv6 address that one site or machine gets, and chooses the rest of.
const SITE_BITS: u32 = 64;

/// The connections of each client address. Holds no more addresses than there are connections.
#[derive(Debug)]
pub(super) struct PerIpLimit {
    most: NonZeroUsize,
    handler: Arc<dyn Handler>,
    open: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One connection of an address, until dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    per_ip_limit: Arc<PerIpLimit>,
    client: IpAddr,
}

/// The address has as many connections as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyConnections;

impl PerIpLimit {
    /// So many connections for each address that the handler does not know to be shared; `None` for any number.
    pub(super) fn new(most: usize, handler: Arc<dyn Handler>) -> Option<Arc<Self>> {
        let most = NonZeroUsize::new(most)?;
        Some(Arc::new(Self {
            most,
            handler,
            open: Mutex::default(),
        }))
    }

    /// One more connection from this address. Connections of shared addresses count, too: what is shared changes with the
    /// configuration.
    ///
    /// # Errors
    /// [`TooManyConnections`]; nothing is counted then.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: IpAddr,
    ) -> Result<ConnectionSlot, TooManyConnections> {
        let shared = self.handler.is_shared(peer);
        let client = client(peer);
        let mut open = self.lock();
        let count = open.entry(client).or_default();
        if *count >= self.most.get() && !shared {
            return Err(TooManyConnections);
        }
        *count = count.saturating_add(1);
        drop(open);
        Ok(ConnectionSlot {
            per_ip_limit: Arc::clone(self),
            client,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        // A count is changed in one step: what another thread left is whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.per_ip_limit.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the network of an IPv6 address.
fn client(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(it) => Ipv6Addr::from_bits(it.to_bits() >> SITE_BITS << SITE_BITS).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::Script;

    fn per_ip_limit(most: usize) -> Arc<PerIpLimit> {
        PerIpLimit::new(most, Arc::new(Script::default())).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_client_has_so_many_and_gets_them_back() {
        let per_ip_limit = per_ip_limit(2);
        let one = address("192.0.2.1");
        let first = per_ip_limit.enter(one).unwrap();
        let _second = per_ip_limit.enter(one).unwrap();
        assert_eq!(
            per_ip_limit.enter(one).err(),
            Some(TooManyConnections),
            "no third"
        );
        let _other = per_ip_limit.enter(address("192.0.2.2")).unwrap();
        drop(first);
        let _third = per_ip_limit.enter(one).unwrap();
        assert_eq!(
            per_ip_limit.enter(one).err(),
            Some(TooManyConnections),
            "again two"
        );
    }

    #[test]
    fn refused_connections_leave_nothing_behind() {
        let per_ip_limit = per_ip_limit(1);
        let one = address("192.0.2.1");
        let only = per_ip_limit.enter(one).unwrap();
        for _ in 0..100 {
            assert_eq!(
                per_ip_limit.enter(one).err(),
                Some(TooManyConnections),
                "one is there"
            );
        }
        drop(only);
        assert!(per_ip_limit.lock().is_empty(), "nothing is remembered");
    }

    #[test]
    fn one_site_is_one_client() {
        let rows = [
            ("an IPv4 address", "192.0.2.1", "192.0.2.1"),
            ("the same in IPv6", "::ffff:192.0.2.1", "192.0.2.1"),
            ("a site", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("the same site", "2001:db8:1:2::9", "2001:db8:1:2::"),
            ("another", "2001:db8:1:3::9", "2001:db8:1:3::"),
        ];
        for (name, peer, expected) in rows {
            assert_eq!(client(address(peer)), address(expected), "{name}");
        }
    }

    #[test]
    fn shared_addresses_have_any_number() {
        let per_ip_limit = per_ip_limit(1);
        // The one that the script knows to be shared.
        let proxy = address("127.0.0.1");
        let all: Vec<ConnectionSlot> = (0..10)
            .map(|_| per_ip_limit.enter(proxy).unwrap())
            .collect();
        assert_eq!(per_ip_limit.lock().get(&proxy), Some(&all.len()), "counted");
    }

    #[test]
    fn none_counts_where_any_number_is_allowed() {
        let handler: Arc<dyn Handler> = Arc::new(Script::default());
        assert!(PerIpLimit::new(0, handler).is_none(), "no limit");
    }
}
