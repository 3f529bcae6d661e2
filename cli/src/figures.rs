//! How figures of traffic are written: as short as they can be told apart, so that a row of them fits a terminal.
//!
//! Names come from configuration and from other machines: what could move a terminal's cursor is shown as `�`.

use jiff::Timestamp;
use ratatui::text::Span;

/// What is shown where there is nothing.
pub(crate) const NOTHING: &str = "-";
/// Characters of a text that are kept: twice what the longest name, a SPIFFE id, may have.
const MAX_TEXT: usize = 4096;

/// Microseconds, in two digits where they are fractions: the histograms know no more.
pub(crate) fn duration(micros: Option<u64>) -> String {
    let Some(micros) = micros else { return NOTHING.to_owned() };
    let value = micros as f64;
    match micros {
        0..1000 => format!("{micros}us"),
        1000..9_950 => format!("{:.1}ms", value / 1e3),
        9_950..999_500 => format!("{:.0}ms", value / 1e3),
        999_500..9_950_000 => format!("{:.1}s", value / 1e6),
        9_950_000..119_500_000 => format!("{:.0}s", value / 1e6),
        119_500_000.. => format!("{:.1}min", value / 6e7),
    }
}

/// Of 0 to 1. Rounded down, so that 100 % means that nothing failed, and 0 % that everything did.
pub(crate) fn success(share: Option<f64>) -> String {
    match share {
        None => NOTHING.to_owned(),
        Some(share) if share >= 1.0 => "100 %".to_owned(),
        Some(share) if share <= 0.0 => "0 %".to_owned(),
        Some(share) => {
            // 0.9998 is a little less than that in binary.
            let hundredths = (share * 1e4 + 1e-6).floor().clamp(1.0, 9999.0);
            format!("{:.2} %", hundredths / 100.0)
        }
    }
}

/// Per second.
pub(crate) fn rate(rate: f64) -> String {
    match rate {
        _ if rate <= 0.0 => "0".to_owned(),
        _ if rate < 0.05 => "<0.1".to_owned(),
        _ if rate < 9.95 => format!("{rate:.1}"),
        _ => count(rate.round() as u64),
    }
}

pub(crate) fn count(count: u64) -> String {
    let value = count as f64;
    match count {
        0..1000 => count.to_string(),
        1000..10_000 => format!("{},{:03}", count / 1000, count % 1000),
        10_000..999_500 => format!("{:.0}k", value / 1e3),
        999_500..9_950_000 => format!("{:.1}M", value / 1e6),
        9_950_000..999_500_000 => format!("{:.0}M", value / 1e6),
        999_500_000.. => format!("{:.1}G", value / 1e9),
    }
}

/// How a rate has moved: `+12`, `-3.4`, or `=` if it cannot be seen in what [`rate`] writes.
pub(crate) fn change(before: f64, now: f64) -> String {
    if rate(before) == rate(now) {
        return "=".to_owned();
    }
    let sign = if now > before { '+' } else { '-' };
    format!("{sign}{}", rate((now - before).abs()))
}

/// `shop/web` of `spiffe://TD/ns/shop/sa/web`, with `@TD` where that is not `home`; anything else as it is.
pub(crate) fn identity(id: &str, home: Option<&str>) -> String {
    let short = || {
        let (domain, path) = id.strip_prefix("spiffe://")?.split_once('/')?;
        let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
        Some((domain, format!("{namespace}/{account}")))
    };
    match short() {
        Some((domain, short)) if home == Some(domain) => short,
        Some((domain, short)) => format!("{short}@{domain}"),
        None => id.to_owned(),
    }
}

/// The trust domain of all `ids`, if it is one.
pub(crate) fn trust_domain<'a>(ids: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let domain = |id: &'a str| Some(id.strip_prefix("spiffe://")?.split_once('/')?.0);
    let mut domains = ids.into_iter().filter_map(domain);
    let first = domains.next()?;
    domains.all(|other| other == first).then_some(first)
}

/// Cipher and group of `TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519MLKEM768`: the mesh speaks TLS 1.3 only.
pub(crate) fn security(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| *word != "TLSv1_3");
    let words = words.map(|word| match word.strip_prefix("TLS13_") {
        Some(cipher) => cipher.trim_end_matches("_SHA256").trim_end_matches("_SHA384").replace('_', "-"),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// `20:01:05` of a time of the day `today` is on, otherwise with the date.
pub(crate) fn clock(at_ms: i64, today: Option<i64>) -> String {
    let Ok(at) = Timestamp::from_millisecond(at_ms) else { return NOTHING.to_owned() };
    let day = |ms: i64| ms.div_euclid(86_400_000);
    match today {
        Some(today) if day(today) == day(at_ms) => at.strftime("%H:%M:%S").to_string(),
        Some(_) => at.strftime("%m-%d %H:%M").to_string(),
        None => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }
}

pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

// === fitting ===

/// Columns of a terminal.
pub(crate) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// What a terminal shows of it and nothing that it obeys; no more than anybody reads.
pub(crate) fn clean(text: &str) -> String {
    let mut chars = text.chars();
    let head = chars.by_ref().take(MAX_TEXT).map(|c| if is_hostile(c) { '\u{fffd}' } else { c });
    let mut head: String = head.collect();
    if chars.next().is_some() {
        head.push('…');
    }
    head
}

/// Whether a terminal would obey it, or show nothing: controls, marks of direction, what has no width.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// At most `room` wide, without the middle: names that have much in common differ at their ends.
pub(crate) fn shorten(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    if room < 3 {
        return text.chars().filter(|c| width(c.encode_utf8(&mut [0; 4])) == 1).take(room).collect();
    }
    let head = (room - 1) / 2;
    let start = take(text.chars(), head);
    let end = take(text.chars().rev(), room - 1 - width(&start));
    start + "…" + &end.chars().rev().collect::<String>()
}

fn take(chars: impl Iterator<Item = char>, room: usize) -> String {
    let mut taken = String::new();
    for c in chars {
        taken.push(c);
        if width(&taken) > room {
            taken.pop();
            break;
        }
    }
    taken
}

/// Lines of at most `room`, broken between words (within one that is longer), all but the first indented.
pub(crate) fn wrap(text: &str, room: usize, indent: usize) -> Vec<String> {
    let room = room.max(indent + 8);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let mut word = word;
        if !line.trim().is_empty() && width(&line) + 1 + width(word) > room {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !line.is_empty() && !line.trim().is_empty() {
            line.push(' ');
        }
        while width(&line) + width(word) > room {
            let part = take(word.chars(), room - width(&line));
            if part.is_empty() {
                break;
            }
            word = &word[part.len()..];
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)) + &part);
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (micros, told) in [
            (None, "-"),
            (Some(0), "0us"),
            (Some(10), "10us"),
            (Some(999), "999us"),
            (Some(1000), "1.0ms"),
            (Some(4_560), "4.6ms"),
            (Some(9_949), "9.9ms"),
            (Some(9_950), "10ms"),
            (Some(45_600), "46ms"),
            (Some(999_499), "999ms"),
            (Some(999_500), "1.0s"),
            (Some(9_949_999), "9.9s"),
            (Some(12_345_678), "12s"),
            (Some(119_499_999), "119s"),
            (Some(150_000_000), "2.5min"),
            (Some(600_000_000), "10.0min"),
        ] {
            assert_eq!(duration(micros), told, "{micros:?}");
        }
    }

    #[test]
    fn success_is_never_rounded_up_to_all() {
        for (share, told) in [
            (None, "-"),
            (Some(1.0), "100 %"),
            (Some(0.999_999_9), "99.99 %"),
            (Some(0.9998), "99.98 %"),
            (Some(0.99985), "99.98 %"),
            (Some(0.5), "50.00 %"),
            (Some(0.07), "7.00 %"),
            (Some(0.000_001), "0.01 %"),
            (Some(0.0), "0 %"),
        ] {
            assert_eq!(success(share), told, "{share:?}");
        }
    }

    #[test]
    fn rates_and_counts_stay_short() {
        for (value, told) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.05, "0.1"),
            (9.94, "9.9"),
            (9.95, "10"),
            (999.4, "999"),
            (1234.4, "1,234"),
            (9_999.4, "9,999"),
            (12_345.0, "12k"),
            (999_600.0, "1.0M"),
            (45_000_000.0, "45M"),
            (2.5e9, "2.5G"),
        ] {
            assert_eq!(rate(value), told, "{value}");
            assert!(rate(value).len() <= 5);
        }
        for (before, now, told) in
            [(10.0, 10.2, "="), (10.0, 13.0, "+3.0"), (100.0, 50.0, "-50"), (0.0, 0.0, "=")]
        {
            assert_eq!(change(before, now), told, "{before} {now}");
        }
    }

    #[test]
    fn identities_are_short_at_home() {
        let id = "spiffe://mesh.local/ns/shop/sa/web";
        assert_eq!(identity(id, Some("mesh.local")), "shop/web");
        assert_eq!(identity(id, Some("other")), "shop/web@mesh.local");
        assert_eq!(identity(id, None), "shop/web@mesh.local");
        assert_eq!(identity("spiffe://mesh.local/gate", Some("mesh.local")), "spiffe://mesh.local/gate");
        assert_eq!(trust_domain([id, "spiffe://mesh.local/x"]), Some("mesh.local"));
        assert_eq!(trust_domain([id, "spiffe://b/x"]), None);
        assert_eq!(trust_domain(["nothing"]), None);
    }

    #[test]
    fn security_is_cipher_and_group() {
        for (text, told) in [
            ("TLSv1_3 TLS13_AES_128_GCM_SHA256 X25519MLKEM768", "AES-128-GCM X25519MLKEM768"),
            ("TLSv1_3 TLS13_CHACHA20_POLY1305_SHA256 X25519", "CHACHA20-POLY1305 X25519"),
            ("TLSv1_2 SOMETHING_ELSE secp256r1", "TLSv1_2 SOMETHING_ELSE secp256r1"),
            ("", ""),
        ] {
            assert_eq!(security(text), told);
        }
    }

    #[test]
    fn names_lose_their_middle() {
        for (text, room, told) in [
            ("shop/orders:80", 14, "shop/orders:80"),
            ("shop/orders:80", 13, "shop/o…ers:80"),
            ("shop/orders:80", 4, "s…80"),
            ("shop/orders:80", 3, "s…0"),
            ("shop/orders:80", 2, "sh"),
            ("shop/orders:80", 0, ""),
            ("日本語日本語", 7, "日…本語"),
        ] {
            assert_eq!(shorten(text, room), told, "{room}");
        }
        for room in 0..20 {
            assert!(width(&shorten("a日b本c語d日e本f語", room)) <= room, "{room}");
        }
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\r\n\u{202e}c\u{7f}é"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}c\u{fffd}é");
        let long = clean(&"é".repeat(1 << 20));
        assert!(long.ends_with("é…") && long.chars().count() == MAX_TEXT + 1);
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("short", 20, 4), ["short"]);
        assert_eq!(wrap("one two three four", 12, 2), ["one two", "  three four"]);
        assert_eq!(wrap("abcdefghijklmnopqrstuvwxyz", 12, 2), ["abcdefghijkl", "  mnopqrstuv", "  wxyz"]);
        for room in 10..40 {
            for line in wrap(&"some words of averagelengthandalongone ".repeat(9), room, 2) {
                assert!(width(&line) <= room, "{room}: {line:?}");
            }
        }
    }

    #[test]
    fn times_say_the_day_only_if_it_is_another() {
        let at = 1_795_291_265_000; // 2026-11-21T20:01:05Z
        assert_eq!(clock(at, Some(at + 3_600_000)), "20:01:05");
        assert_eq!(clock(at, Some(at + 86_400_000)), "11-21 20:01");
        assert_eq!(clock(at, None), "2026-11-21T20:01:05Z");
        assert_eq!(clock(i64::MAX, None), "-");
    }
}
