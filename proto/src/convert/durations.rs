//! Histograms of durations on the wire: HdrHistogram's V2 encoding, uncompressed, so that whoever gets hold of one can
//! read it with the library of any language.
//!
//! ```text
//!   cookie 4 · length of what follows the head 4 · 0 4 · digits 4 · lowest 8 · highest 8 · 1.0 8      (big-endian)
//!   a number for each bucket: n ≥ 0: counted n times; n < 0: the next -n buckets are empty          (ZigZag LEB128)
//! ```
//!
//! A number has nine bytes at most, the last of which has eight bits.

use super::fields::Fields;
use crate::spec::Durations;

const COOKIE: u32 = 0x1c84_9313;
const DIGITS: u32 = 2;
const LOWEST: u64 = 1;
const HEAD: usize = 40;
/// The last value of the histogram's last power of two, which is what a sender's library says that it could hold.
const HIGHEST: u64 = (Durations::MOST_US + 1).next_power_of_two() - 1;

/// `None` was refused.
#[inline]
pub(super) fn durations(fields: &mut Fields, bytes: &[u8]) -> Option<Durations> {
    if bytes.is_empty() {
        return Some(Durations::new());
    }
    read(bytes).map_err(|why| fields.refuse(why)).ok()
}

#[inline]
fn read(bytes: &[u8]) -> Result<Durations, String> {
    let Some((head, counts)) = bytes.split_at_checked(HEAD) else {
        return Err(format!("is no histogram: it has {} bytes", bytes.len()));
    };
    let number = |at: usize, length: usize| {
        head[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let (cookie, length, offset, digits) = (number(0, 4), number(4, 4), number(8, 4), number(12, 4));
    let (lowest, highest, ratio) = (number(16, 8), number(24, 8), number(32, 8));
    if cookie != u64::from(COOKIE) {
        return Err(format!("is no histogram: its cookie is {cookie:#x}"));
    }
    if (digits, lowest) != (u64::from(DIGITS), LOWEST) || !(2 * LOWEST..=HIGHEST).contains(&highest) {
        return Err(format!("has other bounds: {lowest} to {highest} with {digits} digits"));
    }
    if offset != 0 || ratio != 1f64.to_bits() {
        return Err("is no histogram: it has features that are not taken".to_owned());
    }
    if u64::try_from(counts.len()) != Ok(length) {
        return Err(format!("is no histogram: {} bytes in place of {length}", counts.len()));
    }
    let mut list = Vec::with_capacity(counts.len().div_ceil(2));
    let (mut rest, mut bucket) = (counts, 0u64);
    let (first, last) = (Durations::bucket_of(Durations::LEAST_US), Durations::bucket_of(Durations::MOST_US));
    while !rest.is_empty() {
        let count = read_number(&mut rest).ok_or("is no histogram: it ends in the middle of a number")?;
        let Ok(count) = u64::try_from(count) else {
            bucket = bucket.saturating_add(count.unsigned_abs());
            continue;
        };
        if count > 0 {
            let legal = u16::try_from(bucket).ok().filter(|bucket| (first..=last).contains(bucket));
            list.push((legal.ok_or("has a duration outside of its bounds")?, count));
        }
        bucket = bucket.saturating_add(1);
    }
    Ok(Durations::of_list(list))
}

/// Nothing without a duration.
pub(super) fn durations_to_bytes(from: &Durations) -> Vec<u8> {
    let Some(longest) = from.buckets().next_back().map(|(bucket, _)| bucket) else { return Vec::new() };
    let mut bytes = Vec::with_capacity(HEAD + 2 * usize::from(longest / 8));
    bytes.extend(COOKIE.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(DIGITS.to_be_bytes());
    bytes.extend(LOWEST.to_be_bytes());
    // The end of its power of two, as the library has it.
    let highest = (Durations::micros_of(longest) + 1).next_power_of_two().max(256) - 1;
    bytes.extend(highest.to_be_bytes());
    bytes.extend(1f64.to_be_bytes());
    let mut next = 0;
    for (bucket, count) in from.buckets() {
        match i64::from(bucket - next) {
            0 => {}
            1 => write_number(&mut bytes, 0),
            empty => write_number(&mut bytes, -empty),
        }
        write_number(&mut bytes, i64::try_from(count).unwrap_or(i64::MAX));
        next = bucket + 1;
    }
    let length = u32::try_from(bytes.len() - HEAD).unwrap_or(u32::MAX);
    bytes[4..8].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn write_number(bytes: &mut Vec<u8>, number: i64) {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    for _ in 0..8 {
        if zigzag < 0x80 {
            break;
        }
        bytes.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    bytes.push(zigzag as u8);
}

#[inline]
fn read_number(rest: &mut &[u8]) -> Option<i64> {
    let mut zigzag = 0;
    for index in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        if index == 8 || *byte < 0x80 {
            zigzag |= u64::from(*byte) << (7 * index);
            break;
        }
        zigzag |= u64::from(*byte & 0x7f) << (7 * index);
    }
    Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
}
