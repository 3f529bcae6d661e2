//! Answers from memory, and one request for many.

use std::time::Duration;

use anyhow::Result;

use crate::support::{
    Test,
    app::{Asked, Say},
    call::Call,
    farm::{Builder, Farm, Found, Stand, hold, with_and_without},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("cache_answers_again_what_is_fresh", hit),
        Test::in_farm("cache_confirms_what_is_stale", revalidation),
        Test::in_farm("cache_tells_variants_apart", vary),
        Test::in_farm("cache_serves_a_stale_answer_for_an_error", stale_if_error),
        Test::in_farm("cache_keeps_answers_to_credentials_apart", authorization),
        Test::in_farm("cache_stays_within_its_sizes", sizes),
        Test::in_farm("cache_forgets_what_was_changed", invalidation),
        Test::in_farm("coalesce_makes_one_of_identical_requests", coalesce),
    ]
}

const CACHE: &str = "  cache: {}\n";

fn alone<'f>(farm: &'f Farm, lines: &str) -> Builder<'f> {
    let alone = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n";
    farm.stand(&[0]).policy(&format!("{alone}{lines}"))
}

/// Says which request it was.
fn numbered(asked: &Asked) -> Say {
    Say::ok(format!("answer {}", asked.number))
}

/// Sends these, and wants these bodies.
fn bodies(stand: &Stand<'_>, calls: &[(Call, &str)]) -> Result<Found> {
    for (number, (call, wanted)) in calls.iter().enumerate() {
        let told = stand.send(call)?;
        hold!(told.status == 200 && told.body == *wanted, "call {number} wanted {wanted:?}: {told:?}");
    }
    Ok(Ok(()))
}

fn hit(farm: &Farm) -> Result<()> {
    with_and_without(
        CACHE,
        "",
        |lines| alone(farm, lines).apps(|_, asked| numbered(asked).field("cache-control", "max-age=60")),
        |stand| {
            let first = stand.send(&stand.get("/a"))?;
            hold!(first.body == "answer 0", "{first:?}");
            let again = stand.send(&stand.get("/a"))?;
            hold!(again.body == "answer 0" && again.field("age").is_some(), "{again:?}");
            hold!(again.field("cache-status") == Some("outrigger;hit"), "{again:?}");
            let other = stand.send(&stand.get("/b"))?;
            hold!(other.body == "answer 1", "{other:?}");
            // The caller may want nothing else, and is told when there is none.
            let only = |path: &str| stand.get(path).field("cache-control", "only-if-cached");
            let from_memory = stand.send(&only("/a"))?;
            hold!(from_memory.body == "answer 0", "{from_memory:?}");
            let absent = stand.send(&only("/c"))?;
            hold!(absent.status == 504 && absent.reason() == "not-cached", "{absent:?}");
            // The request may ask for a fresh one.
            let fresh = stand.send(&stand.get("/a").field("cache-control", "no-cache"))?;
            hold!(fresh.body == "answer 2" && stand.total() == 3, "{fresh:?}");
            Ok(Ok(()))
        },
    )?;
    // What its origin does not allow to be kept is not kept.
    let stand = alone(farm, CACHE).apps(|_, asked| numbered(asked).field("cache-control", "no-store"))?;
    let found = bodies(&stand, &[(stand.get("/"), "answer 0"), (stand.get("/"), "answer 1")])?;
    found.map_err(anyhow::Error::msg)
}

fn revalidation(farm: &Farm) -> Result<()> {
    let confirm = |_: usize, asked: &Asked| {
        let known = asked.headers.get("if-none-match").is_some_and(|tag| tag == "\"one\"");
        let say = if known { Say::status(304) } else { Say::ok("a body with a tag") };
        say.field("cache-control", "max-age=0").field("etag", "\"one\"")
    };
    with_and_without(
        CACHE,
        "",
        |lines| alone(farm, lines).apps(confirm),
        |stand| {
            let body = "a body with a tag";
            let found = bodies(stand, &[(stand.get("/"), body), (stand.get("/"), body)])?;
            let asked = stand.apps[0].asked();
            hold!(asked.len() == 2, "{} requests; {found:?}", asked.len());
            hold!(asked[1].headers.contains_key("if-none-match"), "{:?}", asked[1].headers);
            Ok(found)
        },
    )
}

fn vary(farm: &Farm) -> Result<()> {
    with_and_without(
        CACHE,
        "",
        |lines| {
            alone(farm, lines).apps(|_, asked| {
                numbered(asked).field("cache-control", "max-age=60").field("vary", "x-language")
            })
        },
        |stand| {
            let call = |language: &str| stand.get("/").field("x-language", language);
            let wanted = [("de", "answer 0"), ("en", "answer 1"), ("de", "answer 0"), ("en", "answer 1")];
            bodies(stand, &wanted.map(|(language, body)| (call(language), body)))
        },
    )
}

fn stale_if_error(farm: &Farm) -> Result<()> {
    let once = |_: usize, asked: &Asked| match asked.number {
        0 => Say::ok("old").field("cache-control", "max-age=0").field("etag", "\"one\""),
        1 => Say::status(503),
        _ => Say::reset(),
    };
    with_and_without(
        "  cache: {staleIfError: 60s}\n",
        CACHE,
        |lines| alone(farm, lines).apps(once),
        |stand| bodies(stand, &[(stand.get("/"), "old"), (stand.get("/"), "old"), (stand.get("/"), "old")]),
    )
}

fn authorization(farm: &Farm) -> Result<()> {
    let control = |control: &'static str| {
        move |_: usize, asked: &Asked| numbered(asked).field("cache-control", control)
    };
    let calls = |stand: &Stand<'_>, wanted: [&'static str; 4]| {
        let call = |user: &str| stand.get("/").field("authorization", format!("Bearer {user}"));
        let users = ["anna", "bert", "anna", "bert"];
        let calls: Vec<_> = users.into_iter().zip(wanted).map(|(user, body)| (call(user), body)).collect();
        bodies(stand, &calls)
    };
    with_and_without(
        CACHE,
        "",
        |lines| alone(farm, lines).apps(control("public, max-age=60")),
        |stand| calls(stand, ["answer 0", "answer 1", "answer 0", "answer 1"]),
    )?;
    // Without a word that it may be, it is not kept at all.
    let stand = alone(farm, CACHE).apps(control("max-age=60"))?;
    calls(&stand, ["answer 0", "answer 1", "answer 2", "answer 3"])?.map_err(anyhow::Error::msg)
}

fn sizes(farm: &Farm) -> Result<()> {
    let large = |_: usize, asked: &Asked| {
        let body = format!("{:10000}", asked.number);
        Say::ok(body).field("cache-control", "max-age=60")
    };
    let again = |stand: &Stand<'_>, paths: &[&str]| {
        paths.iter().try_for_each(|path| stand.send(&stand.get(path)).map(drop))?;
        Ok::<_, anyhow::Error>(stand.total())
    };
    // Too large for one answer, so it is not kept ...
    with_and_without(
        "  cache: {maxObjectBytes: 5000}\n",
        CACHE,
        |lines| alone(farm, lines).apps(large),
        |stand| {
            let asked = again(stand, &["/", "/"])?;
            hold!(asked == 2, "{asked} requests");
            Ok(Ok(()))
        },
    )?;
    // ... and what was used least lately makes room for others.
    with_and_without(
        "  cache: {maxBytes: 25000, maxObjectBytes: 20000}\n",
        CACHE,
        |lines| alone(farm, lines).apps(large),
        |stand| {
            let asked = again(stand, &["/a", "/b", "/c", "/c", "/a"])?;
            hold!(asked == 4, "{asked} requests");
            Ok(Ok(()))
        },
    )
}

fn invalidation(farm: &Farm) -> Result<()> {
    with_and_without(
        CACHE,
        "",
        |lines| alone(farm, lines).apps(|_, asked| numbered(asked).field("cache-control", "max-age=60")),
        |stand| {
            let calls = [
                (stand.get("/"), "answer 0"),
                (stand.get("/"), "answer 0"),
                (stand.post("/", "change"), "answer 1"),
                (stand.get("/"), "answer 2"),
            ];
            bodies(stand, &calls)
        },
    )
}

fn coalesce(farm: &Farm) -> Result<()> {
    with_and_without(
        "  coalesce: true\n",
        "",
        |lines| alone(farm, lines).apps(|_, asked| numbered(asked).after(Duration::from_secs(1))),
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 6)?;
            hold!(told.iter().all(|told| told.status == 200 && told.body == "answer 0"), "{told:?}");
            hold!(stand.total() == 1, "{} requests", stand.total());
            // Not those that differ, and nothing but GET.
            let different = ["anna", "bert"].map(|user| stand.get("/").field("authorization", user));
            let [anna, bert] = std::thread::scope(|scope| {
                different
                    .each_ref()
                    .map(|call| scope.spawn(|| stand.send(call)))
                    .map(|call| call.join().expect("call"))
            });
            let (anna, bert) = (anna?, bert?);
            hold!(anna.body != bert.body, "{anna:?} {bert:?}");
            Ok(Ok(()))
        },
    )
}
