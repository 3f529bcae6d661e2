//! The reports that somebody may still need, by number.
//!
//! ```text
//!   push ─▶ ┌──────┬──────┬──────┬──────┐
//!           │ sent │ sent │  new │  new │ ◀─ after(cursor): to a stream, sent from then on
//!           └──────┴──────┴──────┴──────┘
//!              │            └─ two of them may become one
//!              └─ leaves when every control plane that is wanted has acknowledged it
//! ```
//!
//! A control plane is wanted while it is connected and for [`AWAY`] after, so that one that is started anew misses
//! nothing. At least one has to have acknowledged a report before it leaves: with nobody there all are kept. When there
//! are too many, the two neighbours that are about the least time become one, which costs resolution and no numbers.
//!
//! A report that was sent to anybody never changes again, so a control plane can tell by its number whether it has counted
//! it, whatever became of the acknowledgement. Only those that were never sent are merged; where there are none, and where
//! the bytes are too many, the oldest is lost and counted.
//!
//! Without a clock and without I/O: `now` is a parameter.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use outrigger_proto::{
    convert,
    limits::{MAX_REPORT_EDGES, MAX_REPORT_EVENTS, MAX_REPORT_LENGTH, MAX_REQUEST_BYTES},
    pb,
    spec::{EdgeTraffic, ProxyEvent, TrafficReport},
};
use prost::Message as _;

use super::fold;

/// Two minutes of busy seconds.
const MAX_REPORTS: usize = 120;
/// A report of a busy sidecar has some KiB, one of a gateway 200 KiB.
const MAX_BYTES: usize = 8 << 20;
/// A control plane that is away for longer has to do with what is left.
const AWAY: Duration = Duration::from_secs(120);

pub(super) struct Ring {
    epoch: u64,
    /// The newest number.
    last: u64,
    reports: VecDeque<Kept>,
    bytes: usize,
    planes: Vec<Plane>,
    counts: Counts,
}

/// What has become of reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) acknowledged: u64,
    pub(super) merged: u64,
    /// Nobody took them in time.
    pub(super) dropped: u64,
    /// A control plane did not want them.
    pub(super) refused: u64,
}

struct Kept {
    sequence: u64,
    began: Instant,
    ended: Instant,
    /// As it is sent at the moment it ends, encoded: a tenth of the room.
    encoded: Vec<u8>,
    sent: bool,
}

#[derive(Default)]
struct Plane {
    standing: Standing,
    acknowledged: u64,
    /// Not to be sent again. As many as are kept at most.
    refused: Vec<u64>,
}

#[derive(Clone, Copy, Default)]
enum Standing {
    /// It never had a stream, or does not know what a report is.
    #[default]
    Unknown,
    Connected,
    Away(Instant),
}

// === impl Ring ===

impl Ring {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            last: 0,
            reports: VecDeque::new(),
            bytes: 0,
            planes: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Numbers a report. `events`: how long before `ended` they were.
    pub(super) fn push(
        &mut self,
        edges: Vec<EdgeTraffic>,
        events: Vec<ProxyEvent>,
        began: Instant,
        ended: Instant,
    ) -> u64 {
        self.last += 1;
        let kept = Kept::new(self.epoch, self.last, edges, events, began, ended);
        self.bytes += kept.encoded.len();
        self.reports.push_back(kept);
        self.release(ended);
        while self.reports.len() > MAX_REPORTS {
            if !self.merge() {
                self.drop_oldest();
            }
        }
        while self.bytes > MAX_BYTES {
            self.drop_oldest();
        }
        self.last
    }

    /// The first report after `sequence`, as it is to be sent to this control plane now.
    pub(super) fn after(&mut self, plane: usize, sequence: u64, now: Instant) -> Option<pb::TrafficReport> {
        let refused = self.planes.get(plane).map_or(&[][..], |plane| plane.refused.as_slice());
        let mut next = self.reports.partition_point(|kept| kept.sequence <= sequence);
        while refused.contains(&self.reports.get(next)?.sequence) {
            next += 1;
        }
        let kept = self.reports.get_mut(next)?;
        let mut report = kept.decode()?;
        kept.sent = true;
        let ago = millis(now.saturating_duration_since(kept.ended));
        report.ended_ago_ms += ago;
        report.events.iter_mut().for_each(|event| event.ago_ms += ago);
        Some(report)
    }

    pub(super) fn on_connected(&mut self, plane: usize) {
        self.plane(plane).standing = Standing::Connected;
    }

    /// The stream to a control plane has ended.
    pub(super) fn on_lost(&mut self, plane: usize, now: Instant) {
        let plane = self.plane(plane);
        if matches!(plane.standing, Standing::Connected) {
            plane.standing = Standing::Away(now);
        }
        self.release(now);
    }

    /// It does not know what a report is.
    pub(super) fn on_unable(&mut self, plane: usize) {
        self.plane(plane).standing = Standing::Unknown;
    }

    /// All reports up to this number are kept there.
    pub(super) fn on_ack(&mut self, plane: usize, sequence: u64, now: Instant) {
        let sequence = sequence.min(self.last);
        let plane = self.plane(plane);
        plane.acknowledged = plane.acknowledged.max(sequence);
        self.release(now);
    }

    /// It will not have this one, nor would it the next time.
    pub(super) fn on_refused(&mut self, plane: usize, sequence: u64, now: Instant) {
        self.counts.refused += 1;
        let oldest = self.reports.front().map_or(u64::MAX, |kept| kept.sequence);
        let refused = &mut self.plane(plane).refused;
        refused.retain(|sequence| *sequence >= oldest);
        refused.push(sequence);
        self.on_ack(plane, sequence, now);
    }

    /// Whether a control plane that is connected lacks something.
    pub(super) fn is_owed(&self) -> bool {
        let Some(newest) = self.reports.back() else { return false };
        let connected = |plane: &&Plane| matches!(plane.standing, Standing::Connected);
        self.planes.iter().filter(connected).any(|plane| plane.acknowledged < newest.sequence)
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn len(&self) -> usize {
        self.reports.len()
    }

    /// Control planes with a stream.
    #[cfg(test)]
    pub(super) fn connected(&self) -> usize {
        self.planes.iter().filter(|plane| matches!(plane.standing, Standing::Connected)).count()
    }

    fn plane(&mut self, plane: usize) -> &mut Plane {
        if self.planes.len() <= plane {
            self.planes.resize_with(plane + 1, Plane::default);
        }
        &mut self.planes[plane]
    }

    /// Forgets what nobody needs any more.
    fn release(&mut self, now: Instant) {
        while let Some(oldest) = self.reports.front() {
            let has = |plane: &Plane| plane.acknowledged >= oldest.sequence;
            if !self.planes.iter().any(has) || self.planes.iter().any(|one| one.is_wanted(now) && !has(one)) {
                return;
            }
            self.counts.acknowledged += 1;
            self.pop();
        }
    }

    /// Makes one of two neighbours that were never sent. `false`: there are none that may become one.
    fn merge(&mut self) -> bool {
        let pairs = self.reports.iter().zip(self.reports.iter().skip(1)).enumerate();
        let span = |first: &Kept, second: &Kept| second.ended.saturating_duration_since(first.began);
        let least = pairs
            .filter(|(_, (first, second))| !first.sent && !second.sent)
            .map(|(index, (first, second))| (span(first, second), index))
            .min();
        let Some((span, index)) = least else { return false };
        if span > MAX_REPORT_LENGTH {
            return false;
        }
        let (first, second) = (&self.reports[index], &self.reports[index + 1]);
        let merged = first.merged(second).filter(|merged| merged.encoded.len() <= MAX_REQUEST_BYTES);
        let Some(merged) = merged else { return false };
        self.bytes += merged.encoded.len();
        self.bytes -= first.encoded.len() + second.encoded.len();
        self.counts.merged += 1;
        self.reports[index] = merged;
        self.reports.remove(index + 1);
        true
    }

    fn drop_oldest(&mut self) {
        self.counts.dropped += 1;
        self.pop();
    }

    fn pop(&mut self) {
        if let Some(kept) = self.reports.pop_front() {
            self.bytes -= kept.encoded.len();
        }
    }
}

// === impl Kept ===

impl Kept {
    fn new(
        epoch: u64,
        sequence: u64,
        edges: Vec<EdgeTraffic>,
        events: Vec<ProxyEvent>,
        began: Instant,
        ended: Instant,
    ) -> Self {
        let length = ended.saturating_duration_since(began);
        let report = TrafficReport {
            epoch,
            sequence,
            length: length.clamp(Duration::from_millis(1), MAX_REPORT_LENGTH),
            ended_ago: Duration::ZERO,
            edges,
            events,
        };
        let encoded = convert::report_to_pb(&report).encode_to_vec();
        Self { sequence, began, ended, encoded, sent: false }
    }

    /// `None` never happens: it was encoded here.
    fn decode(&self) -> Option<pb::TrafficReport> {
        pb::TrafficReport::decode(self.encoded.as_slice()).ok()
    }

    /// This report and the next one as one, under the number of the next one.
    fn merged(&self, next: &Self) -> Option<Self> {
        let spec = |kept: &Self| convert::report(kept.decode()?).ok();
        let (first, second) = (spec(self)?, spec(next)?);
        let edges = fold::edges(first.edges.into_iter().chain(second.edges), MAX_REPORT_EDGES);
        let later = next.ended.saturating_duration_since(self.ended);
        let earlier = first.events.into_iter().map(|event| ProxyEvent { ago: event.ago + later, ..event });
        let mut events: Vec<_> = earlier.chain(second.events).collect();
        events.drain(..events.len().saturating_sub(MAX_REPORT_EVENTS));
        Some(Self::new(second.epoch, next.sequence, edges, events, self.began, next.ended))
    }
}

// === impl Plane ===

impl Plane {
    /// Whether reports are kept for it.
    fn is_wanted(&self, now: Instant) -> bool {
        match self.standing {
            Standing::Unknown => false,
            Standing::Connected => true,
            Standing::Away(since) => now.saturating_duration_since(since) < AWAY,
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
