//! TLS to a telemetry backend: no part of the mesh, so its roots are those of a file, and its name is checked.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::config::otel::{Export, Protocol};

/// Where distributions keep the roots that they trust: Debian and Alpine, Fedora, openSUSE, and again Alpine.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Reads the files anew, so that rotated ones count from the next connection on.
pub(super) fn config(export: &Export) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(export.certificate.as_deref())?);
    let mut config = match &export.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")?;
            let text = read(key, "OTEL_EXPORTER_OTLP_CLIENT_KEY")?;
            let secret = PrivateKeyDer::from_pem_slice(&text)
                .map_err(|error| format!("OTEL_EXPORTER_OTLP_CLIENT_KEY {}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                format!("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE {}: {error}", certificate.display())
            })?
        }
    };
    config.alpn_protocols = vec![match export.protocol {
        Protocol::Grpc => b"h2".to_vec(),
        Protocol::Http => b"http/1.1".to_vec(),
    }];
    Ok(config)
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let (file, variable) = match file {
        Some(file) => (file.to_owned(), "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        None => (bundle()?, "the system's roots"),
    };
    let mut roots = RootCertStore::empty();
    // A system's bundle may have one that nobody understands any more.
    let (good, _) = roots.add_parsable_certificates(certificates(&file, variable)?);
    if good == 0 {
        return Err(format!("{variable} {}: want at least one certificate in PEM", file.display()));
    }
    Ok(roots)
}

fn bundle() -> Result<PathBuf, String> {
    let found = BUNDLES.into_iter().map(Path::new).find(|path| path.is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        "OTEL_EXPORTER_OTLP_CERTIFICATE is missing: want a file of roots, because this system has none"
            .to_owned()
    })
}

fn certificates(file: &Path, variable: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(file, variable)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    all.map_err(|error| format!("{variable} {}: {error}", file.display()))
}

fn read(file: &Path, variable: &str) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{variable} {}: {error}", file.display()))
}
