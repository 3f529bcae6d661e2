//! `--merge-metrics http://127.0.0.1:PORT/PATH`: where the application's own metrics are.

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::{Config, settings::Problem};

/// Sources that a proxy may have.
pub const MOST_SOURCES: usize = 4;
/// Of a path with its query.
const MOST_CHARS: usize = 1_024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub address: SocketAddr,
    /// Path and query.
    pub target: String,
}

impl Source {
    /// An address, not a name: what is asked must not depend on who answers DNS. `localhost` is 127.0.0.1.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (authority, target) = match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => rest.split_at(at),
            Some(_) => return None,
            None => (rest, "/metrics"),
        };
        let address = match authority.strip_prefix("localhost:") {
            Some(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.parse().ok()?),
            None => authority.parse().ok()?,
        };
        let legal = target.len() <= MOST_CHARS && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        (legal && address.port() != 0).then(|| Self { address, target: target.to_owned() })
    }

    /// As metrics and `/stats` call it.
    pub fn name(&self) -> String {
        // What follows a `?` may be a secret.
        format!("{}{}", self.address, self.target.split('?').next().unwrap_or_default())
    }

    /// What is wrong with it in this proxy, whose own addresses are known by now.
    pub fn check(&self, config: &Config) -> Result<(), Problem> {
        let ip = self.address.ip().to_canonical();
        let own = ip.is_loopback() || config.addresses.contains(&ip);
        if !own {
            return Err(Problem(format!(
                "--merge-metrics http://{}: want an address of this workload: loopback, or one of --address",
                self.name()
            )));
        }
        let doors = [config.admin_port.get(), config.status_address.port()];
        if doors.contains(&self.address.port()) {
            return Err(Problem(format!(
                "--merge-metrics http://{}: that is this proxy's own page: want the application's",
                self.name()
            )));
        }
        Ok(())
    }
}

/// All that is wrong with them.
pub fn check(config: &Config) -> impl Iterator<Item = Problem> {
    let too_many = (config.merge_metrics.len() > MOST_SOURCES).then(|| {
        let given = config.merge_metrics.len();
        Problem(format!("--merge-metrics: {given} are given: want at most {MOST_SOURCES}"))
    });
    too_many.into_iter().chain(config.merge_metrics.iter().filter_map(|source| source.check(config).err()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_an_address_is_a_source() {
        for (text, source) in [
            ("http://127.0.0.1:8080/metrics", Some(("127.0.0.1:8080", "/metrics"))),
            ("http://127.0.0.1:8080", Some(("127.0.0.1:8080", "/metrics"))),
            ("http://localhost:9/m?x=1", Some(("127.0.0.1:9", "/m?x=1"))),
            ("http://[::1]:8080/", Some(("[::1]:8080", "/"))),
            ("https://127.0.0.1:8080/metrics", None),
            ("http://app.example:8080/metrics", None),
            ("http://127.0.0.1/metrics", None),
            ("http://127.0.0.1:0/metrics", None),
            ("http://user@127.0.0.1:80/metrics", None),
            ("http://127.0.0.1:80?x", None),
            ("http://127.0.0.1:80/a b", None),
            ("http://127.0.0.1:80/a#b", None),
            ("http://127.0.0.1:80/\r\nx: y", None),
            ("127.0.0.1:80/metrics", None),
            ("", None),
        ] {
            let read = Source::parse(text);
            let read = read.as_ref().map(|source| (source.address.to_string(), &*source.target));
            assert_eq!(read.as_ref().map(|(address, target)| (&**address, *target)), source, "{text:?}");
        }
        assert_eq!(Source::parse("http://[::1]:80/m?token=x").unwrap().name(), "[::1]:80/m");
    }
}
