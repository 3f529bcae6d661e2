//! What goes to disk each second, and comes back from there: only what came since the last time.
//!
//! A record names series and outcomes by numbers, which it or an earlier record of the same file has said: so a file is
//! read from its beginning, and by itself. Nothing here touches a file: `recorder/log.rs` does.

use std::{collections::HashMap, ops::Range, sync::Arc};

use bytes::Bytes;
use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{EdgeKey, Side};
use prost::Message as _;

use super::{
    History, Mark, Traffic,
    outcomes::{Outcome, OutcomeId},
    series::{Series, SeriesKey},
    slot::Parts,
};

/// Traffic of one series in one second.
#[derive(Debug)]
struct Entry {
    serial: u64,
    key: Arc<SeriesKey>,
    security: Option<Arc<str>>,
    second: u64,
    is_folded: bool,
    traffic: Range<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Unsaved {
    entries: Vec<Entry>,
    /// Their traffic, one behind the other.
    bytes: Vec<u8>,
}

/// What one record is made of.
#[derive(Debug)]
pub struct Batch {
    at: u64,
    marks: Vec<(SpiffeId, Mark)>,
    unsaved: Unsaved,
    outcomes: Vec<Outcome>,
}

/// Makes the records of one file.
#[derive(Debug, Default)]
pub struct Encoder {
    /// By serial number, and how its connections were secured.
    series: HashMap<(u64, Option<Arc<str>>), u32>,
    outcomes: usize,
}

/// Reads the records of one file.
#[derive(Debug, Default)]
pub struct Decoder {
    series: Vec<(SeriesKey, Option<Arc<str>>)>,
    outcomes: Vec<Outcome>,
}

/// A record that was read. Goes to [`History::restore`].
#[derive(Debug)]
pub struct Saved {
    /// When it was written: by the history's clock, and in milliseconds since 1970 by that of the machine.
    pub at: u64,
    pub wall: u64,
    marks: Vec<(SpiffeId, Mark)>,
    entries: Vec<wire::Entry>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("is no record: {0}")]
    Broken(#[from] prost::DecodeError),
    #[error("names what no record of the file has said")]
    Unknown,
    #[error("has the identity {0:?}")]
    Identity(String),
}

mod wire {
    use bytes::Bytes;

    /// Of a record, without the rest.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Times {
        #[prost(uint64, tag = "1")]
        pub(super) at_ms: u64,
        #[prost(uint64, tag = "2")]
        pub(super) wall_ms: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Record {
        #[prost(uint64, tag = "1")]
        pub(super) at_ms: u64,
        #[prost(uint64, tag = "2")]
        pub(super) wall_ms: u64,
        #[prost(message, repeated, tag = "3")]
        pub(super) series: Vec<Series>,
        #[prost(message, repeated, tag = "4")]
        pub(super) outcomes: Vec<Outcome>,
        #[prost(message, repeated, tag = "5")]
        pub(super) marks: Vec<Mark>,
        #[prost(message, repeated, tag = "6")]
        pub(super) entries: Vec<Entry>,
    }

    /// The next number's.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Series {
        #[prost(string, tag = "1")]
        pub(super) reporter: String,
        #[prost(bool, tag = "2")]
        pub(super) inbound: bool,
        #[prost(string, tag = "3")]
        pub(super) service: String,
        #[prost(string, tag = "4")]
        pub(super) route: String,
        #[prost(string, optional, tag = "5")]
        pub(super) peer: Option<String>,
        #[prost(string, optional, tag = "6")]
        pub(super) security: Option<String>,
    }

    /// The next number's.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Outcome {
        #[prost(uint32, tag = "1")]
        pub(super) status_class: u32,
        #[prost(uint32, optional, tag = "2")]
        pub(super) grpc_status: Option<u32>,
        #[prost(string, tag = "3")]
        pub(super) reason: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Mark {
        #[prost(string, tag = "1")]
        pub(super) reporter: String,
        #[prost(fixed64, tag = "2")]
        pub(super) epoch: u64,
        #[prost(uint64, tag = "3")]
        pub(super) highest: u64,
        #[prost(fixed64, tag = "4")]
        pub(super) taken_low: u64,
        #[prost(fixed64, tag = "5")]
        pub(super) taken_high: u64,
        #[prost(uint64, tag = "6")]
        pub(super) first_ms: u64,
        #[prost(uint64, tag = "7")]
        pub(super) last_ms: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(uint32, tag = "1")]
        pub(super) series: u32,
        /// Before the record's time.
        #[prost(uint64, tag = "2")]
        pub(super) seconds_ago: u64,
        #[prost(bytes = "bytes", tag = "3")]
        pub(super) traffic: Bytes,
        /// Of others that there was no room to keep apart.
        #[prost(bool, tag = "4")]
        pub(super) is_folded: bool,
    }
}

// === impl Unsaved ===

impl Unsaved {
    pub(super) fn push(
        &mut self,
        series: &Series,
        security: Option<Arc<str>>,
        second: u64,
        is_folded: bool,
        traffic: &[u8],
    ) {
        let begins = self.bytes.len();
        self.bytes.extend_from_slice(traffic);
        let (serial, key) = (series.serial, series.key.clone());
        let traffic = begins..self.bytes.len();
        self.entries.push(Entry { serial, key, security, second, is_folded, traffic });
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>() + self.bytes.len()
    }
}

// === impl History ===

impl History {
    /// What came since the last call; of `all_marks` also what came before, for a file that begins. `None`: nothing.
    pub fn take_unsaved(&mut self, all_marks: bool) -> Option<Batch> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let marks = self.marks.changed(all_marks);
        let outcomes = self.outcomes.all().to_vec();
        let is_empty = unsaved.entries.is_empty() && marks.is_empty();
        (!is_empty).then_some(Batch { at: self.now, marks, unsaved, outcomes })
    }

    /// Takes back what an earlier process has saved.
    pub fn restore(&mut self, saved: &Saved, of: &Decoder) {
        for (reporter, mark) in &saved.marks {
            self.marks.restore(reporter, *mark);
        }
        let numbers: Vec<OutcomeId> =
            of.outcomes.iter().map(|outcome| self.outcomes.number_of(outcome.clone())).collect();
        let saves = std::mem::replace(&mut self.saves, false);
        let mut parts = std::mem::take(&mut self.parts);
        let now = saved.at / 1000;
        for wire::Entry { series, seconds_ago, traffic, is_folded } in &saved.entries {
            let Some((key, security)) = of.series.get(*series as usize) else { continue };
            parts.clear();
            parts.add(traffic);
            for (number, _) in &mut parts.outcomes {
                *number = numbers.get(usize::from(number.0)).copied().unwrap_or(*number);
            }
            parts.outcomes.sort_unstable();
            let (second, security) = (now.saturating_sub(*seconds_ago), security.as_ref());
            let traffic = Traffic { second, security, parts: &parts, is_folded: *is_folded };
            self.add(&key.reporter, &key.edge, traffic);
        }
        self.parts = parts;
        self.saves = saves;
        self.fit();
    }
}

// === impl Batch ===

impl Batch {
    pub fn at(&self) -> u64 {
        self.at
    }
}

// === impl Unsaved ===

impl Unsaved {
    /// What there is of each series and second: replicas of a workload have one identity, and their traffic is added up.
    fn each(self, mut tell: impl FnMut(Entry, Bytes)) {
        let Self { mut entries, bytes } = self;
        // It is stable: the latest way in which connections were secured is the one that stays.
        entries.sort_by_key(|entry| (entry.serial, entry.second));
        let bytes = Bytes::from(bytes);
        let mut sum = Parts::default();
        let mut entries = entries.into_iter().peekable();
        while let Some(mut entry) = entries.next() {
            let mut is_sum = false;
            let place = (entry.serial, entry.second);
            while let Some(next) = entries.next_if(|next| (next.serial, next.second) == place) {
                if !is_sum {
                    is_sum = true;
                    sum.clear();
                    sum.add(&bytes[entry.traffic.clone()]);
                }
                sum.add(&bytes[next.traffic.clone()]);
                entry.security = next.security.or_else(|| entry.security.take());
                entry.is_folded |= next.is_folded;
            }
            let traffic = if is_sum {
                let mut written = Vec::new();
                sum.write(&mut written);
                written.into()
            } else {
                bytes.slice(entry.traffic.clone())
            };
            tell(entry, traffic);
        }
    }
}

// === impl Encoder ===

impl Encoder {
    /// A record. Whoever cannot write it begins a new file with a new encoder: this one takes it for written.
    pub fn encode(&mut self, batch: Batch, wall: u64) -> Vec<u8> {
        let mut record = wire::Record { at_ms: batch.at, wall_ms: wall, ..Default::default() };
        for outcome in batch.outcomes.iter().skip(self.outcomes) {
            record.outcomes.push(wire::Outcome {
                status_class: outcome.status_class.into(),
                grpc_status: outcome.grpc_status.map(u32::from),
                reason: outcome.reason.to_string(),
            });
        }
        self.outcomes = self.outcomes.max(batch.outcomes.len());
        record.marks = batch
            .marks
            .iter()
            .map(|(reporter, mark)| wire::Mark {
                reporter: reporter.to_string(),
                epoch: mark.epoch,
                highest: mark.highest,
                taken_low: mark.taken as u64,
                taken_high: (mark.taken >> 64) as u64,
                first_ms: mark.first,
                last_ms: mark.last,
            })
            .collect();
        let now = batch.at / 1000;
        batch.unsaved.each(|entry, traffic| {
            let Entry { serial, key, security, second, is_folded, .. } = entry;
            let next = self.series.len() as u32;
            let series = *self.series.entry((serial, security)).or_insert_with_key(|(_, security)| {
                let SeriesKey { reporter, edge: EdgeKey { side, service, route, peer } } = &*key;
                record.series.push(wire::Series {
                    reporter: reporter.to_string(),
                    inbound: *side == Side::Inbound,
                    service: service.to_string(),
                    route: route.to_string(),
                    peer: peer.as_ref().map(ToString::to_string),
                    security: security.as_deref().map(ToOwned::to_owned),
                });
                next
            });
            let seconds_ago = now.saturating_sub(second);
            record.entries.push(wire::Entry { series, seconds_ago, traffic, is_folded });
        });
        record.encode_to_vec()
    }
}

// === impl Decoder ===

impl Decoder {
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Saved, RecordError> {
        let record = wire::Record::decode(bytes)?;
        for outcome in record.outcomes {
            self.outcomes.push(Outcome {
                status_class: outcome.status_class.try_into().unwrap_or(0),
                grpc_status: outcome.grpc_status.and_then(|status| status.try_into().ok()),
                reason: outcome.reason.into(),
            });
        }
        for series in record.series {
            let side = if series.inbound { Side::Inbound } else { Side::Outbound };
            let peer = series.peer.map(identity).transpose()?;
            let edge = EdgeKey { side, service: series.service.into(), route: series.route.into(), peer };
            let key = SeriesKey { reporter: identity(series.reporter)?, edge };
            self.series.push((key, series.security.map(Into::into)));
        }
        let marks = record.marks.into_iter().map(|mark| {
            let taken = u128::from(mark.taken_low) | u128::from(mark.taken_high) << 64;
            let known = Mark::new(mark.epoch, mark.highest, taken, mark.first_ms, mark.last_ms);
            Ok((identity(mark.reporter)?, known))
        });
        let marks = marks.collect::<Result<_, RecordError>>()?;
        if record.entries.iter().any(|entry| entry.series as usize >= self.series.len()) {
            return Err(RecordError::Unknown);
        }
        Ok(Saved { at: record.at_ms, wall: record.wall_ms, marks, entries: record.entries })
    }
}

/// When a record was written: by the history's clock, and in milliseconds since 1970.
pub fn times(bytes: &[u8]) -> Result<(u64, u64), RecordError> {
    let wire::Times { at_ms, wall_ms } = wire::Times::decode(bytes)?;
    Ok((at_ms, wall_ms))
}

fn identity(text: String) -> Result<SpiffeId, RecordError> {
    SpiffeId::parse(&text).map_err(|_| RecordError::Identity(text))
}
