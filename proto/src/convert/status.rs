//! Lists of status codes, as many policies have them.

use super::fields::Fields;
use crate::{
    limits::{MAX_GRPC_CODES, MAX_STATUS_RANGES},
    pb,
    spec::StatusRange,
};

pub(super) fn ranges(fields: &mut Fields, name: &str, from: Vec<pb::StatusRange>) -> Vec<StatusRange> {
    fields.list(name, from, MAX_STATUS_RANGES, |fields, from| {
        let mut end = |name, number| fields.at(name, |fields| fields.within(number, 100..=599));
        let (first, last) = (end("first", from.first), end("last", from.last));
        if first > last {
            fields.refuse(format!("{first} is above {last}"));
        }
        Some(StatusRange::new(u16::try_from(first).ok()?, u16::try_from(last).ok()?))
    })
}

/// OK is no failure, so it is in no list.
pub(super) fn codes(fields: &mut Fields, name: &str, from: Vec<u32>) -> Vec<u8> {
    fields.list(name, from, MAX_GRPC_CODES, |fields, code| u8::try_from(fields.within(code, 1..=16)).ok())
}

pub(super) fn ranges_to_pb(from: &[StatusRange]) -> Vec<pb::StatusRange> {
    let range = |range: &StatusRange| pb::StatusRange { first: range.first.into(), last: range.last.into() };
    from.iter().map(range).collect()
}

pub(super) fn codes_to_pb(from: &[u8]) -> Vec<u32> {
    from.iter().copied().map(u32::from).collect()
}
