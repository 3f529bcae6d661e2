//! Hex digits, in lower case only, eight at a time: they are read and written per request.
//!
//! Eight digits are the bytes of one number, the first one in front, and all of them are worked on at once. Nothing ever
//! flows from one byte into the next: the sums stay below 256.

/// Of 1, in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// Exactly 16 digits.
pub(super) fn parse(digits: &[u8]) -> Option<u64> {
    let (high, low) = digits.split_first_chunk()?;
    Some(u64::from(parse_half(*high)?) << 32 | u64::from(parse_half(low.try_into().ok()?)?))
}

/// Exactly 2 digits.
pub(super) fn parse_byte(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    parse_half([b'0', b'0', b'0', b'0', b'0', b'0', *high, *low]).map(|number| number as u8)
}

pub(super) fn format(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&format_half((number >> 32) as u32));
    digits[8..].copy_from_slice(&format_half(number as u32));
    digits
}

fn parse_half(digits: [u8; 8]) -> Option<u32> {
    let digits = u64::from_be_bytes(digits);
    // A letter has bit 6, and counts from 1 in its low bits where it is worth 10.
    let mut values = (digits & (ONES * 0x0f)) + (digits >> 6 & ONES) * 9;
    if values & (ONES * 0xf0) != 0 || spelled(values) != digits {
        return None;
    }
    values = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    values = (values | values >> 8) & 0x0000_ffff_0000_ffff;
    Some((values | values >> 16) as u32)
}

fn format_half(number: u32) -> [u8; 8] {
    let mut values = u64::from(number);
    values = (values | values << 16) & 0x0000_ffff_0000_ffff;
    values = (values | values << 8) & 0x00ff_00ff_00ff_00ff;
    values = (values | values << 4) & (ONES * 0x0f);
    spelled(values).to_be_bytes()
}

/// A value below 16 in each byte, as its digit.
fn spelled(values: u64) -> u64 {
    let letters = (values + ONES * 6) >> 4 & ONES;
    values + ONES * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)
}
