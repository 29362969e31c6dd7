//! What a client says.
//!
//! Owns: the lines of its requests and notifications. May not know: what is answered.

#![expect(clippy::panic, reason = "what a client waits for in vain fails the case")]

use std::path::Path;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::inbox::Inbox;
use super::{Sent, TestClient};

impl TestClient {
    /// Writes bytes as they are.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let Some(input) = &mut self.input else { panic!("the client has hung up") };
        // A host that is gone is what some cases are about; the missing answer tells.
        let _ = input.write_all(bytes).await;
        let _ = input.flush().await;
    }

    /// Writes one line.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn line(&mut self, line: &str) {
        self.bytes(format!("{line}\n").as_bytes()).await;
    }

    /// Sends a request.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn send(&mut self, method: &str, params: Value) -> Sent {
        self.last += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params});
        self.line(&request.to_string()).await;
        Sent(self.last)
    }

    /// Sends a tool call.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn start(&mut self, tool: &str, arguments: Value) -> Sent {
        self.send("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// Sends a notification.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn notify(&mut self, method: &str, params: Value) {
        self.line(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string()).await;
    }

    /// Sends the greeting of the legacy revisions and waits for nothing.
    ///
    /// # Panics
    ///
    /// When the client has hung up.
    pub async fn send_greeting(&mut self, version: &str) -> Sent {
        let client = json!({"name": "rig", "version": "1"});
        self.send("initialize", json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client})).await
    }

    /// The handshake of a client that has roots; whoever is asked for them answers by [`TestClient::answer_roots`].
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub async fn handshake_with_roots(&mut self, version: &str) -> Value {
        let client = json!({"name": "rig", "version": "1"});
        let capabilities = json!({"roots": {"listChanged": true}});
        let params = json!({"protocolVersion": version, "capabilities": capabilities, "clientInfo": client});
        let answer = self.request("initialize", params).await;
        self.notify("notifications/initialized", json!({})).await;
        answer
    }

    /// Waits until the host has asked for the roots this many times, and answers the last question with these directories.
    ///
    /// # Panics
    ///
    /// When it does not ask.
    pub async fn answer_roots(&mut self, asked: usize, roots: &[&Path]) {
        let look = |inbox: &Inbox| {
            let questions = inbox.notifications.iter().filter(|note| note["method"] == "roots/list");
            questions.clone().nth(asked - 1).map(|question| question["id"].clone())
        };
        let id = self.wait_for(&format!("question {asked} for the roots"), look).await;
        let roots: Vec<Value> = roots.iter().map(|root| json!({"uri": format!("file://{}", root.display())})).collect();
        self.line(&json!({"jsonrpc": "2.0", "id": id, "result": {"roots": roots}}).to_string()).await;
    }
}
