//! `outrigger stat`, `top` and `edges` against a live mesh: as programs do, and in a real terminal of 80 columns.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Workload, wait_for};
use serde_json::Value;

use super::stat_of;
use crate::support::{
    Need, SOON, Test,
    app::{App, Say},
    ask::{Ask, Loops, Running},
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("stat_and_edges_show_a_live_mesh", as_programs),
        Test::new("top_and_stat_watch_fit_a_terminal_of_80_columns_with_and_without_colour", in_a_terminal)
            .needs(&[Need::Program("tmux")]),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
const SERVICE: &str = "shop/store:80";

struct Scene {
    load: Vec<Running>,
    _app: App,
    web: Workload,
    store: Workload,
    stranger: Pod,
    mesh: Mesh,
}

/// `web` calls `store`, one answer of five is a failure; somebody without a sidecar calls it too.
fn scene(lab: &Lab) -> Result<Scene> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let plain = "  targetRef: {kind: Service, name: store}\n  retries: {attempts: 0}\n  outlierEjection: {enabled: false}\n";
    let open = "  selector: {app: store}\n  ports: [{port: 8080, mtls: permissive}]\n";
    let mesh = Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("plain.yaml", policy("TrafficPolicy", "store", plain))
        .file("open.yaml", policy("ServerPolicy", "store", open))
        .start(lab)?;
    let store = mesh.workload("store").start()?;
    let app =
        App::start(
            &store.pod,
            8080,
            |asked| if asked.number % 5 == 4 { Say::status(500) } else { Say::ok("good") },
        )?;
    let web = mesh.workload("web").start()?;
    let stranger = lab.pod("stranger")?;
    wait_for(SOON, "an answer", || Ask::new(SocketAddr::from(STORE), "/").once(&web.pod).is_ok())?;
    let load = vec![
        Loops::new(Ask::new(SocketAddr::from(STORE), "/"), 2).at_rate(50).start(&web.pod)?,
        Loops::new(Ask::new(SocketAddr::from((store.pod.ipv4(), 8080)), "/"), 1)
            .at_rate(10)
            .start(&stranger)?,
    ];
    stat_of(&mesh, "service", "outbound", SERVICE, 100)?;
    Ok(Scene { load, _app: app, web, store, stranger, mesh })
}

fn json(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    let told = scene.mesh.outrigger(arguments)?.success()?;
    serde_json::from_str(&told).with_context(|| told)
}

fn as_programs(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    // For machines: the same figures as the API's.
    for (what, more) in [("services", None), ("routes", None), ("services", Some("store"))] {
        let mut arguments = vec!["stat", what];
        arguments.extend(more);
        arguments.extend(["-o", "json"]);
        let told = json(&scene, &arguments)?;
        let rows = told["rows"].as_array().with_context(|| told.to_string())?;
        let row = rows.iter().find(|row| row["service"] == SERVICE).with_context(|| told.to_string())?;
        let success = row["success"].as_f64().context("success")?;
        ensure!((0.7..0.9).contains(&success), "one in five fails: {row}");
        let figure = |name: &str| row[name].as_u64().unwrap_or(0);
        ensure!(
            figure("p50_us") > 0
                && figure("p50_us") <= figure("p99_us")
                && figure("p99_us") <= figure("max_us"),
            "{row}"
        );
        // Of half a minute.
        let (rate, requests) = (row["rate"].as_f64().context("rate")?, figure("requests") as f64);
        ensure!(requests > 0.0 && (rate * 30.0 - requests).abs() <= requests * 0.1, "{row}");
    }
    // For people: no colour where nobody sees it. How it fits a terminal is the other test's.
    for arguments in [&["stat"][..], &["stat", "routes"], &["stat", "edges"], &["edges"]] {
        let told = scene.mesh.outrigger(arguments)?.success()?;
        ensure!(told.contains("store"), "{arguments:?}: {told}");
        ensure!(!told.contains('\x1b'), "{arguments:?}: colour in a pipe: {told:?}");
    }
    // Who talks to whom: one with both identities and a cipher, one unmeshed.
    let told = json(&scene, &["edges", "-o", "json"])?;
    let text = told.to_string();
    for part in ["spiffe://mesh.local/ns/shop/sa/web", "spiffe://mesh.local/ns/shop/sa/store", "TLSv1_3"] {
        ensure!(text.contains(part), "no {part} in {told}");
    }
    let mut told = String::new();
    wait_for(SOON, "the unmeshed edge", || {
        told = scene
            .mesh
            .outrigger(&["edges"])
            .map_or_else(|error| error.to_string(), |output| output.to_string());
        let told = told.to_lowercase();
        told.contains("unmeshed") || told.contains("plaintext") || told.contains("not meshed")
    })
    .with_context(|| told.clone())?;
    // What cannot be is said, with its name, and asked of nobody.
    for arguments in
        [&["stat", "--window", "soon"][..], &["stat", "--from", "yesterday-ish"], &["stat", "planets"]]
    {
        let output = scene.mesh.outrigger(arguments)?;
        ensure!(
            !output.status.success() && output.stderr.contains(arguments[arguments.len() - 1]),
            "{arguments:?}: {output}"
        );
    }
    ensure!(scene.load.iter().all(|load| load.answered() > 0));
    ensure!(scene.stranger.ipv4() != scene.web.pod.ipv4() && scene.store.name() == "store");
    Ok(())
}

// ---- a terminal -----------------------------------------------------------------------------------------------------

/// A terminal of 80 columns with one program in it; all of it ends with this.
struct Terminal {
    pod: Pod,
    socket: PathBuf,
}

impl Terminal {
    fn open(pod: &Pod, name: &str, variables: &[(&str, &str)], command: &str) -> Result<Self> {
        let socket = pod.lab().directory().join(format!("{name}.tmux"));
        let terminal = Self { pod: pod.clone(), socket };
        let mut tmux = terminal.tmux();
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "-s", name]);
        tmux.arg(command)
            .envs(variables.iter().copied())
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8");
        if variables.is_empty() {
            tmux.env_remove("NO_COLOR");
        }
        pod.run(&mut tmux)?.success()?;
        Ok(terminal)
    }

    fn tmux(&self) -> Command {
        let mut tmux = self.pod.command("tmux");
        tmux.arg("-S").arg(&self.socket);
        tmux
    }

    /// What is on the screen; with its escapes, if wanted.
    fn screen(&self, escapes: bool) -> Result<String> {
        let mut tmux = self.tmux();
        tmux.args(["capture-pane", "-p"]);
        if escapes {
            tmux.arg("-e");
        }
        self.pod.run(&mut tmux)?.success()
    }

    fn press(&self, keys: &[&str]) -> Result<()> {
        let mut tmux = self.tmux();
        self.pod.run(tmux.arg("send-keys").args(keys))?.success().map(drop)
    }

    fn is_open(&self) -> bool {
        let mut tmux = self.tmux();
        self.pod.run(tmux.arg("has-session")).is_ok_and(|output| output.status.success())
    }

    fn wait_shows(&self, words: &[&str]) -> Result<String> {
        let mut last = String::new();
        wait_for(SOON, &format!("{words:?} on the screen"), || {
            last = self.screen(false).unwrap_or_default();
            words.iter().all(|word| last.to_lowercase().contains(&word.to_lowercase()))
        })
        .with_context(|| last.clone())?;
        Ok(last)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut tmux = self.tmux();
        drop(self.pod.run(tmux.arg("kill-server")));
    }
}

/// Kept for whoever wants to see it: target/artefacts/NAME.txt.
fn keep(name: &str, screen: &str) -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/artefacts");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("{name}.txt")), screen).context("artefact")
}

fn in_a_terminal(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let pod = scene.mesh.control_plane_pod(0);
    let program = scene.mesh.binaries().outrigger();
    let command = |arguments: &str| format!("{} {arguments}", program.display());
    let colours: [(&str, &[(&str, &str)]); 2] = [("colour", &[]), ("plain", &[("NO_COLOR", "1")])];
    for (look, variables) in colours {
        let top = Terminal::open(pod, &format!("top-{look}"), variables, &command("top"))?;
        let first = top.wait_shows(&["store", "p99"])?;
        keep(&format!("top-{look}"), &top.screen(look == "colour")?)?;
        shown(&top, look)?;
        // It is live: the figures move.
        wait_for(SOON, "figures that move", || top.screen(false).is_ok_and(|now| now != first))?;
        // Another view, another order, a filter, and out.
        top.press(&["Tab"])?;
        top.press(&["s"])?;
        top.wait_shows(&["store"])?;
        top.press(&["q"])?;
        wait_for(Duration::from_secs(20), "the end of top", || !top.is_open())?;

        let stat =
            Terminal::open(pod, &format!("stat-{look}"), variables, &command("stat services --watch"))?;
        let first = stat.wait_shows(&["store", "p99"])?;
        keep(&format!("stat-watch-{look}"), &stat.screen(look == "colour")?)?;
        // It has none in any case.
        shown(&stat, "plain")?;
        wait_for(SOON, "figures that move", || stat.screen(false).is_ok_and(|now| now != first))?;
        stat.press(&["C-c"])?;
        wait_for(Duration::from_secs(20), "the end of stat", || !stat.is_open())?;

        // What is printed once fits too; the shell keeps it on the screen.
        let edges = Terminal::open(pod, &format!("edges-{look}"), variables, &command("edges; sleep 60"))?;
        let screen = edges.wait_shows(&["store", "web"])?;
        ensure!(screen.lines().filter(|line| line.contains("store")).count() >= 2, "{screen}");
        keep(&format!("edges-{look}"), &edges.screen(look == "colour")?)?;
    }
    // It ends with its terminal, whose keyboard would be read for ever.
    let top = Terminal::open(pod, "top-gone", &[], &format!("exec {}", command("top")))?;
    top.wait_shows(&["store"])?;
    let mut ask = top.tmux();
    let process = pod.run(ask.args(["display-message", "-p", "#{pane_pid}"]))?.success()?;
    let process = Path::new("/proc").join(process.trim());
    ensure!(process.join("exe").read_link()? == program, "{}", process.display());
    drop(top);
    wait_for(Duration::from_secs(20), "the end of top", || !process.exists())?;
    ensure!(scene.load.iter().all(|load| load.answered() > 0));
    Ok(())
}

/// Nothing is cut off or wrapped, and colours are there exactly where they are wanted.
fn shown(terminal: &Terminal, look: &str) -> Result<()> {
    let screen = terminal.screen(true)?;
    // Bold and reverse are no colours: 3x and 4x, 9x and 10x are.
    let colours = screen.split("\x1b[").skip(1).any(|rest| {
        let (codes, _) = rest.split_once('m').unwrap_or_default();
        codes
            .split(';')
            .any(|code| code.parse::<u32>().is_ok_and(|code| matches!(code, 30..=38 | 40..=48 | 90..=107)))
    });
    ensure!(colours == (look == "colour"), "colours in look {look}: {colours}\n{screen}");
    let plain = terminal.screen(false)?;
    ensure!(plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
    Ok(())
}
