//! One test: its name, what it needs, and how its failure is told.

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Completion, Failed, Trial};
use outrigger_lab::{Lab, find_program};

use super::{farm, jaeger, peers, shop};

pub(crate) struct Test {
    name: &'static str,
    needs: &'static [Need],
    quiet: bool,
    body: Body,
}

/// A peer that may be missing on this machine.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    Program(&'static str),
    /// Python with the packages of tests/setup.sh.
    Python,
    /// As tests/backends/jaeger.sh builds it.
    Jaeger,
    Ipv6,
}

enum Body {
    Alone(fn(&Lab) -> Result<()>),
    Shop(fn(&shop::Shop) -> Result<()>),
    Farm(fn(&farm::Farm) -> Result<()>),
}

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 25;

impl Test {
    /// In a lab of its own.
    pub(crate) fn new(name: &'static str, body: fn(&Lab) -> Result<()>) -> Self {
        Self { name, needs: &[], quiet: false, body: Body::Alone(body) }
    }

    /// In the shared shop, which it must leave as it was.
    pub(crate) fn in_shop(name: &'static str, body: fn(&shop::Shop) -> Result<()>) -> Self {
        Self { name, needs: &[], quiet: false, body: Body::Shop(body) }
    }

    /// In the shared farm, with services of its own.
    pub(crate) fn in_farm(name: &'static str, body: fn(&farm::Farm) -> Result<()>) -> Self {
        Self { name, needs: &[], quiet: false, body: Body::Farm(body) }
    }

    pub(crate) fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    /// It compares latencies, so nothing else may run beside it.
    pub(crate) fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub(crate) fn into_trial(self, refusal: Option<String>) -> Trial {
        Trial::ignorable_test(self.name, move || {
            let missing = || self.needs.iter().find_map(|need| need.missing());
            if let Some(reason) = refusal.or_else(missing) {
                return Ok(Completion::ignored_with(reason));
            }
            match self.body {
                Body::Alone(body) => {
                    let lab = Lab::named(self.name).map_err(|error| format!("{error:#}"))?;
                    body(&lab).map_err(|error| failed(&error, &lab))?;
                }
                Body::Shop(body) => {
                    let shop: Arc<shop::Shop> = shop::open()?;
                    body(&shop).map_err(|error| failed(&error, shop.mesh.lab()))?;
                }
                Body::Farm(body) => {
                    let farm: Arc<farm::Farm> = farm::open()?;
                    body(&farm).map_err(|error| failed(&error, farm.lab()))?;
                }
            }
            Ok(Completion::Completed)
        })
    }
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Program(name) if find_program(name).is_none() => Some(format!("{name} is not installed")),
            Self::Python if peers::python().is_none() => {
                Some("no Python with grpcio and websockets: run tests/setup.sh".to_owned())
            }
            Self::Jaeger if jaeger::binary().is_none() => {
                Some("no Jaeger, which needs Go to be built: run tests/backends/jaeger.sh".to_owned())
            }
            Self::Ipv6 if !std::path::Path::new("/proc/net/if_inet6").exists() => {
                Some("this kernel has no IPv6".to_owned())
            }
            Self::Program(_) | Self::Python | Self::Jaeger | Self::Ipv6 => None,
        }
    }
}

/// Minutes instead of seconds.
pub(crate) fn long() -> bool {
    std::env::var("OUTRIGGER_LONG").is_ok_and(|value| value == "1")
}

pub(crate) fn failed(error: &anyhow::Error, lab: &Lab) -> Failed {
    lab.keep_logs();
    format!("{error:#}\n{}", lab.log_tails(LOG_LINES)).into()
}
