//! Real programs as peers: where they are and how they are started.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::Result;
use outrigger_lab::{Lab, Pod};

/// The Python that tests/setup.sh prepared, or the system's when it has the packages.
pub(crate) fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let usable = |python: &Path| {
        let probe = Command::new(python).args(["-c", "import grpc, websockets"]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    let find = || {
        let prepared = repository().join("target/venv/bin/python");
        [Some(prepared), outrigger_lab::find_program("python3")]
            .into_iter()
            .flatten()
            .find(|path| usable(path))
    };
    PYTHON.get_or_init(find).as_deref()
}

/// A script of tests/peers, to be run in a pod.
pub(crate) fn script(pod: &Pod, name: &str) -> Command {
    let mut command = pod.command(python().unwrap_or_else(|| Path::new("python3")));
    command.arg(repository().join("tests/peers").join(name)).env("PYTHONUNBUFFERED", "1");
    command
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// nginx in one process, with the given `http` section.
pub(crate) fn nginx(lab: &Lab, pod: &Pod, http: &str) -> Result<Command> {
    nginx_named(lab, pod, pod.name(), http)
}

/// The same, one of several in a pod.
pub(crate) fn nginx_named(lab: &Lab, pod: &Pod, name: &str, http: &str) -> Result<Command> {
    let directory = lab.directory().join(format!("{name}-nginx"));
    fs::create_dir_all(directory.join("html"))?;
    let prefix = directory.display();
    // One process without a change of user: in a user namespace there is no other.
    let config = format!(
        "user root root; daemon off; master_process off; worker_processes 1; pid {prefix}/pid; error_log stderr;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 1000000; root {prefix}/html;
  client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy; fastcgi_temp_path {prefix}/fastcgi;
  uwsgi_temp_path {prefix}/uwsgi; scgi_temp_path {prefix}/scgi;
{http}
}}\n"
    );
    fs::write(directory.join("nginx.conf"), config)?;
    let mut command = pod.command("nginx");
    command.arg("-p").arg(&directory).arg("-c").arg(directory.join("nginx.conf"));
    Ok(command)
}

/// Where [`nginx`] of that pod serves files from.
pub(crate) fn nginx_root(lab: &Lab, pod: &Pod) -> PathBuf {
    lab.directory().join(format!("{}-nginx/html", pod.name()))
}

/// MariaDB with an empty data directory and without accounts.
pub(crate) fn mariadb(lab: &Lab, pod: &Pod, port: u16) -> Result<Command> {
    let directory = lab.directory().join(format!("{}-mariadb", pod.name()));
    fs::create_dir_all(directory.join("data"))?;
    let mut command = pod.command("mariadbd");
    command
        .args([
            "--no-defaults",
            "--user=root",
            "--skip-grant-tables",
            "--bind-address=*",
            "--skip-name-resolve",
        ])
        .args([
            "--innodb-buffer-pool-size=8M",
            "--innodb-log-file-size=4M",
            "--innodb-flush-log-at-trx-commit=0",
        ])
        // --skip-grant-tables alone turns networking off.
        .args(["--skip-networking=0", "--default-storage-engine=Aria"])
        .arg(format!("--port={port}"))
        .arg(format!("--datadir={}", directory.join("data").display()))
        .arg(format!("--socket={}", directory.join("socket").display()))
        .arg(format!("--pid-file={}", directory.join("pid").display()));
    Ok(command)
}
