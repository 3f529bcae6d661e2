//! Against sequences of requests, answers and changes in any order: bytes stay below the limit, no answer
//! crosses credentials, Vary or a change of its resource, and the books of the store agree.

use http::Method;
use outrigger_proto::spec;
use proptest::prelude::*;

use super::{Lookup, Pending, tests::Rig};

const SAID: [&str; 5] = ["public, max-age=30", "s-maxage=20", "max-age=30", "private", "no-store"];

#[derive(Clone, Debug)]
enum Step {
    /// A GET sets out: URL, credentials, Accept.
    Ask(u8, u8, u8),
    /// An answer to one under way: which, Cache-Control, size.
    Answer(usize, u8, u16),
    /// The resource changes and the change is confirmed.
    Change(u8),
    Wait(u8),
    Resize(u16),
}

/// A GET under way, and what the origin made of it: the URL's version when it set out.
struct UnderWay {
    pending: Pending,
    body: String,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u8, 0..3_u8, 0..3_u8).prop_map(|(url, user, accept)| Step::Ask(url, user, accept)),
        6 => (any::<usize>(), 0..5_u8, 0..3000_u16).prop_map(|(which, said, size)| Step::Answer(which, said, size)),
        1 => (0..6_u8).prop_map(Step::Change),
        1 => (0..40_u8).prop_map(Step::Wait),
        1 => (0..20_000_u16).prop_map(Step::Resize),
    ];
    prop::collection::vec(step, 1..120)
}

fn request(user: u8, accept: u8) -> String {
    let user = if user == 0 { String::new() } else { format!("authorization: user-{user}\n") };
    format!("{user}accept: kind-{accept}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn answers_stay_with_whom_they_are_for(steps in steps()) {
        let mut max_bytes = 12_000_u64;
        let mut rig = Rig::with(&spec::Cache { max_bytes, max_object_bytes: 4_000, stale_if_error: None });
        let mut versions = [0_u32; 6];
        let mut under_way: Vec<UnderWay> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(url, user, accept) => {
                    let version = versions[usize::from(url)];
                    let body = format!("{url} {user} {accept} {version};");
                    match rig.get(&format!("/{url}"), &request(user, accept)) {
                        Lookup::Fresh(hit) => {
                            let got = hit.body().concat();
                            prop_assert!(got.starts_with(body.as_bytes()), "{body} {got:?}");
                        }
                        Lookup::Stale(stale) => under_way.push(UnderWay { pending: stale.into_pending(), body }),
                        Lookup::Miss(pending) => under_way.push(UnderWay { pending, body }),
                        other @ (Lookup::Unsatisfiable | Lookup::Bypass) => prop_assert!(false, "{other:?}"),
                    }
                }
                Step::Answer(which, said, size) if !under_way.is_empty() => {
                    let UnderWay { pending, mut body } = under_way.remove(which % under_way.len());
                    let said = SAID[usize::from(said)];
                    body.extend(std::iter::repeat_n('.', size.into()));
                    let anonymous = body.split(' ').nth(1) == Some("0");
                    let head = format!("cache-control: {said}\nvary: accept");
                    let stored = rig.answer(pending, 200, &head, body.as_bytes());
                    let allowed = match said {
                        "public, max-age=30" | "s-maxage=20" => true,
                        "max-age=30" => anonymous,
                        _ => false,
                    };
                    prop_assert!(allowed || !stored);
                }
                Step::Answer(..) => {}
                Step::Change(url) => {
                    versions[usize::from(url)] += 1;
                    rig.change(&Method::PUT, &format!("/{url}"), 204, "");
                }
                Step::Wait(seconds) => rig.wait(seconds.into()),
                Step::Resize(bytes) => {
                    max_bytes = bytes.into();
                    rig.cache.set_policy(&spec::Cache { max_bytes, max_object_bytes: 4_000, stale_if_error: None });
                }
            }
            prop_assert!(rig.cache.usage().bytes <= max_bytes);
            rig.cache.store.check();
        }
    }
}
