//! Format strings: what is written, and that a reader gets it back.

use std::collections::BTreeSet;

use super::*;

fn format(source: &str) -> Format {
    Format::parse(source).unwrap_or_else(|what| panic!("{source}: {what}"))
}

fn shaped(source: &str, record: &RequestRecord<'_>) -> String {
    let (mut line, mut scratch) = (Vec::new(), format::Scratch::default());
    let at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_042);
    format(source).request(&mut line, &mut scratch, &mut encode::Clock::default(), at, record);
    String::from_utf8(line).unwrap()
}

/// Everything that can be known of a request.
fn full<'a>(peer: &'a SpiffeId, tries: &'a [Try]) -> RequestRecord<'a> {
    RequestRecord {
        grpc_status: Some(14),
        reason: Some(Reason::UpstreamReset),
        detail: "after 3 bytes",
        peer: Some(peer),
        route: "shop/r/0",
        endpoint: Some("10.0.0.8:80".parse().unwrap()),
        attempts: 4,
        tries,
        security: "TLSv1_3 AES X25519",
        trace: Some(traced()),
        handled: Handled {
            queued: Duration::from_micros(70),
            gave_up: Some("budget"),
            hedged: Some("won"),
            fallback: Some("stale"),
            cache: Some("miss"),
            limit: "T/a/b/c",
        },
        ..record()
    }
}

#[test]
fn each_field_of_a_request() {
    let (peer, tries) = (SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(), tries());
    let full = full(&peer, &tries);
    for (name, much, little) in [
        ("time", "2023-11-14T22:13:20.042Z", "2023-11-14T22:13:20.042Z"),
        ("kind", "request", "request"),
        ("direction", "inbound", "inbound"),
        ("protocol", "http1", "http1"),
        ("method", "GET", "GET"),
        ("authority", "orders.shop", "orders.shop"),
        ("path", "/cart", "/cart"),
        ("status", "200", "200"),
        ("grpc_status", "14", "-"),
        ("reason", "upstream-reset", "-"),
        ("detail", "\"after 3 bytes\"", "-"),
        ("peer", "spiffe://mesh.local/ns/shop/sa/orders", "-"),
        ("security", "\"TLSv1_3 AES X25519\"", "-"),
        ("caller", "10.0.0.1:40000", "10.0.0.1:40000"),
        ("service", ":8080", ":8080"),
        ("route", "shop/r/0", "-"),
        ("endpoint", "10.0.0.8:80", "-"),
        ("received", "0", "0"),
        ("sent", "12", "12"),
        ("connect_us", "250", "-"),
        ("connected_us", "-", "-"),
        ("first_byte_us", "1500", "1500"),
        ("duration_us", "2500", "2500"),
        ("attempts", "4", "1"),
        (
            "tries",
            "10.0.0.5:80/connect-failed/0/1200/1200,[fd00::6]:80/cancelled/1250/0/9000,\
             10.0.0.7:80/503/4000/300/400/hedge,10.0.0.8:80/grpc-14/5000/250/700/hedge",
            "-",
        ),
        ("queued_us", "70", "-"),
        ("gave_up", "budget", "-"),
        ("hedged", "won", "-"),
        ("fallback", "stale", "-"),
        ("cache", "miss", "-"),
        ("limit", "T/a/b/c", "-"),
        ("trace", "4bf92f3577b34da6a3ce929d0e0e4736", "-"),
        ("span", "00f067aa0ba902b7", "-"),
        ("sampled", "true", "-"),
        ("id", "0000000000000abc", "0000000000000abc"),
    ] {
        let source = format!("%{{{name}}}");
        assert_eq!(shaped(&source, &full), format!("{much}\n"), "{name}");
        assert_eq!(shaped(&source, &record()), format!("{little}\n"), "{name}");
    }
}

#[test]
fn each_field_of_a_connection() {
    let (mut line, mut scratch) = (Vec::new(), format::Scratch::default());
    format(
        "%{time} %{kind} %{direction} %{protocol} %{authority} %{reason} %{detail} %{peer} %{security} %{caller} %{service} \
         %{endpoint} %{received} %{sent} %{connected_us} %{duration_us} %{attempts} %{trace} %{span} %{id} %{method} \
         %{path} %{status} %{first_byte_us}",
    )
    .connection(&mut line, &mut scratch, &mut encode::Clock::default(), UNIX_EPOCH, &connection());
    assert_eq!(
        String::from_utf8(line).unwrap(),
        "1970-01-01T00:00:00.000Z connection outbound tls db.shop connect-failed \"10.0.0.9:443: refused\" - - 10.0.0.1:40000 \
         shop/db:5432 10.0.0.9:443 1 2 0 1000000 2 - - 0000000000000001 - - - -\n"
    );
}

/// What can be asked for is what JSON has and what the page explains.
#[test]
fn fields_json_and_page_agree() {
    let (peer, tries) = (SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(), tries());
    let lines = [line(&full(&peer, &tries), UNIX_EPOCH), connection_line(&connection())];
    let mut json = BTreeSet::new();
    for line in &lines {
        let value: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        json.extend(value.keys().cloned());
    }
    let fields: BTreeSet<String> = field::ALL.iter().map(|field| field.name.to_owned()).collect();
    assert_eq!(fields, json);
    let page = include_str!("../../../../docs/access-log.md");
    let explained: BTreeSet<String> = page
        .lines()
        .skip_while(|line| *line != "## Fields")
        .take_while(|line| !line.starts_with("## ") || *line == "## Fields")
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" |"))
        .flat_map(|(names, _)| names.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(fields, explained, "docs/access-log.md");
}

#[test]
fn values_and_their_surroundings() {
    let of = |path| RequestRecord { path, ..record() };
    for (source, path, line) in [
        ("%{path}", "/a", "/a"),
        ("100%% %{path} %%{path}", "/a", "100% /a %{path}"),
        // Between quotes.
        ("\"%{path}\"", "/a b", "\"/a b\""),
        ("\"%{path}\"", "/a\"b\\c", "\"/a\\\"b\\\\c\""),
        ("\"%{path}\"", "", "\"\""),
        ("\"%{path|none}\"", "", "\"none\""),
        ("\"%{path|none}\"", "none", "\"\\u006eone\""),
        ("\"%{method} %{path} x\"", "/a b", "\"GET /a\\u0020b x\""),
        ("\"%{path}😀\"", "/😀", "\"/\\ud83d\\ude00😀\""),
        // Not between quotes.
        ("%{path} %{method}", "/a b", "\"/a b\" GET"),
        ("%{path}", "/a\"b", "\"/a\\\"b\""),
        ("%{path}", "a\\b", "\"a\\\\b\""),
        ("%{path}", "", "-"),
        ("%{path}", "-", "\"-\""),
        ("%{path|none}", "", "none"),
        ("%{path|none}", "none", "\"none\""),
        ("%{path|}", "", ""),
        ("%{path}u", "/cup", "\"/cup\"u"),
        ("%{path}u", "/cap", "/capu"),
        ("%{path}", "/é", "/é"),
        ("%{path}", "/a\u{a0}b", "\"/a\u{a0}b\""),
        ("%{path}\t%{status}", "/a\tb", "\"/a\\tb\"\t200"),
        ("{\"p\":\"%{path}\",\"s\":%{status|null}}", "/\"x", "{\"p\":\"/\\\"x\",\"s\":200}"),
        ("path=%{path} status=%{status}", "/a status=500", "path=\"/a status=500\" status=200"),
        // Queries are not logged.
        ("%{path}", "/login?password=hunter2", "/login"),
    ] {
        assert_eq!(shaped(source, &of(path)), format!("{line}\n"), "{source} {path:?}");
    }
}

#[test]
fn a_customary_form() {
    let text = shaped(
        "%{caller} - %{peer|-} [%{time}] \"%{method} %{path} %{protocol}\" %{status} %{sent} %{duration_us}us %{reason|-}",
        &record(),
    );
    assert_eq!(text, "10.0.0.1:40000 - - [2023-11-14T22:13:20.042Z] \"GET /cart http1\" 200 12 2500us -\n");
}

#[test]
fn mistakes_are_named() {
    let long = format!("%{{path}}{}", "x".repeat(4096));
    for (source, what) in [
        ("", "it names no field: want json, or text with fields such as %{path}"),
        ("text", "it names no field"),
        ("100%%", "it names no field"),
        (
            "%{stauts}",
            "character 1: there is no field \"stauts\"; did you mean status? the fields are time kind direction",
        ),
        ("%{duration}", "did you mean duration_us?"),
        ("%{first}", "did you mean first_byte_us?"),
        ("%{pth}", "did you mean path?"),
        ("%{header:cookie}", "there is no field \"header:cookie\"; the fields are time"),
        ("%{}", "there is no field \"\"; the fields are time"),
        ("%{ path }", "there is no field \" path \"; did you mean path?"),
        ("%{path", "\"%{path\": want a } behind the name of the field"),
        ("é %{path} %", "character 11: \"%\": want %{FIELD}, or %% for a percent sign"),
        ("%path", "\"%path\": want %{FIELD}, or %% for a percent sign"),
        ("%{method}%{path}", "character 10: %{path} follows %{method} directly: want something between them"),
        ("\"\" é \"%{path}", "character 6: a quote is opened and never closed"),
        ("%{path}\\t%{status}", "character 8: a \\ is not possible"),
        ("%{path}\n%{status}", "'\\n' is not possible: a record is one line"),
        ("%{path}\u{1b}[0m", "'\\u{1b}' is not possible"),
        ("%{path}\u{2028}", "'\\u{2028}' is not possible"),
        (
            "%{reason|no reason}",
            "%{reason}: its default \"no reason\" holds ' ': want visible text without spaces",
        ),
        ("\"%{reason|no reason} x\"", "holds ' ': it ends the field"),
        (
            "a %{reason|n/a}/%{path}",
            "character 3: %{reason}: its default \"n/a\" holds '/': it ends the field",
        ),
        ("%{reason}-%{path}", "%{reason}: its default \"-\" holds '-': it ends the field"),
        ("%{reason|}\"%{path}\"", "%{reason}: its default is empty and a quote follows"),
        ("%{reason|\"\"}", "holds '\"': want visible text without spaces, \" and \\"),
        ("\"%{reason|\\}\"", "holds '\\\\': want visible text without \" and \\"),
        (long.as_str(), "it is longer than 4096 bytes"),
    ] {
        let said = Format::parse(source).unwrap_err();
        assert!(said.contains(what), "{source}: {said}");
    }
    assert!(Format::parse("\"%{reason|no reason}\"").is_ok());
}

// ---- a reader -------------------------------------------------------------------------------------------------------

/// Reads a line as the page tells users to; the fields in their order, `None` for those without a value.
fn read(source: &str, line: &str) -> Vec<Option<String>> {
    let mut rest = line.strip_suffix('\n').expect("a line ends");
    let mut values = Vec::new();
    let (mut source, mut quoted) = (source, false);
    while let Some(first) = source.chars().next() {
        if let Some((inside, behind)) = source.strip_prefix("%{").and_then(|behind| behind.split_once('}')) {
            let default =
                inside.split_once('|').map_or(if quoted { "" } else { "-" }, |(_, default)| default);
            let then = behind.chars().next();
            let (value, length) = if quoted {
                let end = end_of(rest, then);
                let raw = &rest[..end];
                let text = || serde_json::from_str(&format!("\"{raw}\"")).unwrap();
                ((raw != default).then(text), end)
            } else if rest.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                (Some(values.next().unwrap().unwrap()), values.byte_offset())
            } else {
                let end = then.and_then(|then| rest.find(then)).unwrap_or(rest.len());
                ((&rest[..end] != default).then(|| rest[..end].to_owned()), end)
            };
            values.push(value);
            (source, rest) = (behind, &rest[length..]);
        } else {
            quoted ^= first == '"';
            rest =
                rest.strip_prefix(first).unwrap_or_else(|| panic!("{rest:?} does not begin with {source:?}"));
            let length = if source.starts_with("%%") { 2 } else { first.len_utf8() };
            source = &source[length..];
        }
    }
    assert_eq!(rest, "");
    values
}

/// Where a field between quotes ends: an escape is not an end, whatever it consists of.
fn end_of(text: &str, then: Option<char>) -> usize {
    let mut skip = 0;
    for (at, character) in text.char_indices() {
        if skip > 0 {
            skip -= 1;
        } else if character == '\\' {
            skip = if text[at..].starts_with("\\u") { 5 } else { 1 };
        } else if Some(character) == then || character == '"' {
            return at;
        }
    }
    text.len()
}

/// The same field of the JSON line, as text.
fn expected(json: &str, field: &str) -> Option<String> {
    let value: Value = serde_json::from_str(json).unwrap();
    let value = value.get(field)?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

#[test]
fn hostile_values_are_values() {
    let long = format!("/{}", "x\n".repeat(4096));
    let broken = String::from_utf8_lossy(b"/\xff\xfe\x80\xc0\xafetc").into_owned();
    let hostile = [
        "/\n{\"time\":\"2020-01-01T00:00:00.000Z\",\"kind\":\"request\",\"status\":200}",
        "/\r\n10.0.0.1 GET / 200",
        "/\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m",
        "/\" 200 \"-\" \"",
        "/\\\" 200 \\",
        "/\\u0022",
        "/a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f",
        "/\u{202e}gpj.exe\u{2066}\u{feff}\u{200f}",
        "/ \t\u{a0}\u{3000}",
        "/\0\u{1}\u{7f}",
        "-",
        "/%{method}%n%s",
        "\"",
        "\\",
        "\u{10ffff}\u{fffe}",
        &broken,
        &long,
    ];
    for text in hostile {
        let record = RequestRecord {
            method: text,
            authority: text,
            path: text,
            detail: text,
            service: text,
            ..record()
        };
        let json = line(&record, UNIX_EPOCH);
        let mut lines = vec![json.clone()];
        for source in [
            "%{method} %{authority} %{path} %{detail} %{service}",
            "\"%{method} %{authority} %{path}\" %{detail|none}\t%{service}",
            "m=%{method},a=%{authority},p=\"%{path}\",d=%{detail};%{service|}",
            "%{method}u%{authority}0\"%{path}n%{detail}\"%{service}",
        ] {
            let shaped = shaped(source, &record);
            let values =
                ["method", "authority", "path", "detail", "service"].map(|name| expected(&json, name));
            assert_eq!(read(source, &shaped), values, "{source} {shaped}");
            lines.push(shaped);
        }
        for line in lines {
            let inside = line.strip_suffix('\n').unwrap();
            let seen = inside.chars().find(|one| encode::is_treacherous(*one) && *one != '\t');
            assert_eq!(seen, None, "{line:?}");
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,20}",
        "[\"\\\\u0-9a-f~: ]{0,12}",
        "[a-z/]{1,12}",
        Just("~".to_owned()),
        Just(String::new()),
        "[^?]{900,1100}",
    ]
}

/// A format, and the names of its fields.
fn source() -> impl Strategy<Value = (String, Vec<&'static str>)> {
    let names: Vec<&'static str> =
        field::ALL.iter().map(|field| field.name).filter(|name| !matches!(*name, "time" | "tries")).collect();
    let part = (
        proptest::sample::select(names),
        proptest::sample::select(vec!["|~", "|", "|none"]),
        proptest::sample::select(vec![
            " ", " | ", "u", "0", ":", "/", "\t", "é", "%%", "\" \"", "\"", "\"\"", "😀",
        ]),
    );
    proptest::collection::vec(part, 1..8).prop_map(|parts| {
        let mut source = String::new();
        let mut names = Vec::new();
        for (name, default, behind) in parts {
            let default = if behind.starts_with('"') && default == "|" { "|~" } else { default };
            source += &format!("%{{{name}{default}}}{behind}");
            names.push(name);
        }
        // Close what is open.
        if source.matches('"').count() % 2 == 1 {
            source.push('"');
        }
        (source, names)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the format and whatever the values: one line, nothing treacherous, and the reader has what JSON has.
    #[test]
    fn a_reader_gets_every_value_back(
        (source, names) in source(),
        texts in proptest::array::uniform8(text()),
        numbers in any::<(u16, u64, u64, u32)>(),
    ) {
        let [method, authority, path, detail, security, service, route, limit] = &texts;
        let (status, sent, id, attempts) = numbers;
        let record = RequestRecord {
            method, authority, path, detail, security, service, route, status, sent, id, attempts,
            handled: Handled { limit, ..Handled::default() },
            trace: (id % 2 == 0).then(traced),
            ..record()
        };
        let json = line(&record, UNIX_EPOCH);
        prop_assert!(Format::parse(&source).is_ok(), "{:?}", Format::parse(&source));
        let shaped = shaped(&source, &record);
        prop_assert_eq!(shaped.matches('\n').count(), 1);
        prop_assert!(!shaped.trim_end().chars().any(|one| encode::is_treacherous(one) && one != '\t'));
        let values: Vec<_> = names.iter().map(|name| expected(&json, name)).collect();
        prop_assert_eq!(read(&source, &shaped), values, "{:?}", shaped);
    }

    /// No text is a format that panics.
    #[test]
    fn any_text_is_read_or_refused(source in "[%{}|a-z\" ]{0,40}", wild in any::<String>()) {
        for source in [source, wild] {
            if let Ok(format) = Format::parse(&source) {
                prop_assert_eq!(format.to_string(), source);
            }
        }
    }
}
