//! Metrics as a reader has them: the text formats, and a real Prometheus that scrapes and judges.

use std::{collections::BTreeMap, fmt::Write, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Pod, Process, wait_for};
use serde_json::Value;

use super::{SOON, call::Call};

pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) value: f64,
    /// What follows a `#` behind the value.
    pub(crate) exemplar: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    OpenMetrics,
}

// ---- pages ----------------------------------------------------------------------------------------------------------

impl Format {
    /// As Prometheus asks for it.
    fn accept(self) -> &'static str {
        match self {
            Self::Text => "text/plain;version=0.0.4",
            Self::OpenMetrics => "application/openmetrics-text;version=1.0.0",
        }
    }

    /// The page at `/metrics`, in this format and no other.
    pub(crate) fn page(self, from: &Pod, target: SocketAddr) -> Result<String> {
        let told = Call::get(target, "/metrics").field("accept", self.accept()).send(from)?;
        ensure!(told.status == 200 && told.whole, "{told:?}");
        let kind = told.field("content-type").unwrap_or_default();
        let wanted = self.accept().split(';').next().unwrap_or_default();
        ensure!(kind.starts_with(wanted), "asked for {wanted}, got {kind}");
        if self == Self::OpenMetrics {
            ensure!(told.body.ends_with("# EOF\n"), "no end: {:?}", told.body.lines().last());
        }
        Ok(told.body)
    }
}

/// Every sample of a page, of either format.
pub(crate) fn samples(page: &str) -> Result<Vec<Sample>> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| sample(line).with_context(|| format!("line {line:?}"))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let name_ends = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let (value, exemplar) = match rest.split_once(" # ") {
        Some((value, exemplar)) => (value, Some(exemplar.to_owned())),
        None => (rest, None),
    };
    let value = value.split_whitespace().next()?;
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().ok()? };
    Some(Sample { name: name.to_owned(), labels, value, exemplar })
}

/// A quoted value up to its end, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// What a reader of the older format would have been told: OpenMetrics without what only OpenMetrics has. `promtool check
/// metrics` reads no other.
pub(crate) fn as_text(open_metrics: &str) -> String {
    let mut text = String::new();
    let is = |name: &str, kind: &str| open_metrics.contains(&format!("# TYPE {name} {kind}\n"));
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        if let ["#", what @ ("HELP" | "TYPE"), name, said] = words[..] {
            // A family is named without its suffix there.
            let suffix = if is(name, "counter") {
                "_total"
            } else if is(name, "info") {
                "_info"
            } else {
                ""
            };
            let said = match (what, said) {
                ("TYPE", "unknown") => "untyped",
                ("TYPE", "info") => "gauge",
                (_, said) => said,
            };
            let _ = writeln!(text, "# {what} {name}{suffix} {said}");
            continue;
        }
        // Nor are there times of birth.
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let born =
            name.strip_suffix("_created").is_some_and(|name| is(name, "counter") || is(name, "histogram"));
        if !born {
            let _ = writeln!(text, "{}", line.split(" # ").next().unwrap_or_default());
        }
    }
    text
}

// ---- promtool -------------------------------------------------------------------------------------------------------

/// What `promtool check metrics` has against a page; empty: nothing.
pub(crate) fn lint(lab: &Lab, pod: &Pod, page: &str) -> Result<String> {
    let file = lab.directory().join("page.txt");
    fs::write(&file, page)?;
    let script = format!("exec promtool check metrics <{}", file.display());
    let output = pod.run(pod.command("sh").args(["-c", &script]))?;
    let told = output.to_string();
    Ok(if output.status.success() && output.stderr.trim().is_empty() { String::new() } else { told })
}

// ---- the server -----------------------------------------------------------------------------------------------------

pub(crate) struct Prometheus {
    pod: Pod,
    _process: Process,
}

/// What is scraped: the job, and its targets with their names.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) targets: Vec<(String, SocketAddr)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Alert {
    pub(crate) name: String,
    pub(crate) severity: String,
    pub(crate) firing: bool,
}

const PORT: u16 = 9090;

impl Prometheus {
    /// Scrapes and judges every second. `rules`: files.
    pub(crate) fn start(lab: &Lab, jobs: &[Job], rules: &[&Path]) -> Result<Self> {
        let pod = lab.pod("prometheus")?;
        let directory = lab.directory().join("prometheus");
        fs::create_dir_all(&directory)?;
        let mut config =
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files:\n"
                .to_owned();
        for rule in rules {
            let _ = writeln!(config, "- {}", rule.display());
        }
        config.push_str("scrape_configs:\n");
        for job in jobs {
            let _ = writeln!(config, "- job_name: {}\n  static_configs:", job.name);
            for (name, target) in &job.targets {
                let _ = writeln!(config, "  - {{targets: [\"{target}\"], labels: {{pod: \"{name}\"}}}}");
            }
        }
        let file = directory.join("prometheus.yaml");
        fs::write(&file, config)?;
        let address = SocketAddr::from((pod.ipv4(), PORT));
        let mut command = pod.command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--enable-feature=exemplar-storage", "--log.level=warn"]);
        let process = pod.spawn(&mut command, "prometheus")?;
        let this = Self { pod, _process: process };
        wait_for(SOON, "a ready Prometheus", || {
            this.pod.lab().get(address, "/-/ready").is_ok_and(|answer| answer.status == 200)
        })
        .with_context(|| this._process.log())?;
        Ok(this)
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = self.pod.lab().get(SocketAddr::from((self.pod.ipv4(), PORT)), path)?;
        let told: Value =
            serde_json::from_str(&answer.body).with_context(|| format!("{path}: {answer:?}"))?;
        ensure!(told["status"] == "success", "{path}: {told}");
        Ok(told["data"].clone())
    }

    /// An instant query: each series of the answer with its labels.
    pub(crate) fn query(&self, query: &str) -> Result<Vec<(Labels, f64)>> {
        let told = self.get(&format!("/api/v1/query?query={}", escape(query)))?;
        let rows = told["result"].as_array().with_context(|| told.to_string())?;
        let row = |row: &Value| {
            let value = row["value"][1].as_str().and_then(|value| value.parse().ok());
            Ok((labels(&row["metric"]), value.with_context(|| row.to_string())?))
        };
        rows.iter().map(row).collect()
    }

    /// The one number that a query comes to; 0 where there is nothing.
    pub(crate) fn number(&self, query: &str) -> Result<f64> {
        Ok(self.query(query)?.first().map_or(0.0, |(_, value)| *value))
    }

    /// How many exemplars a series has had within the last minutes.
    pub(crate) fn exemplars(&self, query: &str) -> Result<Vec<Labels>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let (from, to) = (now - Duration::from_secs(600), now + Duration::from_secs(60));
        let (from, to) = (from.as_secs(), to.as_secs());
        let told =
            self.get(&format!("/api/v1/query_exemplars?query={}&start={from}&end={to}", escape(query)))?;
        let series = told.as_array().cloned().unwrap_or_default();
        let all =
            series.iter().flat_map(|series| series["exemplars"].as_array().cloned().unwrap_or_default());
        Ok(all.map(|exemplar| labels(&exemplar["labels"])).collect())
    }

    /// Alerts that are pending or firing.
    pub(crate) fn alerts(&self) -> Result<Vec<Alert>> {
        let told = self.get("/api/v1/alerts")?;
        let alerts = told["alerts"].as_array().with_context(|| told.to_string())?;
        let alert = |alert: &Value| {
            let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
            let (name, severity) = (label("alertname"), label("severity"));
            Alert { name, severity, firing: alert["state"] == "firing" }
        };
        Ok(alerts.iter().map(alert).collect())
    }

    /// The names of all rules that it knows.
    pub(crate) fn rules(&self) -> Result<Vec<(String, String)>> {
        let told = self.get("/api/v1/rules")?;
        let groups = told["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(rules.map(|rule| (text(&rule["name"]), text(&rule["lastError"]))).collect())
    }
}

fn labels(value: &Value) -> Labels {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// For a query string.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
