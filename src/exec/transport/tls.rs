//! Proof of who a server is.
//!
//! Owns: which authorities are believed (those of the platform, or of a file that is named) and the handshake. May not know: what is said afterwards.
//!
//! Invariant: there is no way to connect to a server that is not verified.

use crate::base::tasks;
use std::io;
#[cfg(feature = "otlp")]
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
#[cfg(feature = "otlp")]
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A connection to a server that has proven to be `host`.
pub(super) async fn secure(host: &str, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    // Files are read: not on the runtime's thread.
    let roots = tasks::spawn_blocking(roots).await.map_err(io::Error::other)??;
    prove(host, socket, roots).await
}

/// Whether the server was reached and has not proven who it is, or nothing here could say that it has.
pub(super) fn is_unproven(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.get_ref().is_some_and(|inner| inner.is::<tokio_rustls::rustls::Error>())
}

async fn prove<S>(host: &str, socket: S, roots: RootCertStore) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host's name cannot be verified"))?;
    TlsConnector::from(Arc::new(believing(roots)?)).connect(name, socket).await
}

/// How somebody else's client has its server prove who it is. Files are read: not on the runtime's thread.
///
/// # Errors
///
/// This platform names no authority.
#[cfg(any(feature = "fleet", feature = "otlp"))]
pub(crate) fn client_config() -> io::Result<ClientConfig> {
    believing(roots()?)
}

/// The same by the authorities in this file, and no others.
///
/// # Errors
///
/// The file cannot be read, or has none.
#[cfg(feature = "otlp")]
pub(crate) fn client_config_by(file: &Path) -> io::Result<ClientConfig> {
    let found = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.filter_map(Result::ok));
    if taken == 0 {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no authority in it"));
    }
    believing(roots)
}

fn believing(roots: RootCertStore) -> io::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn roots() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("this platform names no authority to verify a server by: {why}"),
        ));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    /// An authority made for this test, whose own key nobody has any more.
    fn authority() -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let authority =
            CertificateDer::from_pem_slice(include_bytes!("tls_tests/authority.pem")).expect("a certificate");
        roots.add(authority).expect("an authority");
        roots
    }

    /// A server that proves to be `build.example` by that authority, and says one word.
    fn server() -> TlsAcceptor {
        let proof = CertificateDer::from_pem_slice(include_bytes!("tls_tests/server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls_tests/server.key")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![proof], key)
            .expect("a server");
        TlsAcceptor::from(Arc::new(config))
    }

    async fn met(host: &str, roots: RootCertStore) -> io::Result<String> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let serving = async {
            if let Ok(mut socket) = server().accept(theirs).await {
                let _ = socket.write_all(b"proven").await;
                let _ = socket.shutdown().await;
            }
        };
        let asking = async {
            let mut said = String::new();
            prove(host, ours, roots).await?.read_to_string(&mut said).await?;
            Ok(said)
        };
        tokio::join!(serving, asking).1
    }

    #[tokio::test]
    async fn only_a_server_that_proves_who_it_is_by_a_believed_authority_is_spoken_to() {
        assert_eq!(met("build.example", authority()).await.expect("it is proven"), "proven");
        for (host, roots) in
            [("other.example", authority()), ("127.0.0.1", authority()), ("build.example", RootCertStore::empty())]
        {
            let said = met(host, roots).await.expect_err(host);
            assert!(said.to_string().contains("certificate") && is_unproven(&said), "{host}: {said}");
        }
        assert!(is_unproven(&met("no host", authority()).await.expect_err("no name")));
        assert!(!is_unproven(&io::ErrorKind::ConnectionReset.into()), "it may be back in a moment");
        // Where the platform names authorities, none of them knows this server.
        if let Ok(platforms) = roots() {
            assert!(met("build.example", platforms).await.is_err());
        }
    }
}
