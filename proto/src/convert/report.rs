//! Reports of traffic: `Mesh.Report`.
//!
//! Like an update, a report is taken whole or refused whole with every reason. Besides each field it has to agree with
//! itself: the histogram of an edge has as many durations as its outcomes have requests, so that whoever adds reports up
//! gets percentiles and counts of the same requests.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{
    ConvertError,
    durations::{durations, durations_to_bytes},
    fields::{Fields, milliseconds},
};
use crate::{
    limits::{
        MAX_REASON_BYTES, MAX_REPORT_COUNT, MAX_REPORT_EDGES, MAX_REPORT_EVENTS, MAX_REPORT_LENGTH,
        MAX_REPORT_OUTCOMES, MAX_REPORT_TEXT_BYTES, MAX_SECURITY_BYTES,
    },
    pb,
    spec::{EdgeKey, EdgeTraffic, OutcomeCount, ProxyEvent, ProxyEventKind, Side, TrafficReport},
};

// === from the wire ===

/// Inlined with what it calls for each edge: this crate is built for size, and a control plane takes 10,000 of them a second.
#[inline]
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

#[inline]
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

#[inline]
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
#[inline]
fn words(fields: &mut Fields, text: &str, most: usize) -> Arc<str> {
    if text.chars().any(char::is_control) {
        fields.refuse("has a control character");
    }
    fields.short_text(text, most)
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
    pb::TrafficReport {
        epoch: from.epoch,
        sequence: from.sequence,
        length_ms: u32::try_from(milliseconds(Some(from.length))).unwrap_or(u32::MAX),
        ended_ago_ms: milliseconds(Some(from.ended_ago)),
        edges: from.edges.iter().map(edge_to_pb).collect(),
        events: events.collect(),
    }
}

fn edge_to_pb(from: &EdgeTraffic) -> pb::EdgeTraffic {
    let outcomes = from.outcomes.iter().map(|outcome| pb::OutcomeCount {
        status_class: outcome.status_class.into(),
        grpc_status: outcome.grpc_status.map_or(0, |status| u32::from(status) + 1),
        reason: outcome.reason.to_string(),
        count: outcome.count,
    });
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
        durations: durations_to_bytes(&from.durations),
        received: from.received,
        sent: from.sent,
        connections: from.connections,
        connections_failed: from.connections_failed,
    }
}
