//! Certificates for Envoy's pair: an own root, one P-256 leaf per side with its SPIFFE identity, made with `openssl`.
//!
//! Our pair needs none of this, it gets its certificates from our control plane; the kind of key, the length of the
//! chain and the identities are the same, so both pairs do the same handshake.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

pub(crate) const CLIENT_ID: &str = "spiffe://mesh.local/ns/bench/sa/client";
pub(crate) const SERVER_ID: &str = "spiffe://mesh.local/ns/bench/sa/server";

/// Writes `ca.pem`, `client.pem`, `client.key`, `server.pem` and `server.key` into `dir`.
pub(crate) fn write(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
    openssl(
        dir,
        &[
            &["req", "-x509"][..],
            &key,
            &["-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/O=bench"],
            &["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"],
        ],
    )?;
    for (name, id) in [("client", CLIENT_ID), ("server", SERVER_ID)] {
        fs::write(
            dir.join(format!("{name}.ext")),
            format!(
                "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                 extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:{id}\n"
            ),
        )?;
        let (key_file, csr, ext, pem) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.ext"), format!("{name}.pem"));
        openssl(dir, &[&["req", "-new"][..], &key, &["-keyout", &key_file, "-out", &csr, "-subj", "/"]])?;
        openssl(
            dir,
            &[
                &["x509", "-req", "-in", &csr, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"][..],
                &["-extfile", &ext, "-out", &pem, "-days", "1"],
            ],
        )?;
    }
    Ok(dir.to_path_buf())
}

fn openssl(dir: &Path, args: &[&[&str]]) -> Result<()> {
    let output = Command::new("openssl")
        .args(args.concat())
        .current_dir(dir)
        .output()
        .context("openssl does not start")?;
    ensure!(
        output.status.success(),
        "openssl {:?}: {}",
        args.concat(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
