//! What the kernel says about this process, under the names every Prometheus client library uses.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::families::{Families, Kind, Series, Unit, Value};

mod memory_limit;

/// Figures that cannot be read are left out.
pub(super) fn add(families: &mut Families) {
    if let Some(stat) = Stat::read() {
        families.add(
            "process_cpu_seconds",
            Kind::Counter,
            Unit::Seconds,
            "CPU time in user and kernel mode.",
            vec![Series::of(&[], Value::Micros(stat.cpu_micros))],
        );
        families.gauge("process_resident_memory_bytes", Unit::Bytes, "Resident memory.", stat.resident_bytes);
        families.gauge("process_threads", Unit::None, "Threads.", stat.threads);
        if let Some(started) = stat.started_at() {
            families.gauge(
                "process_start_time_seconds",
                Unit::Seconds,
                "Start, since the epoch.",
                started.as_secs(),
            );
        }
    }
    if let Some(limit) = memory_limit::of_this_process() {
        let help = "What resident memory may grow to before the kernel ends the process.";
        families.gauge("outrigger_memory_limit_bytes", Unit::Bytes, help, limit);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        families.gauge("process_open_fds", Unit::None, "Open file descriptors.", open.count() as u64);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        families.gauge("process_max_fds", Unit::None, "Limit of open file descriptors.", soft);
    }
}

/// When the process was started.
pub(super) fn started() -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Stat::read()?.started_at()?)
}

struct Stat {
    cpu_micros: u64,
    resident_bytes: u64,
    threads: u64,
    started_ticks: u64,
    ticks_per_second: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program is in parentheses and may hold anything, so count from the last one (field 2).
        let rest = text.rsplit_once(')')?.1;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok()??.unsigned_abs();
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok()??.unsigned_abs();
        Some(Self {
            cpu_micros: (field(14)? + field(15)?) * 1_000_000 / ticks_per_second.max(1),
            threads: field(20)?,
            started_ticks: field(22)?,
            resident_bytes: field(24)? * page_bytes,
            ticks_per_second,
        })
    }

    /// Since the epoch.
    fn started_at(&self) -> Option<Duration> {
        static BOOT: OnceLock<Option<u64>> = OnceLock::new();
        let boot = *BOOT.get_or_init(|| {
            let text = fs::read_to_string("/proc/stat").ok()?;
            text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
        });
        Some(Duration::from_secs(boot? + self.started_ticks / self.ticks_per_second.max(1)))
    }
}
