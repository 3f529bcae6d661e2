//! A lab: a bridge in a namespace of its own to which pods are plugged.
//!
//! Labs cannot see each other and use the same addresses, so tests run side by side. The bridge answers for addresses
//! that nobody has (10.96.0.0/12 and the rest of the world) with "unreachable", at once, instead of silence.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail};

use crate::{Answer, Capture, Pod, namespace::Namespace};

/// Cheap to clone; the last clone (pods hold one each) takes the namespaces down.
#[derive(Clone, Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    switch: Namespace,
    number: u32,
    next_pod: AtomicU16,
    ipv6: bool,
    directory: PathBuf,
    keep: AtomicBool,
}

/// Labs of this process so far: names of namespaces are global in it.
static LABS: AtomicU32 = AtomicU32::new(0);
/// The bridge has the first address; pods follow.
const FIRST_POD: u16 = 2;

impl Lab {
    pub fn new() -> Result<Self> {
        Self::named("lab")
    }

    /// `name` becomes part of the directory with the logs.
    pub fn named(name: &str) -> Result<Self> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        // Short, because sockets live in there: their paths may have 107 bytes.
        let plain: String =
            name.chars().take(24).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let directory = tempfile::Builder::new().prefix(&format!("outrigger-{plain}-")).tempdir()?.keep();
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        let switch = Namespace::create(format!("{}-{number}-switch", std::process::id()))?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            // Without snooping, or the first neighbour solicitations of IPv6 get lost.
            "link add name br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".into(),
            format!("addr add {}/16 dev br0", ipv4(1)),
        ];
        if ipv6 {
            lines.push(format!("addr add {}/64 dev br0 nodad", ipv6_of(1)));
        }
        lines.push("link set br0 up".into());
        crate::ip::run_in(switch.name(), &lines)?;
        switch
            .enter(|| {
                fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
                // "Unreachable" for every attempt, not once a second.
                fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")?;
                if ipv6 {
                    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
                    fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")?;
                }
                std::io::Result::Ok(())
            })?
            .context("routing in the switch")?;
        let next_pod = AtomicU16::new(FIRST_POD);
        let keep = AtomicBool::new(false);
        Ok(Self { inner: Arc::new(Inner { switch, number, next_pod, ipv6, directory, keep }) })
    }

    /// A new pod, plugged in: addresses answer when this returns.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let index = self.inner.next_pod.fetch_add(1, Ordering::Relaxed);
        let namespace =
            Namespace::create(format!("{}-{}-{name}-{index}", std::process::id(), self.inner.number))?;
        let (v4, v6) = (ipv4(index), ipv6_of(index));
        let switch = self.inner.switch.name();
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add name eth0 type veth peer name v{index} netns {switch}"),
            format!("addr add {v4}/16 dev eth0"),
        ];
        if self.inner.ipv6 {
            lines.push(format!("addr add {v6}/64 dev eth0 nodad"));
        }
        lines.push("link set eth0 up".into());
        lines.push(format!("route add default via {}", ipv4(1)));
        if self.inner.ipv6 {
            lines.push(format!("route add default via {} dev eth0", ipv6_of(1)));
        }
        crate::ip::run_in(namespace.name(), &lines)?;
        crate::ip::run_in(switch, &[format!("link set v{index} master br0 up")])?;
        Ok(Pod::new(self.clone(), name, namespace, v4, v6))
    }

    /// Records every packet that crosses the bridge from now on.
    pub fn capture(&self) -> Result<Capture> {
        self.inner.switch.enter(Capture::start)?
    }

    /// Asks from the bridge, as a kubelet would from its node.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<Answer> {
        self.inner.switch.enter(|| crate::http::get(address, path))?
    }

    /// Runs `work` on a thread that lives on the bridge: outside every pod, with a way to all of them.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.switch.enter(work)
    }

    /// Whether this kernel has IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.inner.ipv6
    }

    /// Logs and scratch files of this lab; removed at the end unless [`Self::keep_logs`] was called or a test panics.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    pub fn keep_logs(&self) {
        self.inner.keep.store(true, Ordering::Relaxed);
    }

    /// The ends of all logs: what a failure message should show.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut logs: Vec<_> = fs::read_dir(self.directory())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort();
        let mut tails = String::new();
        for path in logs {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if text.trim().is_empty() {
                continue;
            }
            let all: Vec<_> = text.lines().collect();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            tails.push_str(&format!("--- {name} (last {lines} of {} lines)\n", all.len()));
            for line in &all[all.len().saturating_sub(lines)..] {
                let short: String = line.chars().take(400).collect();
                tails.push_str(&short);
                tails.push('\n');
            }
        }
        tails
    }

    /// Gives `pod` one more address (outside the lab's own networks), routed to it by the switch.
    pub(crate) fn route(&self, address: IpAddr, pod: &Pod) -> Result<()> {
        let via: IpAddr = match address {
            IpAddr::V4(_) => pod.ipv4().into(),
            IpAddr::V6(_) if self.inner.ipv6 => pod.ipv6().into(),
            IpAddr::V6(_) => bail!("no IPv6 in this kernel"),
        };
        crate::ip::run_in(self.inner.switch.name(), &[format!("route add {address} via {via}")])
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) || std::thread::panicking() {
            eprintln!("logs kept in {}", self.directory.display());
        } else {
            drop(fs::remove_dir_all(&self.directory));
        }
    }
}

fn ipv4(index: u16) -> Ipv4Addr {
    let [high, low] = index.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

fn ipv6_of(index: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, index)
}
