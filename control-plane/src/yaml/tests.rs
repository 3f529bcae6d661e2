use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Thing {
    name: String,
    #[serde(default)]
    target_port: Option<u16>,
    #[serde(default)]
    colour: Option<Colour>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    parts: Vec<Self>,
    #[serde(default)]
    on: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Colour {
    Red,
    DarkGreen,
}

fn problems(text: &str) -> Vec<String> {
    let documents = parse(text).unwrap();
    documents
        .iter()
        .flat_map(|node| decode::<Thing>(node).err().unwrap_or_default())
        .map(|p| format!("{}:{} {} {}", p.place.line, p.place.column, p.path, p.reason))
        .collect()
}

#[test]
fn a_correct_document_is_read() {
    let text = "name: a\ntargetPort: 80\ncolour: dark-green\nlabels: {x.y/z: w, zone: no}\non: true\nparts:\n- name: b\n";
    let [node] = &parse(text).unwrap()[..] else { panic!("one document") };
    let thing: Thing = decode(node).unwrap();
    assert_eq!(thing.target_port, Some(80));
    assert_eq!(thing.colour, Some(Colour::DarkGreen));
    assert_eq!(thing.labels["zone"], "no");
    assert_eq!(thing.parts[0].name, "b");
    assert!(thing.on);
}

#[test]
fn every_mistake_is_noted_at_its_place() {
    let text = "\
name: a
targetport: 80
colour: dark-gren
on: yes
labels:
  tier: 1
parts:
- name: b
  targetPort: 70000
- name: c
  targetPort: x
  bogus: 1
";
    assert_eq!(
        problems(text),
        [
            r#"2:1 targetport unknown field: "targetport" is not known; did you mean "targetPort"?"#,
            r#"3:9 colour "dark-gren" is not known; did you mean "dark-green"?"#,
            r#"4:5 on wants true or false, not the text "yes""#,
            "6:9 labels.tier wants text, not the number 1 (put it in quotes)",
            "9:15 parts[0].targetPort 70000 is not between 0 and 65535",
            r#"11:15 parts[1].targetPort wants a whole number, not the text "x""#,
            r#"12:3 parts[1].bogus unknown field: "bogus" is not known; known are name, targetPort, colour, labels, parts, on"#,
        ]
    );
}

#[test]
fn what_ends_the_reading_has_a_place_too() {
    assert_eq!(problems("on: true\nparts:\n- on: false\n"), ["3:3 parts[0].name is required"]);
    assert_eq!(problems("nam: a\n"), [r#"1:1 nam unknown field: "nam" is not known; did you mean "name"?"#]);
    assert_eq!(problems("name: a\nparts: {}\n"), ["2:8 parts wants a list, not a map"]);
    assert_eq!(problems("name: a\nlabels: [1]\n"), ["2:9 labels wants a map, not a list"]);
    assert_eq!(problems("just text\n"), [r#"1:1  wants a map, not the text "just text""#]);
}

#[test]
fn lines_count_through_all_documents() {
    assert_eq!(
        problems("---\n# nothing\n---\nname: a\n---\nname: b\nx: 1\n"),
        [r#"7:1 x unknown field: "x" is not known; known are name, targetPort, colour, labels, parts, on"#]
    );
}

#[test]
fn broken_syntax_says_where() {
    for (text, line) in
        [("a: [1,\nb: 2\n", 2), ("a: b: c\n", 1), ("a: 1\na: 2\n", 2), ("a: \"x\n", 2), ("a:\n\t- b\n", 2)]
    {
        let (place, reason) = parse(text).unwrap_err();
        assert!(place.line.abs_diff(line) <= 1, "{text:?}: {place:?} {reason}");
        assert!(!reason.is_empty());
    }
    assert_eq!(parse("").unwrap(), []);
}

#[test]
fn a_missing_field_stands_where_its_parent_does() {
    let [node] = &parse("spec:\n  ports:\n  - port: 1\n").unwrap()[..] else { panic!("one document") };
    let port = Path::of("spec").key("ports").index(0);
    assert_eq!(node.place_of(&port.key("port")), Place { line: 3, column: 11 });
    assert_eq!(node.place_of(&port.key("name")), Place { line: 3, column: 5 });
    assert_eq!(node.place_of(&Path::of("metadata")), Place { line: 1, column: 1 });
}

#[test]
fn paths_with_dotted_keys_stay_readable() {
    assert_eq!(
        Path::of("spec").key("selector").key("k8s.io/app").to_string(),
        r#"spec.selector["k8s.io/app"]"#
    );
}
