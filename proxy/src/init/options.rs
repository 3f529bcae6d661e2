//! The flags of `outrigger-proxy init`, and their typed form.

use std::{
    num::{NonZeroU16, NonZeroU32},
    ops::RangeInclusive,
};

use clap::Args;
use ipnet::IpNet;

use crate::config::{
    read::{A_PORT, DEFAULT_INBOUND_PORT, DEFAULT_MARK, DEFAULT_OUTBOUND_PORT, port},
    settings::{self, Problems, Settings, Variables},
};

/// Install the redirect rules of this network namespace, or remove or check them.
///
/// From then on every new TCP connection goes through the proxy: incoming ones to --inbound-port, outgoing ones to
/// --outbound-port. Untouched are loopback, UDP, connections that exist already, the proxy's own connections (told by
/// their mark or by the proxy's uid) and what the skip lists name. Installing twice is the same as installing once.
/// Needs CAP_NET_ADMIN and the program nft, or iptables-restore and ip6tables-restore.
#[derive(Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct InitArgs {
    /// Port of the proxy for incoming connections [default: 15006]
    #[arg(long, value_name = "PORT")]
    pub inbound_port: Option<String>,

    /// Port of the proxy for outgoing connections [default: 15001]
    #[arg(long, value_name = "PORT")]
    pub outbound_port: Option<String>,

    /// Uid of the proxy: its connections are not captured. No application may run under it [default: 2102]
    #[arg(long, value_name = "UID")]
    pub proxy_uid: Option<String>,

    /// Mark of the proxy's connections (its --mark), which are not captured; 0: tell the proxy by its uid alone
    /// [default: 28530]
    #[arg(long, value_name = "NUMBER")]
    pub proxy_mark: Option<String>,

    /// Ports of this machine that callers reach without the proxy, besides 15020 (health and metrics)
    #[arg(long, value_name = "PORT[-PORT],…")]
    pub skip_inbound_ports: Vec<String>,

    /// Ports elsewhere that programs reach without the proxy
    #[arg(long, value_name = "PORT[-PORT],…")]
    pub skip_outbound_ports: Vec<String>,

    /// Networks that programs reach without the proxy, IPv4 or IPv6
    #[arg(long, value_name = "ADDRESS/BITS,…")]
    pub skip_outbound_networks: Vec<String>,

    /// Uids whose outgoing connections are not captured
    #[arg(long, value_name = "UID,…")]
    pub skip_uids: Vec<String>,

    /// Which program installs the rules; auto takes nft if it works here [default: auto]
    #[arg(long, value_name = "auto|nft|iptables")]
    pub backend: Option<String>,

    /// Whether to capture IPv6; auto: if this namespace has IPv6 [default: auto]
    #[arg(long, value_name = "auto|on|off")]
    pub ipv6: Option<String>,

    /// Print what would be given to nft or iptables, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Remove the rules; says nothing if there are none
    #[arg(long)]
    pub remove: bool,

    /// Prove by real connections, IPv4 and IPv6, that the capture works, and say what to do if not. Uses the running
    /// proxy, or listens in its place. For the incoming direction it makes a network namespace and a veth pair for a
    /// moment, if it may
    #[arg(long)]
    pub check: bool,
}

const EXAMPLES: &str = "\
Examples:
  outrigger-proxy init
  outrigger-proxy init --skip-outbound-ports 3306,9000-9010 --skip-outbound-networks 169.254.169.254/32
  outrigger-proxy init --dry-run --backend nft
  outrigger-proxy init --check";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    pub inbound_port: NonZeroU16,
    pub outbound_port: NonZeroU16,
    pub proxy_uid: u32,
    pub proxy_mark: Option<NonZeroU32>,
    pub skip_inbound_ports: Vec<Ports>,
    pub skip_outbound_ports: Vec<Ports>,
    pub skip_outbound_networks: Vec<IpNet>,
    pub skip_uids: Vec<u32>,
    pub backend: Wish,
    pub ipv6: Ipv6,
    pub action: Action,
}

/// One port or a range of them.
pub type Ports = RangeInclusive<u16>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Auto,
    Nft,
    Iptables,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Install,
    Remove,
    Check,
    Print,
}

/// Always reachable: health must be answered when everything else is broken.
const STATUS_PORT: u16 = 15020;
/// The user of the proxy in our images.
const DEFAULT_UID: u32 = 2102;

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            inbound_port: DEFAULT_INBOUND_PORT,
            outbound_port: DEFAULT_OUTBOUND_PORT,
            proxy_uid: DEFAULT_UID,
            proxy_mark: Some(DEFAULT_MARK),
            skip_inbound_ports: vec![STATUS_PORT..=STATUS_PORT],
            skip_outbound_ports: Vec::new(),
            skip_outbound_networks: Vec::new(),
            skip_uids: Vec::new(),
            backend: Wish::Auto,
            ipv6: Ipv6::Auto,
            action: Action::Install,
        }
    }
}

impl InitOptions {
    /// Reads `init`'s settings, or everything that is wrong with them.
    pub fn read(args: InitArgs, variables: &Variables, known: &[String]) -> Result<Self, Problems> {
        let mut settings = Settings::new(variables);
        crate::config::variables::check(&mut settings, variables, known);
        let options = read(&mut settings, args);
        settings.finish()?;
        Ok(options)
    }
}

/// What is returned is only good if no problem was noted.
fn read(settings: &mut Settings<'_>, args: InitArgs) -> InitOptions {
    const PORTS: &str = "ports from 1 to 65535, single or FIRST-LAST";
    const A_UID: &str = "a number from 0 to 4294967294";
    let default = InitOptions::default();
    let a_mark = "a number from 0 to 4294967295, decimal or 0x…";
    let options = InitOptions {
        inbound_port: settings
            .value("inbound-port", args.inbound_port, A_PORT, port)
            .unwrap_or(default.inbound_port),
        outbound_port: settings
            .value("outbound-port", args.outbound_port, A_PORT, port)
            .unwrap_or(default.outbound_port),
        proxy_uid: settings.value("proxy-uid", args.proxy_uid, A_UID, uid).unwrap_or(default.proxy_uid),
        proxy_mark: match settings.value("proxy-mark", args.proxy_mark, a_mark, settings::number) {
            Some(mark) => NonZeroU32::new(mark),
            None => default.proxy_mark,
        },
        skip_inbound_ports: merged(
            default.skip_inbound_ports,
            settings.list("skip-inbound-ports", args.skip_inbound_ports, PORTS, ports),
        ),
        skip_outbound_ports: merged(
            Vec::new(),
            settings.list("skip-outbound-ports", args.skip_outbound_ports, PORTS, ports),
        ),
        skip_outbound_networks: IpNet::aggregate(&settings.list(
            "skip-outbound-networks",
            args.skip_outbound_networks,
            "a network such as 10.0.0.0/8 or fd00::/8, without bits behind the prefix",
            network,
        )),
        skip_uids: settings.list("skip-uids", args.skip_uids, A_UID, uid),
        backend: settings
            .value("backend", args.backend, "auto, nft or iptables", |text| match text {
                "auto" => Some(Wish::Auto),
                "nft" => Some(Wish::Nft),
                "iptables" => Some(Wish::Iptables),
                _ => None,
            })
            .unwrap_or(default.backend),
        ipv6: settings
            .value("ipv6", args.ipv6, "auto, on or off", |text| match text {
                "auto" => Some(Ipv6::Auto),
                "on" => Some(Ipv6::On),
                "off" => Some(Ipv6::Off),
                _ => None,
            })
            .unwrap_or(default.ipv6),
        action: action(settings, args.dry_run, args.remove, args.check),
    };
    if options.inbound_port == options.outbound_port {
        settings.problem("--inbound-port and --outbound-port are the same: want two different ports");
    }
    options
}

fn action(settings: &mut Settings<'_>, dry_run: bool, remove: bool, check: bool) -> Action {
    let wanted: Vec<Action> = [
        ("dry-run", dry_run, Action::Print),
        ("remove", remove, Action::Remove),
        ("check", check, Action::Check),
    ]
    .into_iter()
    .filter(|(flag, given, _)| settings.switch(flag, *given))
    .map(|(_, _, action)| action)
    .collect();
    if wanted.len() > 1 {
        settings.problem("--dry-run, --remove and --check exclude each other: want one of them");
    }
    wanted.first().copied().unwrap_or(Action::Install)
}

fn uid(text: &str) -> Option<u32> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
        .filter(|uid| *uid != u32::MAX)
}

fn ports(text: &str) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first.trim())?.get(), port(last.trim())?.get());
    (first <= last).then_some(first..=last)
}

fn network(text: &str) -> Option<IpNet> {
    let network = match text.contains('/') {
        true => text.parse::<IpNet>().ok()?,
        false => IpNet::from(text.parse::<std::net::IpAddr>().ok()?),
    };
    (network.addr() == network.network()).then_some(network)
}

/// Sorted, overlapping and neighbouring ranges made one: nft refuses sets with overlaps.
fn merged(mut ports: Vec<Ports>, more: Vec<Ports>) -> Vec<Ports> {
    ports.extend(more);
    ports.sort_by_key(|ports| *ports.start());
    let mut merged: Vec<Ports> = Vec::with_capacity(ports.len());
    for next in ports {
        match merged.last_mut() {
            Some(last) if u32::from(*next.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(next.end());
            }
            _ => merged.push(next),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_merged() {
        for (ports, expected) in [
            (vec![], vec![]),
            (vec![80..=80, 22..=22], vec![22..=22, 80..=80]),
            (vec![80..=90, 85..=100, 101..=101], vec![80..=101]),
            (vec![1..=65535, 15020..=15020], vec![1..=65535]),
        ] {
            assert_eq!(merged(Vec::new(), ports), expected);
        }
    }

    #[test]
    fn networks_are_written_without_host_bits() {
        for (text, legal) in [
            ("10.0.0.0/8", true),
            ("10.0.0.1/8", false),
            ("10.0.0.1", true),
            ("fd00::/8", true),
            ("fd00::1/8", false),
            ("10.0.0.0/33", false),
            ("orders", false),
        ] {
            assert_eq!(network(text).is_some(), legal, "{text}");
        }
    }
}
