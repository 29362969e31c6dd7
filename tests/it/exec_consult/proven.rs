//! A consult over `wss://`: its server proves who it is, or nothing is started.
//!
//! The certificates were made for this test by an authority whose own key nobody has any more; they are for 127.0.0.1, and for no name.
//!
//! Laws: L3, L7, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::kit::{House, begun, write_token};

const TOKEN: &str = "9d2e6f0b4a8c1357e9f1d3b5a7c90824";

/// What encrypts before a server, as a company's proxy does.
struct Front {
    port: u16,
    _serving: JoinSet<()>,
}

impl Front {
    async fn before(server: &str) -> Self {
        let server: Arc<str> = server.trim_start_matches("ws://").trim_end_matches('/').into();
        let proof = CertificateDer::from_pem_file(certificate("server.pem")).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(certificate("server.key")).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![proof], key)
            .expect("a server");
        let acceptor = TlsAcceptor::from(Arc::new(config));
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
}

fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/exec_consult/certificates").join(name)
}

#[tokio::test]
async fn a_consult_over_wss_is_answered_by_a_server_that_proves_who_it_is_and_by_no_other() {
    let mut house = House::behind_a_token(TOKEN).await;
    let token = house.rig.path("brought");
    write_token(&token, TOKEN, 0o600);
    let front = Front::before(house.exec().trim_matches('"')).await;
    let (address, name) =
        (format!("\"wss://127.0.0.1:{}\"", front.port), format!("\"wss://localhost:{}\"", front.port));
    let ours = certificate("authority.pem").display().to_string();

    house.rig.set("SSL_CERT_FILE", &ours);
    house.name_agent_by(&address, Some(&token));
    let mut host = house.rig.serve().await;
    let reply = host.consult(&house.rig.answering("42")).await.expect_success();
    assert_eq!(reply["response"], "42", "{:#}", reply.0);
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    begun(&house, "begun").await;
    let cancelled = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((cancelled.is_error(), cancelled.str("status")), (false, "cancelled"), "{:#}", cancelled.0);
    host.finish().await;
    house.rig.expect_runs(2);

    // Proven by an authority nobody here believes; proven to be somebody else.
    let another = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/exec/transport/tls_tests/authority.pem");
    for (exec, believed) in [(&address, another.display().to_string()), (&name, ours)] {
        house.rig.set("SSL_CERT_FILE", &believed);
        house.name_agent_by(exec, Some(&token));
        let mut host = house.rig.serve().await;
        let said = host.consult(&house.rig.answering("43")).await.expect_fault("exec_refused");
        assert!(said.text().contains("certificate"), "{exec}: {}", said.text());
        host.finish().await;
    }
    house.rig.expect_runs(2);
    house.close([]).await;
}
