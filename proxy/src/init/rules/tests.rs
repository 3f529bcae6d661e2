//! The exact text, because that is what the kernel gets.

use std::num::NonZeroU32;

use super::*;
use crate::init::options::InitOptions;

#[test]
fn nft_with_defaults() {
    let expected = r#"add table ip outrigger
delete table ip outrigger
table ip outrigger {
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    iifname "lo" return
    fib daddr type != local return
    tcp dport { 15020 } return
    meta l4proto tcp redirect to :15006
  }
  chain output {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    meta mark 0x6f72 return
    meta skuid 2102 return
    ip daddr 127.0.0.0/8 return
    meta l4proto tcp redirect to :15001
  }
}
"#;
    assert_eq!(nft(&InitOptions::default(), &[Family::V4]), expected);
}

#[test]
fn nft_with_everything_for_both_families_is_one_script() {
    let script = nft(&everything(), &[Family::V4, Family::V6]);
    let expected = r#"add table ip outrigger
delete table ip outrigger
add table ip6 outrigger
delete table ip6 outrigger
table ip outrigger {
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    iifname "lo" return
    fib daddr type != local return
    tcp dport { 22, 15020, 16000-16010 } return
    meta l4proto tcp redirect to :7006
  }
  chain output {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    meta mark 0x1 return
    meta skuid 99 return
    meta skuid { 1000, 1001 } return
    ip daddr 127.0.0.0/8 return
    ip daddr { 10.0.0.0/8, 169.254.169.254/32 } return
    tcp dport { 3306, 9000-9010 } return
    meta l4proto tcp redirect to :7001
  }
}
table ip6 outrigger {
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    iifname "lo" return
    fib daddr type != local return
    tcp dport { 22, 15020, 16000-16010 } return
    meta l4proto tcp redirect to :7006
  }
  chain output {
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    tcp flags & (fin | syn | rst | ack) != syn return
    meta mark 0x1 return
    meta skuid 99 return
    meta skuid { 1000, 1001 } return
    ip6 daddr ::1 return
    ip6 daddr { fd00::/8 } return
    tcp dport { 3306, 9000-9010 } return
    meta l4proto tcp redirect to :7001
  }
}
"#;
    assert_eq!(script, expected);
}

#[test]
fn nft_without_a_mark_tells_the_proxy_by_its_uid() {
    let script = nft(&InitOptions { proxy_mark: None, ..InitOptions::default() }, &[Family::V4]);
    assert!(!script.contains("meta mark") && script.contains("meta skuid 2102 return"), "{script}");
}

#[test]
fn iptables_with_defaults() {
    let expected = "\
*nat
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A PREROUTING -p tcp -j OUTRIGGER_INBOUND
-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-A OUTRIGGER_INBOUND -p tcp ! --syn -j RETURN
-A OUTRIGGER_INBOUND -i lo -j RETURN
-A OUTRIGGER_INBOUND -m addrtype ! --dst-type LOCAL -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15020 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A OUTRIGGER_OUTBOUND -p tcp ! --syn -j RETURN
-A OUTRIGGER_OUTBOUND -m mark --mark 0x6f72 -j RETURN
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 2102 -j RETURN
-A OUTRIGGER_OUTBOUND -d 127.0.0.0/8 -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp -j REDIRECT --to-ports 15001
COMMIT
";
    assert_eq!(iptables(&InitOptions::default(), Family::V4, "", true), expected);
}

#[test]
fn iptables_with_everything() {
    let expected = "\
*nat
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A PREROUTING -p tcp -j OUTRIGGER_INBOUND
-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-A OUTRIGGER_INBOUND -p tcp ! --syn -j RETURN
-A OUTRIGGER_INBOUND -i lo -j RETURN
-A OUTRIGGER_INBOUND -m addrtype ! --dst-type LOCAL -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 22 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 15020 -j RETURN
-A OUTRIGGER_INBOUND -p tcp --dport 16000:16010 -j RETURN
-A OUTRIGGER_INBOUND -p tcp -j REDIRECT --to-ports 7006
-A OUTRIGGER_OUTBOUND -p tcp ! --syn -j RETURN
-A OUTRIGGER_OUTBOUND -m mark --mark 0x1 -j RETURN
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 99 -j RETURN
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1000 -j RETURN
-A OUTRIGGER_OUTBOUND -m owner --uid-owner 1001 -j RETURN
-A OUTRIGGER_OUTBOUND -d ::1 -j RETURN
-A OUTRIGGER_OUTBOUND -d fd00::/8 -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp --dport 3306 -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp --dport 9000:9010 -j RETURN
-A OUTRIGGER_OUTBOUND -p tcp -j REDIRECT --to-ports 7001
COMMIT
";
    assert_eq!(iptables(&everything(), Family::V6, "", true), expected);
    let without_uids = iptables(&everything(), Family::V6, "", false);
    assert!(!without_uids.contains("--uid-owner"), "{without_uids}");
}

const SAVED: &str = "\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:OUTRIGGER_INBOUND - [0:0]
:OUTRIGGER_OUTBOUND - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -p tcp -j OUTRIGGER_INBOUND
-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-A OUTRIGGER_INBOUND -i lo -j RETURN
COMMIT
";

#[test]
fn iptables_replaces_its_own_jumps_and_no_others() {
    let script = iptables(&InitOptions::default(), Family::V4, SAVED, true);
    let removed: Vec<&str> = script.lines().filter(|line| line.starts_with("-D")).collect();
    let expected = [
        "-D PREROUTING -p tcp -j OUTRIGGER_INBOUND",
        "-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND",
        "-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND",
    ];
    assert_eq!(removed, expected);
    assert_eq!(script.matches("-A PREROUTING").count(), 1);
}

#[test]
fn iptables_removal_takes_all_of_ours_and_nothing_else() {
    let expected = "\
*nat
-D PREROUTING -p tcp -j OUTRIGGER_INBOUND
-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND
-F OUTRIGGER_INBOUND
-X OUTRIGGER_INBOUND
-F OUTRIGGER_OUTBOUND
-X OUTRIGGER_OUTBOUND
COMMIT
";
    assert_eq!(iptables_removal(SAVED).as_deref(), Some(expected));
    assert_eq!(iptables_removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), None);
    assert_eq!(iptables_removal(""), None);
}

fn everything() -> InitOptions {
    InitOptions {
        inbound_port: 7006.try_into().unwrap(),
        outbound_port: 7001.try_into().unwrap(),
        proxy_uid: 99,
        proxy_mark: NonZeroU32::new(1),
        skip_inbound_ports: vec![22..=22, 15020..=15020, 16000..=16010],
        skip_outbound_ports: vec![3306..=3306, 9000..=9010],
        skip_outbound_networks: ["10.0.0.0/8", "169.254.169.254/32", "fd00::/8"]
            .map(|n| n.parse().unwrap())
            .to_vec(),
        skip_uids: vec![1000, 1001],
        ..InitOptions::default()
    }
}
