//! The few rtnetlink requests that the self-check needs: a veth pair into another namespace, addresses, up, away.
//!
//! Written out because the alternative is one more program (`ip`) that has to be in the image. Layouts: rtnetlink(7).

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
};

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

const IFF_UP: u32 = 1;
/// No duplicate address detection: the address can be used at once.
const IFA_F_NODAD: u8 = 2;

/// Makes a veth pair with one end here and the other in `namespace`.
pub(super) fn add_veth(here: &str, there: &str, namespace: &File) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
    message.interface(0, 0);
    message.attribute(IFLA_IFNAME, &text(here));
    message.nested(IFLA_LINKINFO, |message| {
        message.attribute(IFLA_INFO_KIND, b"veth");
        message.nested(IFLA_INFO_DATA, |message| {
            message.nested(VETH_INFO_PEER, |message| {
                message.interface(0, 0);
                message.attribute(IFLA_IFNAME, &text(there));
                message.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            });
        });
    });
    message.send()
}

/// Removes an interface (and with it the other end of a veth pair).
pub(super) fn delete_link(name: &str) -> io::Result<()> {
    let mut message = Message::new(RTM_DELLINK, 0);
    message.interface(if_nametoindex(name)?, 0);
    message.send()
}

/// Sets an interface of the calling thread's namespace up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWLINK, 0);
    message.interface(if_nametoindex(name)?, IFF_UP);
    message.send()
}

pub(super) fn add_address(name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
    let (family, flags, bytes) = match address {
        IpAddr::V4(v4) => (nix::libc::AF_INET, 0, v4.octets().to_vec()),
        IpAddr::V6(v6) => (nix::libc::AF_INET6, IFA_F_NODAD, v6.octets().to_vec()),
    };
    message.0.extend([family as u8, prefix, flags, 0]);
    message.0.extend(if_nametoindex(name)?.to_ne_bytes());
    message.attribute(IFA_LOCAL, &bytes);
    message.attribute(IFA_ADDRESS, &bytes);
    message.send()
}

fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A request being written: header, fixed part, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4]; // length, set when sent
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend([0; 8]); // sequence and port: one request per socket needs neither
        Self(bytes)
    }

    /// `struct ifinfomsg`.
    fn interface(&mut self, index: u32, flags: u32) {
        self.0.extend([0; 4]); // family, padding, type
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes()); // which flags to change
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.0.extend(value));
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends the request and waits for the kernel's answer.
    fn send(mut self) -> io::Result<()> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let mut socket =
            Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
        socket.write_all(&self.0)?;
        let mut answer = [0; 4096];
        let read = socket.read(&mut answer)?;
        let field = |at: usize| -> Option<[u8; 4]> { answer[..read].get(at..at + 4)?.try_into().ok() };
        let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
        match (kind, field(16).map(i32::from_ne_bytes)) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
            _ => Err(io::Error::other("rtnetlink gave an answer of an unknown kind")),
        }
    }
}
