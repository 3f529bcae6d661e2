//! The redirect rules as text. Pure: the same options give the same text, which is what the tests pin.
//!
//! **nft.** One table of our own per family, so that nobody else's rules are touched. The script adds, deletes and adds
//! it in one transaction: whatever was there before, the result is the same, and there is no moment without rules. The
//! priority of the output hook is written as -100 because nft 1.0.6 knows the name `dstnat` only for prerouting.
//!
//! **iptables.** Two chains of our own in the table `nat`, filled by one `--noflush` transaction per family; naming a
//! chain in it empties the chain first. The jumps into them are replaced within the same transaction.
//!
//! ```text
//!  from outside ─▶ prerouting: not loopback, not a skipped port ───────────────────▶ inbound port
//!  from inside  ─▶ output: not marked, not the proxy's uid, not loopback, not skipped ─▶ outbound port
//! ```
//!
//! Only a packet that opens a connection is redirected, so connections from before the rules go on as they are.

use std::{fmt::Write as _, net::IpAddr, ops::Not};

use ipnet::IpNet;

use super::options::{InitOptions, Ports};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Of the nft table. Its presence in a listing means that the rules are there.
pub const TABLE: &str = "outrigger";
const CHAIN_IN: &str = "OUTRIGGER_INBOUND";
const CHAIN_OUT: &str = "OUTRIGGER_OUTBOUND";

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// nft's name of the family, and of its addresses.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.0/8",
            Self::V6 => "::1",
        }
    }

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn has(self, network: &IpNet) -> bool {
        self == Self::of(network.addr())
    }
}

/// The whole installation for `nft -f -`, one transaction for all families.
pub fn nft(options: &InitOptions, families: &[Family]) -> String {
    let mut script = nft_removal(families);
    for family in families {
        // Writing to a String cannot fail; so for every `write!` below.
        let _ = write!(script, "{}", nft_table(options, *family));
    }
    script
}

/// Removes our tables, whether or not they are there.
pub fn nft_removal(families: &[Family]) -> String {
    let mut script = String::new();
    for family in families {
        let family = family.nft();
        let _ = writeln!(script, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    script
}

fn nft_table(options: &InitOptions, family: Family) -> String {
    let ip = family.nft();
    let opening_only = "meta l4proto != tcp return\n    tcp flags & (fin | syn | rst | ack) != syn return";
    let mut table = format!(
        "table {ip} {TABLE} {{\n  chain prerouting {{\n    type nat hook prerouting priority -100; policy accept;\n    \
         {opening_only}\n    iifname \"lo\" return\n    fib daddr type != local return\n"
    );
    if let Some(ports) = nft_ports(&options.skip_inbound_ports) {
        let _ = writeln!(table, "    tcp dport {ports} return");
    }
    let _ = writeln!(table, "    meta l4proto tcp redirect to :{}\n  }}", options.inbound_port);

    let _ = writeln!(
        table,
        "  chain output {{\n    type nat hook output priority -100; policy accept;\n    {opening_only}"
    );
    if let Some(mark) = options.proxy_mark {
        let _ = writeln!(table, "    meta mark {mark:#x} return");
    }
    let _ = writeln!(table, "    meta skuid {} return", options.proxy_uid);
    if let Some(uids) = nft_set(options.skip_uids.iter().map(u32::to_string)) {
        let _ = writeln!(table, "    meta skuid {uids} return");
    }
    let _ = writeln!(table, "    {ip} daddr {} return", family.loopback());
    let networks = options.skip_outbound_networks.iter().filter(|network| family.has(network));
    if let Some(networks) = nft_set(networks.map(ToString::to_string)) {
        let _ = writeln!(table, "    {ip} daddr {networks} return");
    }
    if let Some(ports) = nft_ports(&options.skip_outbound_ports) {
        let _ = writeln!(table, "    tcp dport {ports} return");
    }
    let _ = writeln!(table, "    meta l4proto tcp redirect to :{}\n  }}\n}}", options.outbound_port);
    table
}

fn nft_ports(ports: &[Ports]) -> Option<String> {
    nft_set(ports.iter().map(|ports| range(ports, '-')))
}

fn nft_set(elements: impl Iterator<Item = String>) -> Option<String> {
    let elements: Vec<String> = elements.collect();
    elements.is_empty().not().then(|| format!("{{ {} }}", elements.join(", ")))
}

fn range(ports: &Ports, to: char) -> String {
    match ports.start() == ports.end() {
        true => ports.start().to_string(),
        false => format!("{}{to}{}", ports.start(), ports.end()),
    }
}

/// One family's installation for `iptables-restore --noflush`. `saved` is what `iptables-save -t nat` says now.
///
/// `uids`: whether rules may name uids, which a user namespace without a mapping for them refuses.
pub fn iptables(options: &InitOptions, family: Family, saved: &str, uids: bool) -> String {
    let mut script = format!("*nat\n:{CHAIN_IN} - [0:0]\n:{CHAIN_OUT} - [0:0]\n");
    script.push_str(&jumps_removed(saved));
    let _ = writeln!(script, "-A PREROUTING -p tcp -j {CHAIN_IN}\n-A OUTPUT -p tcp -j {CHAIN_OUT}");

    let mut inbound = |rule: &str| _ = writeln!(script, "-A {CHAIN_IN} {rule}");
    inbound("-p tcp ! --syn -j RETURN");
    inbound("-i lo -j RETURN");
    inbound("-m addrtype ! --dst-type LOCAL -j RETURN");
    for ports in &options.skip_inbound_ports {
        inbound(&format!("-p tcp --dport {} -j RETURN", range(ports, ':')));
    }
    inbound(&format!("-p tcp -j REDIRECT --to-ports {}", options.inbound_port));

    let mut outbound = |rule: &str| _ = writeln!(script, "-A {CHAIN_OUT} {rule}");
    outbound("-p tcp ! --syn -j RETURN");
    if let Some(mark) = options.proxy_mark {
        outbound(&format!("-m mark --mark {mark:#x} -j RETURN"));
    }
    if uids {
        for uid in [options.proxy_uid].iter().chain(&options.skip_uids) {
            outbound(&format!("-m owner --uid-owner {uid} -j RETURN"));
        }
    }
    outbound(&format!("-d {} -j RETURN", family.loopback()));
    for network in options.skip_outbound_networks.iter().filter(|network| family.has(network)) {
        outbound(&format!("-d {network} -j RETURN"));
    }
    for ports in &options.skip_outbound_ports {
        outbound(&format!("-p tcp --dport {} -j RETURN", range(ports, ':')));
    }
    outbound(&format!("-p tcp -j REDIRECT --to-ports {}", options.outbound_port));
    script.push_str("COMMIT\n");
    script
}

/// Removes our chains and the jumps to them; `None` if there is nothing of ours.
pub fn iptables_removal(saved: &str) -> Option<String> {
    let chains: Vec<&str> =
        [CHAIN_IN, CHAIN_OUT].into_iter().filter(|chain| saved.contains(&format!("\n:{chain} "))).collect();
    if chains.is_empty() {
        return None;
    }
    let mut script = "*nat\n".to_owned();
    script.push_str(&jumps_removed(saved));
    for chain in chains {
        let _ = writeln!(script, "-F {chain}\n-X {chain}");
    }
    script.push_str("COMMIT\n");
    Some(script)
}

/// Every jump to one of our chains, as a deletion.
fn jumps_removed(saved: &str) -> String {
    let ours = |line: &&str| {
        let target = line.rsplit_once(" -j ").map_or("", |(_, target)| target.trim());
        line.starts_with("-A ") && [CHAIN_IN, CHAIN_OUT].contains(&target)
    };
    saved.lines().filter(ours).map(|line| format!("-D {}\n", &line["-A ".len()..])).collect()
}

#[cfg(test)]
mod tests;
