//! Reports of traffic: `Mesh.Report`.
//!
//! Like an update, a report is taken whole or refused whole with every reason. Besides each field it has to agree with
//! itself: the histogram of an edge has as many durations as its outcomes have requests, so that whoever adds reports up
//! gets percentiles and counts of the same requests.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};

use super::{
    ConvertError,
    fields::{Fields, milliseconds},
};
use crate::{
    limits::{
        MAX_REASON_BYTES, MAX_REPORT_COUNT, MAX_REPORT_EDGES, MAX_REPORT_EVENTS, MAX_REPORT_LENGTH,
        MAX_REPORT_OUTCOMES, MAX_REPORT_TEXT_BYTES, MAX_SECURITY_BYTES,
    },
    pb,
    spec::{Durations, EdgeKey, EdgeTraffic, OutcomeCount, ProxyEvent, ProxyEventKind, Side, TrafficReport},
};

// === from the wire ===

pub fn report(from: pb::TrafficReport) -> Result<TrafficReport, ConvertError> {
    let mut fields = Fields::new();
    for (name, number) in [("epoch", from.epoch), ("sequence", from.sequence)] {
        if number == 0 {
            fields.refuse_at(name, "is 0");
        }
    }
    let longest = u32::try_from(MAX_REPORT_LENGTH.as_millis()).unwrap_or(u32::MAX);
    let length = fields.at("length_ms", |fields| fields.within(from.length_ms, 1..=longest));
    let ended_ago = fields.at("ended_ago_ms", |fields| fields.timeout(from.ended_ago_ms));
    let mut seen = HashSet::new();
    let edges = fields.list("edges", from.edges, MAX_REPORT_EDGES, |fields, from| {
        let edge = edge(fields, from)?;
        if !seen.insert(edge.key.clone()) {
            fields.refuse("is in this report twice");
        }
        Some(edge)
    });
    let events = fields.list("events", from.events, MAX_REPORT_EVENTS, event);
    fields.finish(TrafficReport {
        epoch: from.epoch,
        sequence: from.sequence,
        length: Duration::from_millis(length.into()),
        ended_ago: ended_ago.unwrap_or_default(),
        edges,
        events,
    })
}

fn edge(fields: &mut Fields, from: pb::EdgeTraffic) -> Option<EdgeTraffic> {
    let side = fields.at("side", |fields| {
        fields.kind(from.side, |side| match side {
            pb::Side::Unspecified => None,
            pb::Side::Outbound => Some(Side::Outbound),
            pb::Side::Inbound => Some(Side::Inbound),
        })
    });
    let service = fields.at("service", |fields| words(fields, &from.service, MAX_REPORT_TEXT_BYTES));
    let route = fields.at("route", |fields| words(fields, &from.route, MAX_REPORT_TEXT_BYTES));
    let peer = fields.at("peer", |fields| match from.peer.as_str() {
        "" => Some(None),
        text => fields.parse(text).map(Some),
    });
    let security = fields.at("security", |fields| words(fields, &from.security, MAX_SECURITY_BYTES));
    let ways = from.outcomes.len();
    let outcomes: Vec<_> = fields.list("outcomes", from.outcomes, MAX_REPORT_OUTCOMES, outcome);
    let durations = fields.at("durations", |fields| durations(fields, &from.durations));
    for (name, number) in [
        ("received", from.received),
        ("sent", from.sent),
        ("connections", from.connections),
        ("connections_failed", from.connections_failed),
    ] {
        fields.at(name, |fields| fields.within(number, 0..=MAX_REPORT_COUNT));
    }
    if from.connections_failed > from.connections {
        fields.refuse_at("connections_failed", format!("is more than all {} connections", from.connections));
    }
    let traffic = EdgeTraffic {
        key: EdgeKey { side: side?, service, route, peer: peer? },
        security: (!security.is_empty()).then_some(security),
        outcomes,
        durations: durations?,
        received: from.received,
        sent: from.sent,
        connections: from.connections,
        connections_failed: from.connections_failed,
    };
    let (requests, durations) = (traffic.requests(), traffic.durations.count());
    if requests != durations && traffic.outcomes.len() == ways {
        fields.refuse_at("durations", format!("has {durations}, and there were {requests} requests"));
    }
    Some(traffic)
}

fn outcome(fields: &mut Fields, from: pb::OutcomeCount) -> Option<OutcomeCount> {
    let class = fields.at("status_class", |fields| fields.within(from.status_class, 0..=5));
    let grpc_status = fields.at("grpc_status", |fields| fields.within(from.grpc_status, 0..=256));
    let reason = fields.at("reason", |fields| words(fields, &from.reason, MAX_REASON_BYTES));
    let counts = 1..=MAX_REPORT_COUNT;
    fields.at("count", |fields| fields.within(from.count, counts.clone()));
    counts.contains(&from.count).then_some(OutcomeCount {
        status_class: class.try_into().unwrap_or(0),
        grpc_status: grpc_status.checked_sub(1).and_then(|status| status.try_into().ok()),
        reason,
        count: from.count,
    })
}

fn event(fields: &mut Fields, from: pb::ProxyEvent) -> Option<ProxyEvent> {
    let ago = fields.at("ago_ms", |fields| fields.timeout(from.ago_ms)).unwrap_or_default();
    let kind = fields.at("kind", |fields| {
        fields.kind(from.kind, |kind| match kind {
            pb::ProxyEventKind::Unspecified => None,
            pb::ProxyEventKind::CertificateNearEnd => Some(ProxyEventKind::CertificateNearEnd),
            pb::ProxyEventKind::CaptureBroken => Some(ProxyEventKind::CaptureBroken),
            pb::ProxyEventKind::CaptureRestored => Some(ProxyEventKind::CaptureRestored),
            pb::ProxyEventKind::Draining => Some(ProxyEventKind::Draining),
        })
    });
    let message = fields.at("message", |fields| words(fields, &from.message, MAX_REPORT_TEXT_BYTES));
    Some(ProxyEvent { ago, kind: kind?, message })
}

/// Text that ends up in tables and on terminals; it may be empty.
fn words(fields: &mut Fields, text: &str, most: usize) -> Arc<str> {
    if text.chars().any(char::is_control) {
        fields.refuse("has a control character");
    }
    fields.short_text(text, most)
}

/// `None` was refused. Its header is looked at first: the library makes as much room as that asks for.
fn durations(fields: &mut Fields, bytes: &[u8]) -> Option<Durations> {
    // Cookie, length of what follows, offset, digits, lowest and highest value, ratio.
    const HEADER: usize = 40;
    /// The last value of the histogram's last power of two: nothing larger is recorded, this much may be allocated.
    const HIGHEST: u64 = (Durations::MOST_US + 1).next_power_of_two() - 1;
    /// A number that has to be negated and cannot. A legal count has at most seven such bytes in a row.
    const LEAST_NUMBER: [u8; 9] = [0xff; 9];

    if bytes.is_empty() {
        return Some(Durations::new());
    }
    let Some((_, counts)) = bytes.split_at_checked(HEADER) else {
        fields.refuse(format!("is no histogram: it has {} bytes", bytes.len()));
        return None;
    };
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (length, digits, least, most) = (number(4, 4), number(12, 4), number(16, 8), number(24, 8));
    let legal = 2 * Durations::UNIT_US..=HIGHEST;
    if (digits, least) != (Durations::DIGITS.into(), Durations::UNIT_US) || !legal.contains(&most) {
        fields.refuse(format!("has other bounds: {least} to {most} with {digits} digits"));
        return None;
    }
    if u64::try_from(counts.len()) != Ok(length) {
        fields.refuse(format!("is no histogram: {} bytes in place of {length}", counts.len()));
        return None;
    }
    if counts.windows(LEAST_NUMBER.len()).any(|window| window == LEAST_NUMBER) {
        fields.refuse("is no histogram: a number is too large");
        return None;
    }
    let read = Deserializer::new().deserialize::<u64, _>(&mut &bytes[..]);
    let mut histogram = read.map_err(|error| fields.refuse(format!("is no histogram: {error}"))).ok()?;
    if histogram.is_empty() {
        return Some(Durations::new());
    }
    let longest = histogram.highest_equivalent(Durations::MOST_US);
    if histogram.min() < Durations::LEAST_US || longest < histogram.max() {
        fields.refuse("has a duration outside of its bounds");
        return None;
    }
    histogram.auto(true);
    Some(Durations(Some(histogram)))
}

// === to the wire ===

pub fn report_to_pb(from: &TrafficReport) -> pb::TrafficReport {
    let events = from.events.iter().map(|event| pb::ProxyEvent {
        ago_ms: milliseconds(Some(event.ago)),
        kind: match event.kind {
            ProxyEventKind::CertificateNearEnd => pb::ProxyEventKind::CertificateNearEnd,
            ProxyEventKind::CaptureBroken => pb::ProxyEventKind::CaptureBroken,
            ProxyEventKind::CaptureRestored => pb::ProxyEventKind::CaptureRestored,
            ProxyEventKind::Draining => pb::ProxyEventKind::Draining,
        }
        .into(),
        message: event.message.to_string(),
    });
    let mut serializer = V2Serializer::new();
    pb::TrafficReport {
        epoch: from.epoch,
        sequence: from.sequence,
        length_ms: u32::try_from(milliseconds(Some(from.length))).unwrap_or(u32::MAX),
        ended_ago_ms: milliseconds(Some(from.ended_ago)),
        edges: from.edges.iter().map(|edge| edge_to_pb(edge, &mut serializer)).collect(),
        events: events.collect(),
    }
}

fn edge_to_pb(from: &EdgeTraffic, serializer: &mut V2Serializer) -> pb::EdgeTraffic {
    let outcomes = from.outcomes.iter().map(|outcome| pb::OutcomeCount {
        status_class: outcome.status_class.into(),
        grpc_status: outcome.grpc_status.map_or(0, |status| u32::from(status) + 1),
        reason: outcome.reason.to_string(),
        count: outcome.count,
    });
    let mut durations = Vec::new();
    if let Some(histogram) = from.durations.0.as_ref().filter(|histogram| !histogram.is_empty()) {
        // Writing to a vector cannot fail, and no count comes near the end of an i64.
        let _ = serializer.serialize(histogram, &mut durations);
    }
    pb::EdgeTraffic {
        side: match from.key.side {
            Side::Outbound => pb::Side::Outbound,
            Side::Inbound => pb::Side::Inbound,
        }
        .into(),
        service: from.key.service.to_string(),
        route: from.key.route.to_string(),
        peer: from.key.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
        security: from.security.as_deref().unwrap_or_default().to_owned(),
        outcomes: outcomes.collect(),
        durations,
        received: from.received,
        sent: from.sent,
        connections: from.connections,
        connections_failed: from.connections_failed,
    }
}
