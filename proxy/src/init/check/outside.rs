//! A caller from outside, for a moment: a thread in a network namespace of its own, tied to ours by a veth pair.
//!
//! ```text
//!   our namespace                          the thread's
//!   or-check0  192.0.2.1/30  ◀── veth ──▶  or-check1  192.0.2.2/30
//!              2001:db8:6f72::1/64                    2001:db8:6f72::2/64
//! ```
//!
//! The addresses are from the ranges kept for documentation (RFC 5737, RFC 3849), so they collide with nobody's. The
//! pair is removed whatever happens, and a pair that a killed check left behind is replaced.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};

use super::{Finding, PATIENCE, probe, silent_port};
use crate::init::{netlink, options::InitOptions, rules::Family};

const HERE: &str = "or-check0";
const THERE: &str = "or-check1";

/// Removes the pair when the check is over.
struct Pair;

pub(super) fn incoming(options: &InitOptions, family: Family) -> Finding {
    let (here, there, prefix, everywhere) = addresses(family);
    let (for_outside, jobs) = mpsc::channel::<SocketAddr>();
    let (namespace_out, namespace) = mpsc::channel();
    let (result_out, result) = mpsc::channel();
    let outside = thread::spawn(move || caller(&namespace_out, &jobs, &result_out, there, prefix));
    let finding = match namespace.recv() {
        Ok(Ok(namespace)) => match pair(&namespace, here, prefix) {
            Ok(_pair) => match silent_port(here, &options.skip_inbound_ports) {
                Ok((_silent, target)) => {
                    let proxy = SocketAddr::new(everywhere, options.inbound_port.get());
                    probe(proxy, target, || {
                        let gone = || io::Error::other("the caller outside has ended");
                        for_outside.send(target).map_err(|_| gone())?;
                        result.recv().map_err(|_| gone())?
                    })
                }
                Err(error) => Finding::Unknown(format!("no port of {here} could be reserved: {error}")),
            },
            Err(error) => Finding::Unknown(format!("no veth pair could be made: {error}")),
        },
        Ok(Err(error)) => {
            Finding::Unknown(format!("making a network namespace to call from needs CAP_SYS_ADMIN: {error}"))
        }
        Err(_) => Finding::Unknown("the caller outside has ended".to_owned()),
    };
    drop(for_outside);
    // It has nothing left to wait for; should it have panicked, the finding says that it ended.
    let _ = outside.join();
    finding
}

fn addresses(family: Family) -> (IpAddr, IpAddr, u8, IpAddr) {
    let v6 = |last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x6f72, 0, 0, 0, 0, last));
    match family {
        Family::V4 => (
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
            30,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        ),
        Family::V6 => (v6(1), v6(2), 64, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    }
}

/// Our end of the pair, up and addressed.
fn pair(namespace: &File, here: IpAddr, prefix: u8) -> io::Result<Pair> {
    // Left by a check that was killed; most of the time there is none.
    let _ = netlink::delete_link(HERE);
    netlink::add_veth(HERE, THERE, namespace)?;
    let pair = Pair;
    netlink::add_address(HERE, here, prefix)?;
    netlink::set_up(HERE)?;
    Ok(pair)
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It goes with the other namespace anyway.
        let _ = netlink::delete_link(HERE);
    }
}

/// The life of the thread outside: enter a new namespace, hand it out, address the end of the pair, call.
fn caller(
    namespace: &mpsc::Sender<io::Result<File>>,
    jobs: &mpsc::Receiver<SocketAddr>,
    result: &mpsc::Sender<io::Result<TcpStream>>,
    own: IpAddr,
    prefix: u8,
) {
    let entered = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    let entered = entered.and_then(|()| File::open("/proc/thread-self/ns/net"));
    let works = entered.is_ok();
    if namespace.send(entered).is_err() || !works {
        return;
    }
    while let Ok(target) = jobs.recv() {
        let called = netlink::add_address(THERE, own, prefix)
            .and_then(|()| netlink::set_up(THERE))
            .and_then(|()| call(target));
        if result.send(called).is_err() {
            return;
        }
    }
}

/// Calls until the link has come up; a refusal is an answer and ends it.
fn call(target: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&target, left) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            called => return called,
        }
    }
}
