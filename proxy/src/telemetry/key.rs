//! What a record is counted under: named and hashed once, and looked up by that in the tables of metrics and reports.
//!
//! These names are the labels and the edges that everybody sees. What strangers choose freely is none of them.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _};

use foldhash::fast::RandomState;
use outrigger_certs::SpiffeId;
use outrigger_core::verdict::Reason;

use super::{ConnectionRecord, Direction, RequestRecord};

/// Destinations that are no service of the mesh, or not known to be one.
const EXTERNAL: &str = "external";

/// Makes the keys of one worker.
#[derive(Default)]
pub(crate) struct Keys(RandomState);

/// Between whom something happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) direction: Direction,
    pub(crate) service: &'a str,
    /// Empty without one, as it is of connections.
    pub(crate) route: &'a str,
    pub(crate) peer: Option<&'a SpiffeId>,
    /// Of all but the peer.
    pub(crate) route_hash: u64,
    pub(crate) edge_hash: u64,
}

/// How a request ended, as far as that is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// 1 to 5; 0: the caller left before there was an answer, or its status is none.
    pub(crate) class: u8,
    /// Beyond [`MOST_GRPC`]: any that gRPC does not have.
    pub(crate) grpc: Option<u8>,
    pub(crate) reason: Option<Reason>,
}

/// The highest status that gRPC has; a peer may send any number.
pub(crate) const MOST_GRPC: u8 = 16;

// === impl Keys ===

impl Keys {
    pub(crate) fn of_request<'a>(&self, record: &RequestRecord<'a>) -> Key<'a> {
        let RequestRecord { direction, service, route, peer, reason, .. } = *record;
        self.key(direction, label(direction, service, peer.is_some(), reason), route, peer)
    }

    pub(crate) fn of_connection<'a>(&self, record: &ConnectionRecord<'a>) -> Key<'a> {
        let ConnectionRecord { direction, service, peer, reason, .. } = *record;
        self.key(direction, label(direction, service, peer.is_some(), reason), "", peer)
    }

    fn key<'a>(
        &self,
        direction: Direction,
        service: &'a str,
        route: &'a str,
        peer: Option<&'a SpiffeId>,
    ) -> Key<'a> {
        let mut hasher = self.0.build_hasher();
        (direction, service, route).hash(&mut hasher);
        let route_hash = hasher.finish();
        peer.hash(&mut hasher);
        Key { direction, service, route, peer, route_hash, edge_hash: hasher.finish() }
    }
}

/// The service as a label. What strangers choose freely is not one: the address of a destination outside, and the port
/// that a caller without an identity was refused at.
fn label(direction: Direction, service: &str, known_peer: bool, reason: Option<Reason>) -> &str {
    match direction {
        Direction::Outbound if service.starts_with("address/") => EXTERNAL,
        Direction::Inbound if !known_peer && reason.is_some() => "",
        Direction::Outbound | Direction::Inbound => service,
    }
}

// === impl Outcome ===

impl Outcome {
    pub(crate) fn of(record: &RequestRecord<'_>) -> Self {
        Self {
            class: match record.status {
                100..=599 => (record.status / 100) as u8,
                _ => 0,
            },
            grpc: record.grpc_status.map(|status| status.min(u16::from(MOST_GRPC) + 1) as u8),
            reason: record.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_choose_no_labels() {
        let (denied, refused) = (Some(Reason::Denied), Some(Reason::MtlsRequired));
        for (direction, name, known, reason, expected) in [
            (Direction::Outbound, "shop/orders:80", false, None, "shop/orders:80"),
            (Direction::Outbound, "address/203.0.113.7:443", false, None, "external"),
            (Direction::Outbound, "authority/orders.shop:80", false, refused, "authority/orders.shop:80"),
            (Direction::Inbound, ":8080", true, denied, ":8080"),
            (Direction::Inbound, ":8080", false, None, ":8080"),
            (Direction::Inbound, ":8080", false, refused, ""),
        ] {
            assert_eq!(label(direction, name, known, reason), expected, "{name}");
        }
    }

    #[test]
    fn what_differs_has_another_hash() {
        let [web, batch] = ["web", "batch"]
            .map(|name| SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap());
        let keys = Keys::default();
        let base = keys.key(Direction::Inbound, "a", "b", Some(&web));
        let again = keys.key(Direction::Inbound, "a", "b", Some(&web));
        assert_eq!((base.route_hash, base.edge_hash), (again.route_hash, again.edge_hash));
        for peer in [None, Some(&batch)] {
            let other = keys.key(Direction::Inbound, "a", "b", peer);
            assert_eq!(base.route_hash, other.route_hash, "the peer is no part of it");
            assert_ne!(base.edge_hash, other.edge_hash, "{peer:?}");
        }
        for (direction, service, route) in [
            (Direction::Outbound, "a", "b"),
            (Direction::Inbound, "ab", ""),
            (Direction::Inbound, "", "ab"),
            (Direction::Inbound, "b", "a"),
        ] {
            let other = keys.key(direction, service, route, Some(&web));
            assert_ne!(base.route_hash, other.route_hash, "{direction:?} {service:?} {route:?}");
        }
    }
}
