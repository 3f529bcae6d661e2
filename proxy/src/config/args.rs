//! The flags of `outrigger-proxy run` as they are typed; `--help` is made from this file.
//!
//! Every value is text here, because a value may also come from a variable and because all mistakes are reported
//! together: reading them is the business of `config.rs`.

use clap::Args;

/// Run the sidecar: capture or listen, authenticate both ends, balance, and report.
///
/// A proxy needs a control plane and a join token. With redirect rules in place (`outrigger-proxy init`) it takes over
/// all TCP connections of its network namespace; with --no-capture it serves only what --forward and --serve name.
///
/// Every flag can be given as a variable: OUTRIGGER_ and the flag in upper case, with _ for -. A flag wins over its
/// variable. Flags that may be repeated take a list separated by commas in a variable.
#[derive(Args, Debug, Default)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Control planes in the order of preference. The first that answers configures this proxy; all of them learn
    /// where it is
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT…]", help_heading = "Identity and configuration")]
    pub control_plane: Vec<String>,

    /// Join token (made by `outrigger token create`). Visible to whoever can list processes: prefer --token-file
    #[arg(long, value_name = "TEXT", help_heading = "Identity and configuration")]
    pub token: Option<String>,

    /// File with the join token; read again whenever it is needed
    #[arg(long, value_name = "PATH", help_heading = "Identity and configuration")]
    pub token_file: Option<String>,

    /// Own address that others can reach; repeatable [default: the addresses of all interfaces but loopback]
    #[arg(long, value_name = "IP", help_heading = "Identity and configuration")]
    pub address: Vec<String>,

    /// Locality of this workload, such as the name of a data centre
    #[arg(long, value_name = "NAME", help_heading = "Identity and configuration")]
    pub zone: Option<String>,

    /// Directory for the last good configuration (no keys), from which the proxy starts when no control plane answers,
    /// and for admin.sock [default: nothing is kept and there is no admin.sock]
    #[arg(long, value_name = "DIR", help_heading = "Identity and configuration")]
    pub state_dir: Option<String>,

    /// Keep key and certificate in this directory over a restart. Meant for a memory-backed directory; files get mode
    /// 0600 [default: the key never leaves memory]
    #[arg(long, value_name = "DIR", help_heading = "Identity and configuration")]
    pub identity_dir: Option<String>,

    /// Open no capture listeners: only what --forward and --serve name is carried
    #[arg(long, help_heading = "Traffic")]
    pub no_capture: bool,

    /// Where redirect rules send outgoing connections (loopback only) [default: 15001]
    #[arg(long, value_name = "PORT", help_heading = "Traffic")]
    pub outbound_port: Option<String>,

    /// Where redirect rules send incoming connections [default: 15006]
    #[arg(long, value_name = "PORT", help_heading = "Traffic")]
    pub inbound_port: Option<String>,

    /// Mark (SO_MARK) of own connections, which the redirect rules leave alone; decimal or 0x…; 0: no mark, the rules
    /// tell the proxy by its uid. Setting a mark needs CAP_NET_ADMIN [default: 28530, none with --no-capture]
    #[arg(long, value_name = "NUMBER", help_heading = "Traffic")]
    pub mark: Option<String>,

    /// Plain local listener that leads to a mesh service or address; repeatable
    #[arg(long, value_name = "LOCAL_ADDR=HOST:PORT", help_heading = "Traffic")]
    pub forward: Vec<String>,

    /// Mesh listener before a local program; repeatable
    #[arg(long, value_name = "MESH_ADDR=APP_ADDR", help_heading = "Traffic")]
    pub serve: Vec<String>,

    /// Threads that carry traffic [default: one per CPU, at most 4]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub workers: Option<String>,

    /// How long work in flight may take after SIGTERM [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Running")]
    pub drain_grace: Option<String>,

    /// Where /live, /ready and /metrics are answered [default: [::]:15020, IPv4 and IPv6]
    #[arg(long, value_name = "IP:PORT", help_heading = "Running")]
    pub status_address: Option<String>,

    /// Read-only admin on loopback: /config_dump /stats /clusters /certs [default: 15000]
    #[arg(long, value_name = "PORT", help_heading = "Running")]
    pub admin_port: Option<String>,

    /// One line per request and connection: off, stdout or a file to append to [default: stdout]
    #[arg(long, value_name = "off|stdout|PATH", help_heading = "Running")]
    pub access_log: Option<String>,

    /// What such a line looks like: json, or text with fields, such as '%{time} %{method} %{path} %{status} %{reason|-}'
    /// [default: json]
    #[arg(long, value_name = "json|FORMAT", help_heading = "Running")]
    pub access_log_format: Option<String>,

    /// Write only lines of what failed (errors), took longer (slower=100ms) or is in a sample (sample=0.01); of several,
    /// one suffices [default: all lines]
    #[arg(long, value_name = "errors,slower=TIME,sample=SHARE", help_heading = "Running")]
    pub access_log_only: Option<String>,

    /// At most so many series (values of a scrape); beyond them, services and routes share one called "other"
    /// [default: 2000]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub metrics_series: Option<String>,

    /// A series in which nothing was counted for so long leaves; 0s: it stays [default: 10m]
    #[arg(long, value_name = "TIME", help_heading = "Running")]
    pub metrics_idle: Option<String>,

    /// Metrics of the application that are shown together with the proxy's own; an address of this workload, repeatable
    /// up to 4 times
    #[arg(long, value_name = "http://127.0.0.1:PORT/PATH", help_heading = "Running")]
    pub merge_metrics: Vec<String>,

    /// Record also what the sampler passes over, if it failed (errors) or took longer (slower=500ms); decided when it is
    /// over [default: nothing more]
    #[arg(long, value_name = "errors,slower=TIME", help_heading = TRACING)]
    pub trace_keep: Option<String>,

    /// At most so many traces are begun in a second, and as many kept for their end [default: 100]
    #[arg(long, value_name = "N", help_heading = TRACING)]
    pub trace_max_per_second: Option<String>,

    /// A span for each connection that carries no requests, too
    #[arg(long, help_heading = TRACING)]
    pub trace_tcp: bool,

    /// Let callers outside the mesh name the parent of a span and decide about recording [default: their trace is linked
    /// to, a new one begins]
    #[arg(long, help_heading = TRACING)]
    pub trace_trust_outside: bool,

    /// What to log on standard error: error, warn, info, debug, trace, or a list such as warn,outrigger_proxy::sync=debug
    /// [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Running")]
    pub log: Option<String>,
}

/// Traces are switched on by a standard variable, `OTEL_EXPORTER_OTLP_ENDPOINT`; see `config/otel.rs`.
const TRACING: &str = "Traces (on with OTEL_EXPORTER_OTLP_ENDPOINT)";

const EXAMPLES: &str = "\
Examples:
  A pod with redirect rules:
    outrigger-proxy run --control-plane cp.example:15012 --token-file /run/outrigger/token --state-dir /var/lib/outrigger
  A laptop that calls the mesh on port 9001:
    outrigger-proxy run --control-plane cp.example:15012 --token-file token --no-capture \\
        --forward 127.0.0.1:9001=orders.shop:80
  A machine without rules that serves a local program:
    outrigger-proxy run --control-plane cp.example:15012 --token-file token --no-capture \\
        --serve 0.0.0.0:9443=127.0.0.1:8080

Signals: SIGTERM or SIGINT drains and exits with 0; a second one ends at once.";
