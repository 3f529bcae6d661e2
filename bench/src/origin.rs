//! The program behind the callee's sidecar: nginx with a 1 KiB and a 1 MiB answer, and the ports of the comparison.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge have a port each, because nginx tells them apart by port only. Over HTTP/2
//! nginx leaves TCP_NODELAY off while it uses sendfile, which costs every lone request a delayed acknowledgement.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

pub(crate) const H1_PORT: u16 = 8080;
pub(crate) const H2_PORT: u16 = 8081;
/// HTTP/1.1 once more, for which the sidecars have every policy of resilience on.
pub(crate) const POLICIES_PORT: u16 = 8082;
/// Where [`crate::stream`] listens.
pub(crate) const TCP_PORT: u16 = 9000;

/// Where OTLP over HTTP is swallowed, see [`write_backend`].
pub(crate) const OTLP_PORT: u16 = 4318;

pub(crate) const SMALL_BYTES: usize = 1024;
pub(crate) const LARGE_BYTES: usize = 1024 * 1024;

/// Writes nginx's configuration and its files into `dir`; `nginx -c` takes the returned path.
pub(crate) fn write(dir: &Path) -> Result<PathBuf> {
    let www = dir.join("www");
    fs::create_dir_all(&www)?;
    fs::write(www.join("1k"), vec![b'k'; SMALL_BYTES])?;
    fs::write(www.join("1m"), vec![b'm'; LARGE_BYTES])?;
    let (dir_text, www) = (dir.display(), www.display());
    let config = format!(
        // One process, and the only user that is mapped in a user namespace.
        "user root;\n\
         master_process off;\n\
         daemon off;\n\
         pid {dir_text}/nginx.pid;\n\
         error_log {dir_text}/nginx.log warn;\n\
         worker_rlimit_nofile 20000;\n\
         events {{ worker_connections 9000; multi_accept on; }}\n\
         http {{\n\
         \x20 access_log off;\n\
         \x20 sendfile on;\n\
         \x20 open_file_cache max=16;\n\
         \x20 keepalive_requests 100000000;\n\
         \x20 keepalive_timeout 3600s;\n\
         \x20 client_body_temp_path {dir_text}/body;\n\
         \x20 proxy_temp_path {dir_text}/proxy;\n\
         \x20 fastcgi_temp_path {dir_text}/fastcgi;\n\
         \x20 uwsgi_temp_path {dir_text}/uwsgi;\n\
         \x20 scgi_temp_path {dir_text}/scgi;\n\
         \x20 server {{ listen {H1_PORT} backlog=4096; root {www}; }}\n\
         \x20 server {{ listen {POLICIES_PORT} backlog=4096; root {www}; }}\n\
         \x20 server {{ listen {H2_PORT} http2 backlog=4096; root {www}; http2_max_concurrent_streams 1024; sendfile off; }}\n\
         }}\n"
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config)?;
    Ok(path)
}

/// A tracing backend that takes everything and keeps nothing, for `nginx -c` in a pod of its own. An empty body is what
/// OTLP over HTTP calls a success.
pub(crate) fn write_backend(dir: &Path) -> Result<PathBuf> {
    let dir_text = dir.display();
    let config = format!(
        "user root;\n\
         master_process off;\n\
         daemon off;\n\
         pid {dir_text}/backend.pid;\n\
         error_log {dir_text}/backend.log warn;\n\
         events {{ worker_connections 128; }}\n\
         http {{\n\
         \x20 access_log off;\n\
         \x20 client_max_body_size 0;\n\
         \x20 keepalive_requests 100000000;\n\
         \x20 client_body_temp_path {dir_text}/backend-body;\n\
         \x20 proxy_temp_path {dir_text}/backend-proxy;\n\
         \x20 fastcgi_temp_path {dir_text}/backend-fastcgi;\n\
         \x20 uwsgi_temp_path {dir_text}/backend-uwsgi;\n\
         \x20 scgi_temp_path {dir_text}/backend-scgi;\n\
         \x20 server {{ listen {OTLP_PORT}; location / {{ default_type application/x-protobuf; return 200; }} }}\n\
         }}\n"
    );
    let path = dir.join("backend.conf");
    fs::write(&path, config)?;
    Ok(path)
}
