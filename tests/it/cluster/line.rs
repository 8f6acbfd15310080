//! The line between one gateway and etcd, as a process of its own: while that process is stopped, everything sent on the line is lost to
//! sight, and neither end notices, as when a network is cut.

use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::harness::eventually;
use crate::ports::free_port;

/// Set in the process that is to be a line: `PORT=MEMBER`, with commas between.
const TO_BE_ONE: &str = "SNAPGATE_TEST_LINE";

/// A line that works until it is cut.
#[derive(Debug)]
pub(crate) struct Line {
    process: Child,
    /// Where the gateway finds the members.
    ports: Vec<u16>,
}

/// Passes connections on until standard input ends, if this process is to be a line. Says whether it was.
fn run_if_requested() -> bool {
    let Ok(ends) = std::env::var(TO_BE_ONE) else {
        return false;
    };
    for end in ends.split(',') {
        let (port, member) = end.split_once('=').unwrap();
        let port: u16 = port.parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let member = member.to_owned();
        std::thread::spawn(move || pass_on(&listener, &member));
    }
    // The process that started it holds the other end.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    true
}

fn pass_on(listener: &TcpListener, member: &str) {
    for client in listener.incoming() {
        let client = client.unwrap();
        // A member that is down refuses, and so does the line.
        let Ok(server) = TcpStream::connect(member) else {
            continue;
        };
        let ends = [
            (client.try_clone(), server.try_clone()),
            (Ok(server), Ok(client)),
        ];
        for (from, to) in ends {
            let (mut from, mut to) = (from.unwrap(), to.unwrap());
            from.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                drop(std::io::copy(&mut from, &mut to));
                drop(to.shutdown(Shutdown::Both));
                drop(from.shutdown(Shutdown::Both));
            });
        }
    }
}

impl Line {
    /// A line to these members, whose URLs begin with `http://`.
    pub(crate) fn start(members: &[String]) -> Self {
        let ports: Vec<u16> = members.iter().map(|_| free_port()).collect();
        let ends = members.iter().zip(&ports).map(|(url, port)| {
            let member = url.strip_prefix("http://").unwrap();
            format!("{port}={member}")
        });
        let process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "cluster::line::a_line_is_cut_and_mended",
                "--nocapture",
            ])
            .env(TO_BE_ONE, ends.collect::<Vec<_>>().join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for port in &ports {
            eventually("the line is there", || {
                TcpStream::connect(("127.0.0.1", *port)).is_ok()
            });
        }
        Self { process, ports }
    }

    /// The process to stop.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The members as a list of the configuration.
    pub(crate) fn toml(&self) -> String {
        let urls = self.ports.iter();
        let urls: Vec<_> = urls
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect();
        format!("{urls:?}")
    }

    /// Returns once nothing passes any more.
    pub(crate) fn cut(&self) {
        self.signal(Signal::STOP);
        eventually("every thread of the line is stopped", || {
            let threads = format!("/proc/{}/task", self.pid());
            std::fs::read_dir(threads).unwrap().all(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
                // A thread that ended meanwhile has none.
                stat.is_ok_and(|stat| stat.rsplit(") ").next().unwrap().starts_with('T'))
            })
        });
    }

    /// What was sent meanwhile arrives now.
    pub(crate) fn mend(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[apply(test)]
fn a_line_is_cut_and_mended() {
    if run_if_requested() {
        return;
    }
    let member = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", member.local_addr().unwrap());
    let line = Line::start(&[url]);
    // The first connection was made to see whether the line is there.
    drop(member.accept().unwrap());
    let mut here = TcpStream::connect(("127.0.0.1", line.ports[0])).unwrap();
    let mut there = member.accept().unwrap().0;
    let wait = std::time::Duration::from_millis(200);
    there.set_read_timeout(Some(wait)).unwrap();
    let mut byte = [0];
    here.write_all(b"1").unwrap();
    there.read_exact(&mut byte).unwrap();
    line.cut();
    here.write_all(b"2").unwrap();
    let nothing = there.read_exact(&mut byte).unwrap_err();
    assert!(
        matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "cut: {nothing}"
    );
    line.mend();
    there.set_read_timeout(None).unwrap();
    there.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"2", "late");
}
