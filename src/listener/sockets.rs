//! The two listening sockets, bound before anything else starts or inherited from systemd.
//!
//! Socket activation: the inherited socket named `api` (`FileDescriptorName=` of the socket unit) is the API port, the one named
//! `admin` the admin port. Sockets with other names are assigned in order: the first to the API port, the second to the admin port.
//! An inherited socket overrides the configured address.
//!
//! Restarts: sockets that the gateway bound itself are handed to the service manager (`FDSTORE=1`, where the unit has
//! `FileDescriptorStoreMax=`), which passes them to the next process. Connections that arrive meanwhile wait in the kernel's
//! queue. A kept socket counts only for the address that the configuration still names. SIGUSR2 hands them to the program that
//! replaces the process in the same way, without a service manager.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::listener::Config;
use crate::runtime;

/// The names of sockets of socket units, which count whatever the configuration says.
const ACTIVATED_API: &str = "api";
const ACTIVATED_ADMIN: &str = "admin";
/// The names under which the service manager keeps the sockets that the gateway bound itself.
const KEPT_API: &str = "snapgate-api";
const KEPT_ADMIN: &str = "snapgate-admin";
/// How often and with which pauses a port is bound again while the service manager still closes the socket kept for it.
const REBIND_TRIES: u32 = 20;
const REBIND_PAUSE: Duration = Duration::from_millis(50);

/// Why the gateway cannot listen on a port: one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The configured address cannot be bound.
    #[error("cannot listen on {address}: {reason}")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The cause and the remedy.
        reason: String,
        /// The system error.
        source: io::Error,
    },
    /// An inherited socket cannot be used.
    #[error("cannot use inherited socket number {number}: {reason}")]
    Inherited {
        /// Counted from 1, in the order of the socket units.
        number: usize,
        /// The cause.
        reason: &'static str,
        /// The system error.
        source: Option<io::Error>,
    },
}

/// One listening, non-blocking socket.
pub struct Socket {
    listener: TcpListener,
    address: SocketAddr,
}

impl Socket {
    /// Binds the address; port 0 selects a free port.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub fn bind(address: SocketAddr) -> Result<Self, SocketError> {
        TcpListener::bind(address)
            .and_then(Self::from_listener)
            .map_err(|source| SocketError::Bind {
                address,
                reason: explain_bind_error(&source),
                source,
            })
    }

    /// The bound address, with the actual port if port 0 was requested.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The non-blocking socket.
    #[must_use]
    pub fn into_std(self) -> TcpListener {
        self.listener
    }

    fn from_listener(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.address)
    }
}

/// The sockets inherited from the service manager.
#[derive(Debug, Default)]
pub struct Inherited {
    api: Option<Socket>,
    admin: Option<Socket>,
    kept_api: Option<Socket>,
    kept_admin: Option<Socket>,
}

impl Inherited {
    /// No inherited sockets.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            api: None,
            admin: None,
            kept_api: None,
            kept_admin: None,
        }
    }

    /// Takes the sockets passed to this process by systemd, and removes the environment variables.
    ///
    /// Call once, before other threads run.
    ///
    /// # Errors
    /// [`SocketError::Inherited`] for anything but at most two listening TCP sockets.
    #[expect(
        clippy::disallowed_methods,
        reason = "socket activation passes environment variables"
    )]
    pub fn from_service_manager() -> Result<Self, SocketError> {
        let ours =
            std::env::var("LISTEN_PID").is_ok_and(|text| text.parse() == Ok(std::process::id()));
        if !ours {
            return Ok(Self::none());
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut fds = listenfd::ListenFd::from_env();
        let mut inherited = Vec::new();
        for index in 0..fds.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let refused = |reason, source| SocketError::Inherited {
                number: index.saturating_add(1),
                reason,
                source,
            };
            let listener = fds
                .take_tcp_listener(index)
                .map_err(|source| refused("it is not a TCP socket", Some(source)))?
                .ok_or_else(|| refused("it is no longer open", None))?;
            inherited.push((name, listener));
        }
        Self::assign(inherited)
    }

    /// The address of the inherited API port, if there is one.
    #[must_use]
    pub fn api(&self) -> Option<SocketAddr> {
        self.api.as_ref().map(Socket::address)
    }

    /// The address of the inherited admin port, if there is one.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Socket::address)
    }

    /// Assigns sockets to ports: by name, the others in order.
    fn assign(inherited: Vec<(String, TcpListener)>) -> Result<Self, SocketError> {
        let (kept, inherited): (Vec<_>, Vec<_>) = inherited
            .into_iter()
            .partition(|(name, _)| name == KEPT_API || name == KEPT_ADMIN);
        let mut waiting = Vec::new();
        for (number, (name, listener)) in (1..).zip(inherited) {
            let refused = |source| SocketError::Inherited {
                number,
                reason: "it does not listen",
                source,
            };
            let is_listening = rustix::net::sockopt::socket_acceptconn(&listener)
                .map_err(|errno| refused(Some(errno.into())))?;
            if !is_listening {
                return Err(refused(None));
            }
            let socket = Socket::from_listener(listener).map_err(|source| refused(Some(source)))?;
            waiting.push((number, name, socket));
        }
        let mut take = |port: &str| {
            let named = waiting.iter().position(|(_, name, _)| name == port);
            let position = named.or_else(|| {
                waiting
                    .iter()
                    .position(|(_, name, _)| name != ACTIVATED_API && name != ACTIVATED_ADMIN)
            })?;
            Some(waiting.remove(position).2)
        };
        let (api, admin) = (take(ACTIVATED_API), take(ACTIVATED_ADMIN));
        match waiting.first() {
            Some((number, _, _)) => Err(SocketError::Inherited {
                number: *number,
                reason: "the gateway has two ports, one api and one admin",
                source: None,
            }),
            None => Ok(Self {
                api,
                admin,
                kept_api: find_kept(&kept, KEPT_API),
                kept_admin: find_kept(&kept, KEPT_ADMIN),
            }),
        }
    }
}

/// Both listening sockets.
#[derive(Debug)]
pub struct Sockets {
    /// The API port.
    pub api: Socket,
    /// The admin port.
    pub admin: Socket,
    /// The names under which the next process finds them.
    names: [&'static str; 2],
}

impl Sockets {
    /// Uses inherited sockets and binds the others. Nothing is accepted yet; clients wait in the kernel's queue.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(config: &Config, inherited: Inherited) -> Result<Self, SocketError> {
        let (api, admin) = (inherited.api, inherited.admin);
        let name = |inherited: Option<&Socket>, activated, kept| match inherited {
            Some(_) => activated,
            None => kept,
        };
        Ok(Self {
            names: [
                name(api.as_ref(), ACTIVATED_API, KEPT_API),
                name(admin.as_ref(), ACTIVATED_ADMIN, KEPT_ADMIN),
            ],
            api: open_port(api, inherited.kept_api, KEPT_API, config.listen)?,
            admin: open_port(admin, inherited.kept_admin, KEPT_ADMIN, config.admin)?,
        })
    }

    /// Copies for the process after this one, by name. As long as they are open, connections wait in the kernel's queue.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn copy_for_successor(&self) -> io::Result<Vec<(&'static str, OwnedFd)>> {
        let sockets = self.names.into_iter().zip([&self.api, &self.admin]);
        sockets
            .map(|(name, socket)| Ok((name, socket.as_fd().try_clone_to_owned()?)))
            .collect()
    }
}

/// The socket of one port: from a socket unit, kept over a restart, or bound anew and then kept.
fn open_port(
    inherited: Option<Socket>,
    kept: Option<Socket>,
    name: &'static str,
    address: SocketAddr,
) -> Result<Socket, SocketError> {
    if let Some(kept) = kept {
        if inherited.is_none() && kept.address() == address {
            return Ok(kept);
        }
        // The configuration names another address now. As long as the service manager has the old socket open, clients that
        // connect to it would wait for a gateway that never accepts them.
        drop(kept);
        report_keeping(name, runtime::forget_socket(name));
        return match inherited {
            Some(socket) => Ok(socket),
            None => Ok(keep_bound(rebind(address)?, name)),
        };
    }
    match inherited {
        Some(socket) => Ok(socket),
        None => Ok(keep_bound(Socket::bind(address)?, name)),
    }
}

/// Binds a port that may still be held by a socket that the service manager is about to close.
#[expect(
    clippy::disallowed_methods,
    reason = "called at the start, before any task runs"
)]
fn rebind(address: SocketAddr) -> Result<Socket, SocketError> {
    for _ in 1..REBIND_TRIES {
        match Socket::bind(address) {
            Err(SocketError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                std::thread::sleep(REBIND_PAUSE);
            }
            bound => return bound,
        }
    }
    Socket::bind(address)
}

/// Hands a copy of a new socket to the service manager for the next process.
fn keep_bound(socket: Socket, name: &'static str) -> Socket {
    report_keeping(name, runtime::keep_socket(name, socket.as_fd()));
    socket
}

fn report_keeping(name: &'static str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(socket = name, %error, "service manager not reachable, the socket is not kept over a restart");
    }
}

/// The kept socket of that name, if it still listens.
fn find_kept(kept: &[(String, TcpListener)], name: &str) -> Option<Socket> {
    let (_, listener) = kept.iter().find(|(kept, _)| kept == name)?;
    let is_listening = rustix::net::sockopt::socket_acceptconn(listener).unwrap_or(false);
    let copy = listener.try_clone().ok().filter(|_| is_listening)?;
    Socket::from_listener(copy).ok()
}

/// The cause of a failed bind and its remedy.
fn explain_bind_error(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "address already in use; stop the program that uses it (`ss -ltnp` shows it) or choose another port".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "permission denied; ports below 1024 need the capability CAP_NET_BIND_SERVICE or socket activation".to_owned()
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "this machine has no such address; use 0.0.0.0 or [::] to listen on all addresses"
            .to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;
    use crate::listener::Limits;

    fn config(listen: SocketAddr) -> Config {
        Config {
            listen,
            admin: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            drain: Duration::from_secs(1),
            drain_notice: Duration::ZERO,
            limits: Limits::default(),
        }
    }

    fn listener() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    #[test]
    fn a_port_in_use_is_reported_in_one_sentence() {
        let (taken, _listener) = listener();
        let error = Sockets::bind(&config(taken), Inherited::none()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!(
                "cannot listen on {taken}: address already in use; "
            )),
            "{text}"
        );
        assert!(!text.contains('\n'), "one line: {text}");
    }

    #[test]
    fn an_address_of_another_machine_is_reported() {
        let error = Socket::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("no such address"),
            "says what is wrong: {error}"
        );
    }

    #[test]
    fn port_zero_selects_a_free_port() {
        let bound =
            Sockets::bind(&config("127.0.0.1:0".parse().unwrap()), Inherited::none()).unwrap();
        assert_ne!(bound.api.address().port(), 0, "the port is known");
        assert_ne!(
            bound.api.address(),
            bound.admin.address(),
            "two different ports"
        );
    }

    #[test]
    fn inherited_sockets_are_assigned_by_name_and_then_in_order() {
        let rows = [
            ("in order", ["", ""], [0, 1]),
            (
                "by unit name",
                ["snapgate.socket", "snapgate-admin.socket"],
                [0, 1],
            ),
            ("by name", ["admin", "api"], [1, 0]),
            ("one named", ["admin", "other"], [1, 0]),
        ];
        for (name, names, expected) in rows {
            let made = [listener(), listener()];
            let addresses = [made[0].0, made[1].0];
            let named = names.iter().zip(made);
            let named = named.map(|(name, (_, listener))| ((*name).to_owned(), listener));
            let inherited = Inherited::assign(named.collect()).unwrap();
            assert_eq!(inherited.api(), Some(addresses[expected[0]]), "{name}: api");
            assert_eq!(
                inherited.admin(),
                Some(addresses[expected[1]]),
                "{name}: admin"
            );
            let bound = Sockets::bind(&config("127.0.0.1:0".parse().unwrap()), inherited).unwrap();
            assert_eq!(bound.api.address(), addresses[expected[0]], "{name}: api");
            assert_eq!(
                bound.admin.address(),
                addresses[expected[1]],
                "{name}: admin"
            );
        }
    }

    #[test]
    fn a_third_inherited_socket_is_refused() {
        for names in [
            ["", "", ""],
            ["api", "api", "admin"],
            ["admin", "", "admin"],
        ] {
            let three = names.map(|name| (name.to_owned(), listener().1));
            let error = Inherited::assign(three.into()).unwrap_err();
            assert!(
                error.to_string().contains("two ports"),
                "{names:?}: {error}"
            );
        }
    }

    #[test]
    fn an_inherited_socket_that_does_not_listen_is_refused() {
        let (address, _listener) = listener();
        let connected = std::net::TcpStream::connect(address).unwrap();
        let socket = TcpListener::from(OwnedFd::from(connected));
        let error = Inherited::assign(vec![("api".to_owned(), socket)]).unwrap_err();
        assert!(error.to_string().contains("does not listen"), "{error}");
    }

    /// Does nothing unless the test below started it.
    #[test]
    fn activated_child() {
        let inherited = Inherited::from_service_manager().unwrap();
        if inherited.api().is_none() {
            return;
        }
        let bound = Sockets::bind(&config("127.0.0.1:0".parse().unwrap()), inherited).unwrap();
        panic!(
            "api={} admin={};",
            bound.api.address(),
            bound.admin.address()
        );
    }

    #[test]
    fn sockets_of_a_service_manager_are_used() {
        let (api, first) = listener();
        let (admin, second) = listener();
        // The shell makes the two sockets descriptors 3 and 4 and becomes the child, whose process id it knows.
        let script = "exec 3<&0 4<&1 1>&2 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=admin:api exec \"$0\" \"$@\"";
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "listener::sockets::tests::activated_child",
            ])
            .stdin(Stdio::from(OwnedFd::from(second)))
            .stdout(Stdio::from(OwnedFd::from(first)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains(&format!("api={api} admin={admin};")),
            "the child took both: {text}"
        );
    }
}
