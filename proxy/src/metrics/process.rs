//! What the kernel says about this process, under the names every Prometheus client library uses.

use std::{fs, sync::OnceLock};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::text::Page;

/// Figures that cannot be read are left out.
pub(super) fn render(page: &mut Page) {
    if let Some(stat) = Stat::read() {
        page.head("process_cpu_seconds_total", "counter", "CPU time in user and kernel mode.");
        page.seconds("process_cpu_seconds_total", "", stat.cpu_micros);
        page.gauge("process_resident_memory_bytes", "Resident memory.", stat.resident_bytes);
        page.gauge("process_threads", "Threads.", stat.threads);
        if let Some(started) = stat.started_at() {
            page.gauge("process_start_time_seconds", "Start, since the epoch.", started);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open file descriptors.", open.count() as u64);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.gauge("process_max_fds", "Limit of open file descriptors.", soft);
    }
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

    fn started_at(&self) -> Option<u64> {
        static BOOT: OnceLock<Option<u64>> = OnceLock::new();
        let boot = *BOOT.get_or_init(|| {
            let text = fs::read_to_string("/proc/stat").ok()?;
            text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
        });
        Some(boot? + self.started_ticks / self.ticks_per_second.max(1))
    }
}
