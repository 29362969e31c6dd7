//! What encrypts before a server, for tests of who is believed.
//!
//! The certificates were made for these tests by an authority whose own key nobody has any more; they are for 127.0.0.1, and for no name.
//!
//! Laws: L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What encrypts before a server, as a company's proxy does.
pub(crate) struct Front {
    port: u16,
    _serving: JoinSet<()>,
}

impl Front {
    /// Encrypts before this address of a server.
    pub(crate) async fn before(server: &str) -> Self {
        let server: Arc<str> = server.into();
        let acceptor = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
                connections.spawn(async move {
                    // Whoever does not believe us goes away.
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let mut server = TcpStream::connect(&*server).await.expect("the server is there");
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, _serving: serving }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }
}

/// What proves to be 127.0.0.1, to who believes that authority.
fn acceptor() -> TlsAcceptor {
    let proof = CertificateDer::from_pem_file(certificate("server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![proof], key)
        .expect("a server");
    TlsAcceptor::from(Arc::new(config))
}

/// A file of those certificates.
pub(crate) fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/certificates").join(name)
}
