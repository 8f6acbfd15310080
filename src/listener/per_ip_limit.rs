//! Limits the connections of each client address, so that one client cannot use up all connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::listener::handler::Handler;

/// The network part of an IPv6 address. One site can use any address of its network.
const SITE_BITS: u32 = 64;

/// Counts the connections of each client address. Holds at most as many addresses as there are connections.
#[derive(Debug)]
pub(super) struct PerIpLimit {
    connections_max: NonZeroUsize,
    handler: Arc<dyn Handler>,
    open: Mutex<BTreeMap<IpAddr, usize>>,
}

/// Counts one connection of an address until dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    limit: Arc<PerIpLimit>,
    client: IpAddr,
}

/// The address already has as many connections as allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyConnections;

impl PerIpLimit {
    /// A limit for each address that the handler does not report as shared; `None` for 0, which means no limit.
    pub(super) fn new(connections_max: usize, handler: Arc<dyn Handler>) -> Option<Arc<Self>> {
        let connections_max = NonZeroUsize::new(connections_max)?;
        Some(Arc::new(Self {
            connections_max,
            handler,
            open: Mutex::default(),
        }))
    }

    /// Counts one more connection of this address. Those of shared addresses count too, because a reload can change which
    /// addresses are shared.
    ///
    /// # Errors
    /// [`TooManyConnections`]; nothing is counted.
    pub(super) fn take_slot(
        self: &Arc<Self>,
        peer: IpAddr,
    ) -> Result<ConnectionSlot, TooManyConnections> {
        // Asked before the lock is taken, which is held for a moment only.
        let shared = self.handler.is_shared(peer);
        let client = limit_key(peer);
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= self.connections_max.get() && !shared {
            return Err(TooManyConnections);
        }
        *count = count.saturating_add(1);
        drop(open);
        Ok(ConnectionSlot {
            limit: Arc::clone(self),
            client,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// The address that stands for a client: its IPv4 address, or the network of its IPv6 address.
fn limit_key(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() >> SITE_BITS << SITE_BITS).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::Script;

    fn per_ip_limit(connections_max: usize) -> Arc<PerIpLimit> {
        PerIpLimit::new(connections_max, Arc::new(Script::default())).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_client_has_so_many_and_gets_them_back() {
        let per_ip_limit = per_ip_limit(2);
        let one = address("192.0.2.1");
        let first = per_ip_limit.take_slot(one).unwrap();
        let _second = per_ip_limit.take_slot(one).unwrap();
        assert_eq!(
            per_ip_limit.take_slot(one).err(),
            Some(TooManyConnections),
            "no third"
        );
        let _other = per_ip_limit.take_slot(address("192.0.2.2")).unwrap();
        drop(first);
        let _third = per_ip_limit.take_slot(one).unwrap();
        assert_eq!(
            per_ip_limit.take_slot(one).err(),
            Some(TooManyConnections),
            "again two"
        );
    }

    #[test]
    fn refused_connections_leave_nothing_behind() {
        let per_ip_limit = per_ip_limit(1);
        let one = address("192.0.2.1");
        let only = per_ip_limit.take_slot(one).unwrap();
        for _ in 0..100 {
            assert_eq!(
                per_ip_limit.take_slot(one).err(),
                Some(TooManyConnections),
                "one is there"
            );
        }
        drop(only);
        assert!(per_ip_limit.open.lock().is_empty(), "nothing is remembered");
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
            assert_eq!(limit_key(address(peer)), address(expected), "{name}");
        }
    }

    #[test]
    fn shared_addresses_have_any_number() {
        let per_ip_limit = per_ip_limit(1);
        // The one that the script knows to be shared.
        let proxy = address("127.0.0.1");
        let all: Vec<ConnectionSlot> = (0..10)
            .map(|_| per_ip_limit.take_slot(proxy).unwrap())
            .collect();
        assert_eq!(
            per_ip_limit.open.lock().get(&proxy),
            Some(&all.len()),
            "counted"
        );
    }

    #[test]
    fn none_counts_where_any_number_is_allowed() {
        let handler: Arc<dyn Handler> = Arc::new(Script::default());
        assert!(PerIpLimit::new(0, handler).is_none(), "no limit");
    }
}
